"""Writes files that must not be lost: completely or not at all, and never through a link."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from flamingo_eval.core.errors import StorageError


def open_own(path: Path, flags: int) -> int:
    """Opens a file of our own for writing: never through a link, and only a regular file. Returns its descriptor.

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
    """Turns the operating system's errors on writing to ``path`` into :class:`StorageError`."""
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
def open_atomic(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to be written. It replaces the file that is there once it is complete and on the disk.

    Args:
        path: the file.
        durable: wait for the disk; not needed for a file that has a check sum of its own, and can be made again.

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
                if durable:
                    os.fsync(file.fileno())
            Path(partial).chmod(0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise


_PARTIAL = ".partial"


def drop_partial(folder: Path, names: Iterable[str]) -> None:
    """Removes the half-written files of killed processes. Call it only while no other process writes there.

    Args:
        folder: the folder of the files.
        names: names of the files that these processes were writing, or patterns of such names.
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
