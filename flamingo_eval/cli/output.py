"""Printing results to stdout, which may be a pipe that closes or a disk that is full."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO, cast

import typer

from flamingo_eval.core.errors import StorageError
from flamingo_eval.core.progress import LOGGER
from flamingo_eval.core.text import printable

_lost: list[OSError] = []
"""The errors after which stdout was given up; what is printed later is discarded."""


def emit(text: str, end: str = "\n") -> None:
    """Prints to stdout, with control characters from data and models spelled out.

    If stdout is full or its reader is gone, the command goes on: it may still have to reach a verdict.
    """
    print(printable(text), end=end)


def wanted() -> bool:
    """Whether stdout still accepts output."""
    return not _lost


@contextmanager
def binary_output() -> Iterator[BinaryIO]:
    """Stdout for bytes.

    Raises:
        StorageError: stdout can't be written.
    """
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        _give_up(error)
        raise typer.Exit(0) from error  # the reader (head, less) has closed the pipe: this is no error
    except OSError as error:
        _give_up(error)
        raise StorageError(_full(error)) from error


def finish(code: int) -> int:
    """Flushes stdout and returns the exit code.

    A success whose output could not be written becomes an error; a reader that closed the pipe is no error.
    """
    sys.stdout.flush()
    full = next((error for error in _lost if not isinstance(error, BrokenPipeError)), None)
    _lost.clear()
    if full is None or code != 0:
        return code
    print(f"error: {_full(full)}", file=sys.stderr)
    return StorageError.exit_code


def _give_up(error: OSError) -> None:
    """Discards all further output: text that Python still buffers must not be written again at exit."""
    _to_nowhere(1)
    _lost.append(error)


def _to_nowhere(number: int) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _full(error: OSError) -> str:
    return f"can't write the output: {error.strerror}. What was computed is saved in the run folder"


class _Stream:
    """Stdout or stderr. If it is full or its reader is gone, the output is lost, but no work.

    Libraries write here too: one of them prints the help.
    """

    def __init__(self, stream: TextIO, lost: Callable[[OSError], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        """Writes text; discards it if the stream has failed."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._lost(error if isinstance(error, OSError) else OSError(str(error)))
            return len(text)

    def flush(self) -> None:
        """Flushes; discards what can't be written, so that Python does not fail on it at exit."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error if isinstance(error, OSError) else OSError(str(error)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Notes(logging.Handler):
    """Remarks on stderr, with control characters from data and models spelled out."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one remark."""
        print(f"note: {printable(record.getMessage())}", file=sys.stderr)


@contextmanager
def notes_shown() -> Iterator[None]:
    """Prints the package's remarks within the context, and passes them to no other logger."""
    handler, before = _Notes(), (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.level, LOGGER.propagate = before


def prepare_streams() -> None:
    """Opens closed standard streams on the null device, and spells out characters that a stream can't encode.

    A closed stream's number must be taken: the next file that is opened would get it, and what libraries write there.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, _Stream):
        sys.stdout = cast(TextIO, _Stream(sys.stdout, _give_up))
    if not isinstance(sys.stderr, _Stream):
        sys.stderr = cast(TextIO, _Stream(sys.stderr, lambda _: _to_nowhere(2)))
