"""Paths: where the package keeps things, and what is at a path, as far as anybody can say."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from flamingo_eval.core.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def resource_folder(name: str) -> Path:
    """A folder that ships with the package (``benchmarks``): inside it when installed, beside it in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def cache_folder() -> Path:
    """Where generated and downloaded things are kept: ``FLAMINGO_EVAL_CACHE``, else the user's cache folder.

    Raises UserError if there is neither that nor a home folder.
    """
    explicit = os.environ.get("FLAMINGO_EVAL_CACHE")
    if explicit:
        return user_path(explicit, "FLAMINGO_EVAL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return user_path(base, "XDG_CACHE_HOME") / "flamingo-eval"
    try:
        return Path.home() / ".cache" / "flamingo-eval"
    except RuntimeError as error:
        raise UserError(
            "there is no home folder to keep generated and downloaded things in: set HOME or FLAMINGO_EVAL_CACHE"
        ) from error


def user_path(text: str, what: str) -> Path:
    """A path as a user wrote it, ``~`` taken for the home folder.

    Args:
        text: what was written.
        what: the option or variable, for messages.

    Raises:
        UserError: no such user, or a name that is not UTF-8, which no record could hold.
    """
    try:
        path = Path(text).expanduser()
        str(path.absolute()).encode("utf-8")
    except RuntimeError as error:
        raise UserError(f"{what} {text!r}: there is no such user, or no home folder") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {str(path)!a}: the path is not UTF-8 text; give the folder another name") from error
    except FileNotFoundError as error:
        raise UserError(f"{what} {text!r}: the current folder is gone") from error
    return path


def _mode(path: Path) -> int:
    """What is at a path, links followed, as :func:`os.stat` says it; 0 for nothing.

    Raises:
        UserError: nobody can say, for want of a right, or since the name is too long. (pathlib's own tests end with
            a traceback there, or say that there is nothing.)
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a ValueError for a name with a null character
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return 0
        raise UserError(f"{str(path)[:300]} can't be looked at: {error.strerror}") from error


def exists(path: Path) -> bool:
    """Whether there is anything at a path. Raises UserError if nobody can say."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether a regular file is at a path. Raises UserError if nobody can say."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is at a path. Raises UserError if nobody can say."""
    return stat.S_ISDIR(_mode(path))


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """A file for reading that is a regular one, links followed: a pipe or a device would hang, or never end.

    Raises:
        OSError: it can't be opened, or is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield file
