"""Paths: where the package keeps its files, and what exists at a path."""

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
    """The folder for generated and downloaded files: ``FLAMINGO_EVAL_CACHE``, else one in the user's cache folder.

    The user's cache folder is ``XDG_CACHE_HOME``, else ``~/.cache``. Raises UserError if no variable is set and there
    is no home folder.
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
    """A path as a user wrote it, with ``~`` expanded to the home folder.

    Args:
        text: the path as written.
        what: name of the option or variable, for messages.

    Raises:
        UserError: there is no such user or home folder, the path is not UTF-8 (no record could store it), or the
            current folder is gone.
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
    """The file mode at a path, as :func:`os.stat` returns it, with links followed; 0 if nothing is there.

    Raises:
        UserError: it can't be determined: a permission is missing, or the name is too long. (pathlib's own tests
            raise an error there, or report that nothing exists.)
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
    """Whether there is anything at a path. Raises UserError if that can't be determined."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether a regular file is at a path. Raises UserError if that can't be determined."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is at a path. Raises UserError if that can't be determined."""
    return stat.S_ISDIR(_mode(path))


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Opens a file for reading, with links followed. It must be regular: a pipe or a device could hang, or never end.

    Raises:
        OSError: it can't be opened, or is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield file
