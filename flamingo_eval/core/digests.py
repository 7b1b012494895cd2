"""Digests of values and files, and checks whether a file is unchanged."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
from io import BufferedReader
from pathlib import Path
from typing import Any

from flamingo_eval.core.paths import open_regular


def bytes_digest(content: bytes) -> str:
    """BLAKE2b digest (128 bits, hex)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """The same digest, of a file's content. Raises OSError."""
    with open_regular(path) as file:
        return _digest_of(file)


def _digest_of(file: BufferedReader) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


_State = tuple[int, ...]


_known_digests: dict[tuple[Path, _State], str] = {}


def file_digest_once(path: Path) -> str:
    """Like :func:`file_digest`, but computed only once per process while the file is unchanged.

    This saves time, since images and weights are large. Raises OSError.
    """
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        known = (path, state)
        if known not in _known_digests:
            found = _digest_of(file)
            if _state(os.fstat(file.fileno())) != state:
                return found  # it is being written: the next call reads it again
            _known_digests[known] = found
        return _known_digests[known]


_TICK = 0.02
"""Seconds within which a file system may give two changes the same time stamp."""


def settled_digest(path: Path) -> str:
    """Like :func:`file_digest_once`, but first waits until any later change gets another time stamp. Raises OSError."""
    age = time.time() - path.stat().st_ctime
    if 0 <= age < _TICK:
        time.sleep(_TICK - age)
    return file_digest_once(path)


def _state(status: os.stat_result) -> _State:
    """Identifies a file's content: no program can replace a file or write to it and keep its change time."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def path_state(path: Path) -> tuple[_State, ...]:
    """The state of the file at a path and of every link on the way to it, as far as they can be read.

    If it is equal before and after an operation, the path led to the same content all the time.
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
    """A frozen record's fields that differ from their defaults, for digests that new fields do not change."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if getattr(record, f.name) != f.default}
