"""The feature store: one vector per distinct image and encoder, kept between runs.

Each encoder has a folder with ``vectors.f32`` (float32, row after row) and ``index.txt``. The first line of the index
names the encoder and the width of its vectors. Every further line has the key of an image and a check sum of its
vector, in the order of the rows. Vectors are written and synced before their lines, so a line always stands for a
complete vector. What a killed process leaves after the last complete line is overwritten by the next process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flamingo_eval.core.errors import DataError, StorageError, UserError
from flamingo_eval.core.paths import open_regular
from flamingo_eval.core.progress import note, warn
from flamingo_eval.core.reading import parse_json
from flamingo_eval.core.schema import typed
from flamingo_eval.storage.files import open_own, storage_errors

FORMAT = 1
_WIDEST = 1 << 26
"""The most numbers that a vector may have; a latent of the largest Flamingo has 2^20."""
Vectors = NDArray[np.float32]


class _Head(msgspec.Struct, frozen=True):
    """The first line of the index."""

    format: int
    encoder: str
    width: Annotated[int, msgspec.Meta(gt=0, le=_WIDEST)]


class FeatureStore:
    """The vectors of one encoder.

    Args:
        folder: the encoder's own folder; made when something is added.
        encoder: digest of everything that determines its vectors.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder, self.encoder = folder, encoder
        self._index_file, self._vectors_file = folder / "index.txt", folder / "vectors.f32"
        self._rows: dict[str, tuple[int, str]] = {}
        self._width = self._complete_bytes = self._next_row = 0
        self.refresh()

    def refresh(self) -> None:
        """Reads the index again: another process may have added to it. Meanwhile, readers use the old one."""
        try:
            with open_regular(self._index_file) as file:
                data = file.read()
        except OSError:  # it is not there, or can't be read, which is treated the same
            data = b""
        self._rows, self._width, self._complete_bytes = self._parse(data)

    def _parse(self, data: bytes) -> tuple[dict[str, tuple[int, str]], int, int]:
        """(row and check sum by key, width, bytes up to the last complete line that has its vector)."""
        complete = data[: data.rfind(b"\n") + 1]
        head, *lines = complete.split(b"\n")[:-1] or [b""]
        width = _width_of(head, self.encoder)
        if width == 0:
            if data:
                warn(f"{self.folder} holds no features of this encoder; it is not used")
            return {}, 0, 0
        stored = _size(self._vectors_file) // (4 * width)
        rows, length = {}, len(head) + 1
        for number, line in enumerate(lines[:stored]):
            key, _, check = line.decode("ascii", "replace").partition(" ")
            rows[key] = (number, check)
            length += len(line) + 1
        return rows, width, length

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, keys: Sequence[str]) -> Vectors:
        """The vectors of images, (keys, width). Every one is checked; KeyError lists those that are damaged."""
        found = [self._rows[key] for key in keys]
        if not keys:
            return np.empty((0, self._width), np.float32)
        rows = [row for row, _ in found]
        # no further than needed: after the last complete vector there may be part of one
        try:
            stored = np.memmap(self._vectors_file, np.float32, "r", shape=(max(rows) + 1, self._width))
        except (OSError, ValueError) as error:  # gone, or shorter than its index says
            raise KeyError(*keys) from error
        vectors: Vectors = np.asarray(stored[rows])
        damaged = [k for k, (_, check), v in zip(keys, found, vectors, strict=True) if _check_sum(v) != check]
        if damaged:
            raise KeyError(*damaged)
        return vectors

    def forget(self, keys: Sequence[str]) -> None:
        """Treats vectors as missing; new ones added later take their place."""
        for key in keys:
            del self._rows[key]

    def append(self, keys: Sequence[str], vectors: Vectors, about: Mapping[str, Any]) -> None:
        """Adds vectors; they are on the disk when this returns. Call it only within :meth:`building`.

        Args:
            keys: keys of the images.
            vectors: (keys, width).
            about: a description of the encoder for people; written once.

        Raises:
            StorageError: disk full or read-only.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self._width not in (0, vectors.shape[1]):
            warn(
                f"{self.folder} says that its features are {self._width} wide, they are {vectors.shape[1]}; begun anew"
            )
            self._rows, self._width, self._complete_bytes, self._next_row = {}, 0, 0, 0
        with storage_errors(self.folder), self._all_or_nothing():
            if self._width == 0:
                self._width = vectors.shape[1]
                head = json.dumps({"format": FORMAT, "encoder": self.encoder, "width": self._width, "about": about})
                self._complete_bytes = _write_at(self._index_file, 0, (head + "\n").encode())
            _write_at(self._vectors_file, 4 * self._width * self._next_row, vectors.tobytes())
            lines = [f"{key} {_check_sum(vector)}" for key, vector in zip(keys, vectors, strict=True)]
            self._complete_bytes = _write_at(self._index_file, self._complete_bytes, ("\n".join(lines) + "\n").encode())
        for line in lines:
            key, _, check = line.partition(" ")
            self._rows[key] = (self._next_row, check)
            self._next_row += 1

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Removes half-written rows after an error, so that a full disk gets their room back."""
        try:
            yield
        except OSError:
            sizes = ((self._vectors_file, 4 * self._width * self._next_row), (self._index_file, self._complete_bytes))
            for file, size in sizes:
                with suppress(OSError), os.fdopen(open_own(file, os.O_RDWR), "r+b") as opened:
                    opened.truncate(size)
            raise

    @contextmanager
    def building(self) -> Iterator[None]:
        """Holds the store for this process, once no other process is adding to it, and reads its index again.

        The system releases the store when the process ends, however it ends.
        """
        path = self.folder / ".lock"
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            self._wait_for(handle)
            with storage_errors(path):
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            self.refresh()
            self._next_row = self._count_lines()
            yield
        finally:
            os.close(handle)

    def _wait_for(self, handle: int) -> None:
        """Locks the store. Raises StorageError if its file system has no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode("utf-8", "replace") or "another process"
            note(f"waiting for {who}, which is adding features to {self.folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(
                f"{self.folder} can't be locked ({error.strerror}): features are kept on a file system with locks. "
                "Set FLAMINGO_EVAL_CACHE to a folder on another one"
            ) from error

    def _count_lines(self) -> int:
        """Number of complete lines after the head, including those of images that were added twice."""
        if self._width == 0:
            return 0
        with open_regular(self._index_file) as file:
            return file.read(self._complete_bytes).count(b"\n") - 1


def _size(path: Path) -> int:
    """Current size of a file in bytes: opening it makes a network file system check again."""
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError:
        return 0


def _width_of(head: bytes, encoder: str) -> int:
    """Width of the vectors; 0 if the head is not one of ours, or is that of another encoder."""
    try:
        found = typed(parse_json(head, "the index"), _Head, "the index")
    except (DataError, UserError):
        return 0
    return found.width if (found.format, found.encoder) == (FORMAT, encoder) else 0


def _check_sum(vector: Vectors) -> str:
    return hashlib.blake2b(vector.tobytes(), digest_size=8).hexdigest()


def _write_at(path: Path, start: int, data: bytes) -> int:
    """Writes after the first ``start`` bytes, dropping whatever was there, and syncs. Returns the new length."""
    with os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        file.truncate(start)
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return start + len(data)
