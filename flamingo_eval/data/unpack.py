"""Unpacks the wanted members of an archive, and nothing else: no links, no paths out of it, no endless content."""

from __future__ import annotations

import errno
import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.layout import Piece
from flamingo_eval.data.download import StoppedError, check_free
from flamingo_eval.storage.files import open_own, storage_errors

RATIO = 100
"""An archive's content may be at most this many times its size; text packs to about a tenth, images not at all."""

_SMALL = 100 << 20
"""Content of up to this many bytes is always allowed, whatever its ratio."""

_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError,
)  # fmt: skip
"""What reading a damaged archive raises. (NotImplementedError, for an unknown compression, is a RuntimeError.)"""

Wanted = Mapping[Path, Piece]
"""Where a piece is put -> the piece."""


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar file, by its content. Raises DataError for a zip file that is cut off."""
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        return True
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise DataError(f"{path} can't be unpacked: it is a zip file without its end, so it is not all there")
    return False


def names_in(archive: Path) -> list[str]:
    """Names of an archive's members. Raises DataError if it is damaged."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                return zipped.namelist()
        with tarfile.open(archive, "r:*") as tarred:
            return tarred.getnames()
    except _DAMAGED as error:
        raise DataError(f"{archive} can't be unpacked: {error or type(error).__name__}") from error


def unpack(archive: Path, wanted: Wanted, stop: threading.Event) -> None:
    """Takes pieces out of an archive.

    Args:
        archive: a zip or tar file.
        wanted: where to put which pieces. Files that an earlier try has unpacked are not written again from a zip file;
            nor are complete class folders from a tar file.
        stop: an event that the caller sets to end the unpacking.

    Raises:
        DataError: the archive is damaged, lacks a piece, or holds what no archive of data holds (such as links).
        StorageError: disk full, read-only, not allowed.
        StoppedError: ``stop`` was set.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, wanted, stop)
        else:
            _untar(archive, wanted, stop)
    except _DAMAGED as error:
        raise DataError(f"{archive} can't be unpacked: {error or type(error).__name__}") from error


def _unzip(archive: Path, wanted: Wanted, stop: threading.Event) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = {info.filename: info for info in opened.infolist() if not info.is_dir()}
        chosen: dict[Path, zipfile.ZipInfo] = {}
        for target, piece in wanted.items():
            found = select(members, piece)
            if not found:
                raise _lacking(archive, piece, members)
            chosen |= {_inside(archive, target, rest): members[name] for name, rest in found.items()}
        for info in chosen.values():
            _check_kind(archive, info.filename, stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG))
        total = sum(info.file_size for info in chosen.values())
        _check_ratio(archive, total)
        for target in wanted:
            own = [(path, info.file_size) for path, info in chosen.items() if path == target or target in path.parents]
            have = sum(path.stat().st_size for path, _ in own if path.is_file())  # from an earlier try
            check_free(target, max(0, sum(size for _, size in own) - have), f"unpacking {archive.name}")
        for path, info in chosen.items():
            _check_stop(stop)
            if not _is_this(path, info):
                with opened.open(info) as content:
                    _write(path, content, info.file_size)


def _is_this(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether a file is there already, complete, from an earlier try."""
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    check = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            check = zlib.crc32(chunk, check)
    return check == info.CRC


def _untar(archive: Path, wanted: Wanted, stop: threading.Event) -> None:
    tops: dict[Path, tuple[str, ...] | None] = dict.fromkeys(wanted)
    names: list[str] = []
    written, most = 0, _most(archive)
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            _check_stop(stop)
            if member.isdir():
                continue
            names = [*names[:20], member.name]
            for target, piece in wanted.items():
                place = _place(member.name, piece)
                if place is None or tops[target] not in (None, place[0]):
                    continue
                tops[target] = place[0]
                _check_kind(archive, member.name, member.isreg())
                content = opened.extractfile(member)
                if content is None:
                    continue
                if piece.arrange == "class_archives":
                    written += _unpack_class(
                        archive, content, target / PurePosixPath(place[1]).stem, stop, most - written
                    )
                else:
                    written += member.size
                    _check_most(archive, written, most)
                    _write(_inside(archive, target, place[1]), content, member.size)
    for target, piece in wanted.items():
        if tops[target] is None:
            raise _lacking(archive, piece, names)


def _unpack_class(archive: Path, content: IO[bytes], folder: Path, stop: threading.Event, most: int) -> int:
    """Unpacks an archive within an archive, into a folder that gets its name once complete; returns its bytes."""
    written = 0
    if folder.exists():
        return written
    half = folder.with_name(f".{folder.name}")
    with tarfile.open(fileobj=content, mode="r|*") as opened:
        for member in opened:
            _check_stop(stop)
            if member.isdir():
                continue
            _check_kind(archive, member.name, member.isreg())
            inner = opened.extractfile(member)
            written += member.size
            _check_most(archive, written, most)
            if inner is not None:
                _write(_inside(archive, half, PurePosixPath(member.name).name), inner, member.size)
    with storage_errors(folder):
        half.rename(folder)
    return written


def select(names: Iterable[str], piece: Piece) -> dict[str, str]:
    """Members of an archive that are, or are in, a piece -> their paths within it; empty if the piece is a file.

    The piece may lie in other folders of the archive. If it is there more than once, the least deep one counts.
    """
    places = {name: place for name in names if (place := _place(name, piece)) is not None}
    top = min((place[0] for place in places.values()), key=lambda top: (len(top), top), default=())
    return {name: rest for name, (above, rest) in places.items() if above == top}


def _place(name: str, piece: Piece) -> tuple[tuple[str, ...], str] | None:
    """(folders above the piece, path within it) of a member; None if it does not belong to the piece."""
    parts, wanted = PurePosixPath(name).parts, PurePosixPath(piece.inner).parts
    if any(part.startswith(("._", "__MACOSX", ".DS_Store")) for part in parts):
        return None
    count = len(wanted)
    if not piece.is_folder:
        return (parts[:-count], "") if parts[-count:] == wanted else None
    for i in range(len(parts) - count):
        if parts[i : i + count] == wanted:
            return parts[:i], "/".join(parts[i + count :])
    return None


def _inside(archive: Path, target: Path, rest: str) -> Path:
    """The path of a member. Raises DataError if it would not stay within the target."""
    path = PurePosixPath(rest)
    if path.is_absolute() or ".." in path.parts or "\\" in rest or "\0" in rest:
        raise DataError(f"{archive} holds {rest!r}, a path that leads out of the archive; nothing of it is used")
    return target / path


def _check_kind(archive: Path, name: str, regular: bool) -> None:
    if not regular:
        raise DataError(f"{archive} holds {name!r}, a link or another thing that is no file; nothing of it is used")
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise DataError(f"{archive} holds {name!r}, a path that leads out of the archive; nothing of it is used")


def _most(archive: Path) -> int:
    return max(_SMALL, RATIO * archive.stat().st_size)


def _check_most(archive: Path, written: int, most: int) -> None:
    if written > most:
        raise DataError(
            f"{archive} holds over {written:,} bytes in {archive.stat().st_size:,}: no data is packed so densely; "
            "nothing of it is used"
        )


def _check_ratio(archive: Path, total: int) -> None:
    _check_most(archive, total, _most(archive))


def _check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError


def _lacking(archive: Path, piece: Piece, names: Iterable[str]) -> DataError:
    some = ", ".join(name for name, _ in zip(names, range(5), strict=False))
    return DataError(f"{archive} does not hold {piece.inner}; it begins with: {some or 'nothing'}")


_UNUSABLE = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST, errno.EINVAL, errno.ENOENT, errno.EILSEQ)
"""The system's errors for names that no file can have, or that can't exist side by side."""


def _write(path: Path, content: IO[bytes], size: int) -> None:
    """Copies content of this many bytes into a file of our own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError as error:
        if error.errno in _UNUSABLE:
            raise DataError(f"the archive's {path.name[:80]!r} can't be written: {error.strerror}") from error
        with storage_errors(path):
            raise
    with os.fdopen(handle, "wb", buffering=0) as file:  # so that closing it writes nothing, and raises nothing
        left = size
        while left > 0:
            chunk = content.read(min(_CHUNK, left))  # outside: its errors concern the archive
            if not chunk:
                raise EOFError(f"{path.name} ends {left:,} bytes early")
            left -= len(chunk)
            with storage_errors(path):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
