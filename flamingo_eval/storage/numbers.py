"""Log-likelihoods of many names, beside the journal: a thousand take 35 kB as JSON, and 4 or 8 kB as binary numbers.

``journal.numbers`` holds them, one answer after the other (``journal-1.numbers`` those of the second process).
``names-<digest>.json`` holds the names that they are of, once for all answers. A line of the journal states where its
numbers begin, and their check sum. They are read when they are needed.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.paths import open_regular
from flamingo_eval.core.reading import read_json
from flamingo_eval.storage.files import open_own, storage_errors, write_atomic

MANY = 100
"""Numbers of more names than this are kept beside the journal; those of fewer are in it, where people can read them."""

_KINDS = {"f4": "f", "f8": "d"}
_ANEW = "Move it and the journal beside it away, and the command that began the run asks for these answers again"


class Place(NamedTuple):
    """Where numbers are in a file: first byte, ``f4`` or ``f8`` (little-endian), CRC-32 of their bytes."""

    at: int
    kind: str
    crc: int


class Names:
    """The sets of names that the answers in a folder refer to.

    Args:
        folder: where ``names-<digest>.json`` are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Mapping[str, int]] = {}

    def keep(self, names: Sequence[str]) -> str:
        """Makes sure that names are stored, and returns their digest. Raises StorageError."""
        key = digest(list(names))
        if key not in self._known:
            path = self._file(key)
            if not _holds(path, key):  # several processes write the same
                write_atomic(path, json.dumps(list(names)))
            self._known[key] = {name: i for i, name in enumerate(names)}
        return key

    def places(self, key: str) -> Mapping[str, int]:
        """Name -> its position, in order. Raises DataError if the names are not there."""
        if key not in self._known:
            path = self._file(key)
            if not _holds(path, key):
                raise DataError(
                    f"{path} does not hold the names that the journal's numbers are of; the command that began the run "
                    "writes it anew"
                )
            self._known[key] = {name: i for i, name in enumerate(read_json(path))}
        return self._known[key]

    def _file(self, key: str) -> Path:
        return self._folder / f"names-{key}.json"


def _holds(path: Path, key: str) -> bool:
    """Whether a file holds the names that have a digest."""
    try:
        return digest(read_json(path)) == key
    except DataError:
        return False


class Numbers:
    """The file of one process's numbers.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end: int | None = None
        self._size = 0
        self._handle: int | None = None
        self._last: tuple[Place, array[float]] | None = None

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def append(self, many: Sequence[Sequence[float]]) -> list[Place]:
        """Adds numbers of several answers, and waits until they are on the disk. Raises StorageError.

        They are stored in single precision where that loses nothing.
        """
        places, data = [], bytearray()
        with storage_errors(self.path), os.fdopen(open_own(self.path, os.O_RDWR | os.O_CREAT), "r+b") as file:
            # a killed process may have left numbers that no line of the journal refers to: new ones follow them
            start = self._end if self._end is not None else -(-os.fstat(file.fileno()).st_size // 8) * 8
            for numbers in many:
                single = array("f", numbers)
                kind = "f4" if all(a == b for a, b in zip(single, numbers, strict=True)) else "f8"
                block = _bytes(single if kind == "f4" else array("d", numbers))
                places.append(Place(start + len(data), kind, zlib.crc32(block)))
                data += block + b"\0" * (-len(block) % 8)
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._end = start + len(data)
        return places

    def reaches(self, place: Place) -> bool:
        """Whether the file has something at a place."""
        if place.at >= self._size:
            try:
                self._size = self.path.stat().st_size
            except OSError:
                return False
        return place.at < self._size

    def read(self, place: Place, count: int) -> array[float]:
        """Reads ``count`` numbers. Raises DataError if they are no longer there, or have changed."""
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        try:
            if self._handle is None:
                with open_regular(self.path) as file:
                    self._handle = os.dup(file.fileno())
            data = os.pread(self._handle, count * int(place.kind[1]), place.at)
        except OSError as error:
            raise DataError(f"{self.path} can't be read: {error.strerror}. {_ANEW}") from error
        if zlib.crc32(data) != place.crc:
            raise DataError(
                f"{self.path} does not hold the numbers at byte {place.at} that the journal speaks of. {_ANEW}"
            )
        numbers: array[float] = array(_KINDS[place.kind])
        numbers.frombytes(data)
        if sys.byteorder == "big":
            numbers.byteswap()
        if not all(map(math.isfinite, numbers)):
            raise DataError(f"{self.path}: not all that stands at byte {place.at} are numbers. {_ANEW}")
        self._last = (place, numbers)
        return numbers


def _bytes(numbers: array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


class ByName(Mapping[str, float]):
    """Log-likelihoods by name; many answers share the names."""

    __slots__ = ()

    @property
    @abstractmethod
    def _places(self) -> Mapping[str, int]:
        """Name -> its position."""

    @abstractmethod
    def _values(self) -> Sequence[float]:
        """The log-likelihoods, at these positions."""

    def __getitem__(self, name: str) -> float:
        return self._values()[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Held(ByName):
    """Log-likelihoods in memory: a hundred of them take 1 kB instead of 10 kB.

    >>> dict(Held({"yes": 0, "no": 1}, array("d", [-0.5, -1.5])))
    {'yes': -0.5, 'no': -1.5}
    """

    __slots__ = ("_names", "_numbers")

    def __init__(self, names: Mapping[str, int], numbers: array[float]) -> None:
        self._names, self._numbers = names, numbers

    @property
    def _places(self) -> Mapping[str, int]:
        return self._names

    def _values(self) -> Sequence[float]:
        return self._numbers


class Ranked(ByName):
    """Log-likelihoods that are read from a file when they are needed.

    Args:
        names: digest of the names.
        known: where the names are.
        numbers: the file that holds the numbers.
        place: where they are in that file.
    """

    __slots__ = ("_known", "_numbers", "names", "place")

    def __init__(self, names: str, known: Names, numbers: Numbers, place: Place) -> None:
        self.names, self._known, self._numbers, self.place = names, known, numbers, place

    @property
    def _places(self) -> Mapping[str, int]:
        return self._known.places(self.names)

    def _values(self) -> Sequence[float]:
        return self._numbers.read(self.place, len(self))


def place_from(table: Any) -> Place | None:
    """A place from its form in a line of the journal; None if the value is not a place."""
    if not isinstance(table, list) or len(table) != 3:
        return None
    at, kind, crc = table
    fits = type(at) is int and 0 <= at < 2**62 and isinstance(kind, str) and kind in _KINDS and type(crc) is int
    return Place(at, kind, crc) if fits else None
