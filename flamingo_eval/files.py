"""Files: where they may be, what is at a path, digests, and writing what must not be lost."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from flamingo_eval.errors import StorageError, UserError

_PACKAGE = Path(__file__).parent


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


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """While millions of small objects are made that live on: the collector of cycles would go through all of them,
    again and again, and find none."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def bytes_digest(content: bytes) -> str:
    """BLAKE2b digest (128 bits, hex)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """The same of a file's content. Raises OSError."""
    with open_regular(path) as file:
        return _digest_of(file)


def _digest_of(file: BufferedReader) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


_State = tuple[int, ...]
_known_digests: dict[tuple[Path, _State], str] = {}


def file_digest_once(path: Path) -> str:
    """The same, worked out once in a process as long as the file stays as it is: images and weights are large.

    Raises OSError.
    """
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        known = (path, state)
        if known not in _known_digests:
            found = _digest_of(file)
            if _state(os.fstat(file.fileno())) != state:
                return found  # it is being written: the next one who asks reads it again
            _known_digests[known] = found
        return _known_digests[known]


_TICK = 0.02
"""Seconds within which a file system may give two changes one time."""


def settled_digest(path: Path) -> str:
    """:func:`file_digest_once`, of a file that any later change gives another time. Raises OSError."""
    age = time.time() - path.stat().st_ctime
    if 0 <= age < _TICK:
        time.sleep(_TICK - age)
    return file_digest_once(path)


def _state(status: os.stat_result) -> _State:
    """Tells one content of a file from another; who replaces a file or writes into it can't keep its change time."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def path_state(path: Path) -> tuple[_State, ...]:
    """The state of the file at a path and of every link on the way to it, as far as they can be looked at.

    The same before and after something means that this path led to the same content all the while.
    """
    found: list[_State] = []
    todo, seen = [path.absolute()], set[Path]()
    while todo:
        target = todo.pop()
        for step in {target, *target.parents} - seen:
            seen.add(step)
            with contextlib.suppress(OSError):
                status = step.lstat()
                if stat.S_ISLNK(status.st_mode):
                    found.append(_state(status))
                    todo.append(step.parent / step.readlink())
    found.sort()
    with contextlib.suppress(OSError):
        found.append(_state(path.stat()))
    return tuple(found)


def digest(value: Any) -> str:
    """BLAKE2b digest (128 bits, hex) of a JSON-like value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def changed_fields(record: Any) -> dict[str, Any]:
    """A frozen record's fields that differ from their defaults, for digests that survive new fields."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if getattr(record, f.name) != f.default}


def open_own(path: Path, flags: int) -> int:
    """Opens a file of our own for writing: never through a link, and a regular one only. Returns its descriptor.

    Raises:
        OSError: it is a link (ELOOP), or a pipe, a device or a folder; or whatever opening raises.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return handle


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's complaints about writing to ``path`` into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.ELOOP: "it is a link, and nothing is written through links",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(
            f"can't write {path}: {reason}. Nothing already saved is lost; "
            "make room or choose another folder, then give the same command again"
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that readers see the old content or the new, never a part.

    Raises:
        StorageError: disk full, read-only, not allowed.
    """
    with open_atomic(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of what is there once it is whole and on the disk.

    Raises:
        StorageError: disk full, read-only, not allowed.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=_PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise


_PARTIAL = ".partial"


def drop_partial(folder: Path, names: Iterable[str]) -> None:
    """Removes what processes that were killed left half written; only while nobody else writes there.

    Args:
        folder: where.
        names: of the files that they were writing, or patterns of such names.
    """
    for left in (path for name in names for path in folder.glob(f".{name}.*{_PARTIAL}")):
        with contextlib.suppress(OSError):
            left.unlink()


def _umask() -> int:
    """The process's umask; there is no way to read it but to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def json_text(value: Any) -> str:
    """Indented JSON with a newline at the end, for files people read."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
