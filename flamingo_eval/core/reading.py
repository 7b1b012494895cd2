"""Reads users' files: text, JSON, TOML and the records in them, with errors that name file and place."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any

from flamingo_eval.core.digests import bytes_digest
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.paths import open_regular

_reads: ContextVar[dict[Path, str] | None] = ContextVar("_reads", default=None)


@contextlib.contextmanager
def digests_of_reads(known: dict[Path, str]) -> Iterator[None]:
    """Within this context, every data file that is read adds the digest of the parsed bytes to ``known``.

    A file that is read twice must be the same both times.
    """
    token = _reads.set(known)
    try:
        yield
    finally:
        _reads.reset(token)


_problems: ContextVar[list[str] | None] = ContextVar("_problems", default=None)


@contextlib.contextmanager
def all_problems(found: list[str]) -> Iterator[None]:
    """Within this context, an error in a record goes into ``found``, and the next record is read."""
    token = _problems.set(found)
    try:
        yield
    finally:
        _problems.reset(token)


def passed_over() -> bool:
    """Whether records with errors have been left out, within :func:`all_problems`."""
    return bool(_problems.get())


class one_record:  # a context, named like contextlib's; a class, since there are millions of records
    """Context for reading one record: within :func:`all_problems`, an error in it does not stop the other records."""

    def __enter__(self) -> None:
        """Begins a record."""

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        """Returns whether an error was noted, so that the next record can be read."""
        found = _problems.get() if isinstance(error, DataError) else None
        if found is not None:
            found.append(str(error))
        return found is not None


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """Turns the garbage collector off while millions of small, long-lived objects are created. It would go through
    all of them again and again, and find no cycles."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def read_text(path: Path, *, any_kind: bool = False) -> str:
    """A file's text; a byte order mark, as Windows programs write it, is left out.

    Args:
        path: the file.
        any_kind: whether it may be other than a regular file, such as a pipe that the user named; data files may not.

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
        DataError: malformed, or a key occurs twice in an object (Python would silently take the last one).
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
    """A key occurs twice in an object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _TwiceError(next(key for key, count in counts.items() if count > 1))
    return table


_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def refuse_half_characters(value: Any, where: Path | str) -> None:
    """Refuses half of a surrogate pair. JSON can spell it, but it is not text: no tokenizer and no file accepts it.

    Raises:
        DataError: there is one; the message names where it was found.
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
    """Returns the path after checking that it stays inside the folder that it is relative to.

    Raises:
        DataError: it is empty or absolute, or contains ``..``, a backslash or a null character; ``where`` names file
            and record.
    """
    path = PurePosixPath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative or "\\" in relative:
        raise DataError(f"{where}: {relative!r} is not a path inside {folder}")
    return str(path)


_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer: `git lfs pull` fetches the file that it stands for"),
    (b"<!doctype html", "is a web page, not the file that was to be downloaded"),
    (b"<html", "is a web page, not the file that was to be downloaded"),
    (b"\x1f\x8b", "is compressed (gzip)"),
    (b"gguf", "is a GGUF file"),
    (b"\x89hdf", "is an HDF5 file"),
)


def odd_content(path: Path | bytes) -> str | None:
    """What is obviously wrong with a file, judged by its first bytes; None if nothing is.

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
