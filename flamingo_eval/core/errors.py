"""Errors that reach the user, each carrying the exit code that the command line ends with.

Every one of them prints as a single short message; ``--debug`` adds the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class FlamingoEvalError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_code: int = 2


class UserError(FlamingoEvalError):
    """The options, the data or the checkpoint are invalid (exit code 2)."""


class DataError(UserError):
    """A data file is missing, malformed or contradicts itself; the message names file and record."""


class CheckpointError(UserError):
    """A checkpoint can't be loaded as described; the message names files or keys."""


class QueryError(UserError):
    """One query can't be answered (unreadable image, prompt too long); the other queries can."""


class GateError(FlamingoEvalError):
    """A run is worse than its baseline (exit code 1)."""

    exit_code = 1


class PartialError(FlamingoEvalError):
    """Some queries could not be answered, and the user chose to continue without them (exit code 4)."""

    exit_code = 4


class DeviceMemoryError(FlamingoEvalError):
    """A batch does not fit into the device's memory (exit code 2)."""


class StorageError(FlamingoEvalError):
    """Results can't be written: disk full or read-only (exit code 3)."""

    exit_code = 3


def first_few(problems: Sequence[str], at_most: int = 10) -> str:
    """The first problems, one per line, and how many more there are.

    >>> first_few(["a", "b", "c"], 2)
    '\\n  a\\n  b\\n  and 1 more'
    """
    more = [f"and {len(problems) - at_most} more"] if len(problems) > at_most else []
    return "".join(f"\n  {line}" for line in [*problems[:at_most], *more])
