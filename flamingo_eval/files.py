"""Reading what users give, writing what they must not lose."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import hashlib
import json
import os
import re
import stat
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from flamingo_eval.errors import DataError, StorageError, UserError

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


_reads: ContextVar[dict[Path, str] | None] = ContextVar("_reads", default=None)


@contextlib.contextmanager
def digests_of_reads(known: dict[Path, str]) -> Iterator[None]:
    """Within this context the digest of every data file that is read goes into ``known``: of the bytes parsed.

    A file that is read twice must be the same both times.
    """
    token = _reads.set(known)
    try:
        yield
    finally:
        _reads.reset(token)


def read_text(path: Path, *, any_kind: bool = False) -> str:
    """A file's text; a byte order mark, as Windows programs write it, is left out.

    Args:
        path: the file.
        any_kind: whether it may be a pipe, which the user has named; a data file may not.

    Raises:
        DataError: missing, unreadable, not UTF-8, or changed since it was read before.
    """
    try:
        with path.open("rb") if any_kind else open_regular(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    known = _reads.get()
    if known is not None:
        digest_of_content = bytes_digest(content)
        if known.setdefault(path, digest_of_content) != digest_of_content:
            raise DataError(f"{path} has changed while this command was reading it; give the command again")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path, *, any_kind: bool = False) -> Any:
    """Parses a JSON file; see :func:`read_text`.

    Raises:
        DataError: missing, unreadable or malformed; the message names the file, and the line where it breaks.
    """
    text = read_text(path, any_kind=any_kind)
    value = parse_json(text, path)
    if _HALF_CHARACTER.search(text):
        refuse_half_characters(value, path)
    return value


def parse_json(text: str | bytes, where: Path | str) -> Any:
    """A JSON text's value.

    Raises:
        DataError: malformed, or a key occurs twice in an object, of which Python would take the last in silence.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(f"{where} is not valid JSON: {error.msg} at {line}column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply to be read") from error
    except _TwiceError as error:
        raise DataError(f"{where}: the key {error.args[0]!r} occurs twice in one object") from error
    except ValueError as error:  # Python reads no integers of over 4,300 digits
        raise DataError(f"{where} holds a number that is too long to be read") from error


def read_toml(path: Path, *, any_kind: bool = False) -> dict[str, Any]:
    """Parses a TOML file; see :func:`read_text`.

    Raises:
        DataError: missing, unreadable or malformed; the message names the file.
    """
    text = read_text(path, any_kind=any_kind)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not a TOML file: {error}") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be read") from error
    except ValueError as error:  # Python reads no integers of over 4,300 digits
        raise DataError(f"{path} holds a number that can't be read") from error


class _TwiceError(Exception):
    """A key that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _TwiceError(next(key for key, count in counts.items() if count > 1))
    return table


_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def refuse_half_characters(value: Any, where: Path | str) -> None:
    """JSON can spell half of a surrogate pair, which is no text: no tokenizer and no file takes it.

    Raises:
        DataError: names where it was found.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where} holds a text with half a character in it: {value[:60]!r}") from error
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_half_characters(key, where)
            refuse_half_characters(item, where)
    elif isinstance(value, list):
        for item in value:
            refuse_half_characters(item, where)


def fits(value: Any, shape: Any) -> bool:
    """Whether a JSON value has a shape: a type, a tuple of types, ``[shape]`` for a list, or ``{key: shape}``.

    >>> fits({"a": [1, 2], "b": "x"}, {"a": [int]})
    True
    >>> fits({"a": [1, "2"]}, {"a": [int]})
    False
    """
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], s) for key, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(value, bool) and bool not in (shape if isinstance(shape, tuple) else (shape,)):
        return False  # to Python it is a number too
    return isinstance(value, shape)


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


def record_field(where: str, record: Any, key: str, *kinds: type) -> Any:
    """A field of a record of a data file.

    Raises:
        DataError: missing or of another type; ``where`` names file and record.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where}: {key!r} is missing or not of type {wanted}")
    return value


def inside_root(relative: str, where: str, folder: str = "the data folder") -> str:
    """The same path, once it is sure that it stays inside the folder it is relative to.

    Raises:
        DataError: absolute, or with a ``..`` in it; ``where`` names file and record.
    """
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative or "\\" in relative:
        raise DataError(f"{where}: {relative!r} is not a path inside {folder}")
    return str(path)


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


_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer: `git lfs pull` fetches the file that it stands for"),
    (b"<!doctype html", "is a web page, not the file that was to be downloaded"),
    (b"<html", "is a web page, not the file that was to be downloaded"),
    (b"\x1f\x8b", "is compressed (gzip)"),
    (b"gguf", "is a GGUF file"),
    (b"\x89hdf", "is an HDF5 file"),
)


def odd_content(path: Path | bytes) -> str | None:
    """What a file is, by its first bytes, where that is obviously not what it was meant to be; None otherwise.

    >>> odd_content(b"version https://git-lfs.github.com/spec/v1")
    'is a Git LFS pointer: `git lfs pull` fetches the file that it stands for'
    """
    if isinstance(path, bytes):
        begins = path[:64]
    else:
        try:
            with open_regular(path) as file:
                begins = file.read(64)
        except OSError as error:
            return f"can't be read: {error.strerror}"
    if not begins:
        return "is empty"
    return next((what for sign, what in _SIGNS if begins.lstrip().lower().startswith(sign)), None)


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


def files_digest(paths: Iterable[Path]) -> str:
    """One digest for several files, in order, whatever they are called."""
    return digest([file_digest(path) for path in paths])


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


def drop_partial(folder: Path) -> None:
    """Removes what processes that were killed left half written in a folder; only while nobody else writes there."""
    for left in folder.glob(f".*{_PARTIAL}"):
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
