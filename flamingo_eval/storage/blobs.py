"""A cache of content by key, one file for each. The content can be made again; it is kept between runs to save time."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from flamingo_eval.core.errors import StorageError
from flamingo_eval.core.paths import open_regular
from flamingo_eval.storage.files import open_atomic

SPARE_DISK = 2 << 30
"""Bytes that are left free on the disk, so that the cache never keeps a run from saving its answers."""

_CHECK = 16


class BlobStore:
    """Files in a folder, each with a check sum before its content: a damaged one is treated as missing.

    Args:
        folder: where they are; made when something is added.
        share: fraction of the disk's free room at the start (less ``SPARE_DISK``) that new files may take.
    """

    def __init__(self, folder: Path, share: float = 0.5) -> None:
        self.folder = folder
        self._left = int(share * (_free(folder) - SPARE_DISK))

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def read(self, key: str) -> bytes | None:
        """The content; None if it is missing or damaged."""
        try:
            with open_regular(self._file(key)) as file:
                content = file.read()
        except OSError:
            return None
        return content[_CHECK:] if _check_sum(content[_CHECK:]) == content[:_CHECK] else None

    def write(self, key: str, content: bytes) -> None:
        """Stores a content. It does no harm if another process stores the same one at the same time.

        Raises:
            StorageError: the disk has no room to spare, or can't be written.
        """
        if len(content) > min(self._left, _free(self.folder) - SPARE_DISK):
            raise StorageError(f"the disk of {self.folder} has no more room to spare")
        self._left -= len(content)
        with open_atomic(self._file(key), durable=False) as file:
            file.write(_check_sum(content) + content)


def _check_sum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK).digest()


def _free(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    for place in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
