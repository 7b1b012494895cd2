"""Plans what has to be done to put a benchmark's data where it belongs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath

from flamingo_eval.core.digests import bytes_digest
from flamingo_eval.core.layout import Piece, SourceFile
from flamingo_eval.data.download import check_free
from flamingo_eval.data.finding import OWN
from flamingo_eval.data.placing import size_of
from flamingo_eval.data.where import Found, PieceState


@dataclass(frozen=True)
class Job:
    """One of an owner's files, and the pieces that are made of it.

    Attributes:
        source: the file.
        at: where it lies; None if it is to be downloaded.
        pieces: where each piece is kept -> the piece.
    """

    source: SourceFile
    at: Path | None
    pieces: Mapping[Path, Piece]

    @property
    def own(self) -> Path:
        """Folder for the unfinished download."""
        kept, piece = next(iter(self.pieces.items()))
        return own_folder(kept, piece)

    def part(self, address: str) -> Path:
        """File for what has been downloaded so far from an address; each address has its own."""
        return self.own / f"{self.source.name}.{bytes_digest(address.encode())[:8]}.part"

    @property
    def complete(self) -> Path:
        """Path of the file once it is downloaded and verified."""
        return self.own / self.source.name

    @property
    def parts(self) -> list[Path]:
        """All unfinished downloads of it, from any address, and the notes beside them."""
        return [path for path in _glob(self.own, f"{escape(self.source.name)}.*.part*") if path.is_file()]

    @property
    def have(self) -> int:
        """Bytes of it that are on the disk already."""
        return max((path.stat().st_size for path in (*self.parts, self.complete) if path.is_file()), default=0)

    @property
    def room(self) -> int:
        """Bytes of disk space that it needs at most, for the file and its content, minus what is there already."""
        inside = self.source.unpacked or self.source.size
        staged = sum(
            size_of(stage / piece.path)
            for kept, piece in self.pieces.items()
            for stage in _glob(own_folder(kept, piece), "unpacked-*")
        )
        return max(0, inside - staged) + (max(0, self.source.size - self.have) if self.at is None else 0)


def _glob(folder: Path, pattern: str) -> list[Path]:
    return [*folder.glob(pattern)] if folder.is_dir() else []


@dataclass(frozen=True)
class Plan:
    """What has to be done, in this order.

    Attributes:
        links: pieces that lie somewhere else.
        jobs: files to be unpacked, or downloaded first.
        shared: pieces that are then kept in a folder that several benchmarks share.
        open: pieces that the user has to get, or whose source is unknown.
    """

    links: Sequence[PieceState] = ()
    jobs: Sequence[Job] = ()
    shared: Sequence[PieceState] = ()
    open: Sequence[PieceState] = ()

    @property
    def bytes(self) -> int:
        """Bytes to download, as far as sizes are known."""
        return sum(job.source.size for job in self.jobs if job.at is None)

    @property
    def room(self) -> int:
        """Bytes of disk space needed at most, as far as sizes are known."""
        return sum(job.room for job in self.jobs)


def plan(found: Iterable[PieceState], *, mirrors: bool = False) -> Plan:
    """The plan for some pieces. A pure function.

    Args:
        found: how each piece can be obtained.
        mirrors: whether there are mirrors. They are also asked for files that the user would otherwise have to get.
    """
    links, shared, left = [], [], []
    jobs: dict[tuple[SourceFile, Path | None], dict[Path, Piece]] = {}
    for state in found:
        match state.found:
            case Found.ELSEWHERE:
                links.append(state)
            case Found.BY_HAND if not mirrors:
                left.append(state)
            case Found.ARCHIVE | Found.DOWNLOAD | Found.BY_HAND:
                assert state.source is not None
                kept = kept_at(state)
                jobs.setdefault((state.source, state.at), {})[kept] = state.piece
                if kept != state.target:
                    shared.append(state)
            case Found.UNKNOWN:
                left.append(state)
    return Plan(links, [Job(*key, pieces) for key, pieces in jobs.items()], shared, left)


def kept_at(state: PieceState) -> Path:
    """Where a piece is kept: where it belongs, or in the folder that several benchmarks share."""
    if not state.piece.shared or not PurePosixPath(state.benchmark.data.folder).parts:  # that is the data root
        return state.target
    return folder_of(state.target, state.piece).with_name(state.piece.shared) / state.piece.path


def folder_of(target: Path, piece: Piece) -> Path:
    """The benchmark's folder, computed from where one of its pieces belongs."""
    depth = len(PurePosixPath(piece.path).parts)
    return target.parents[depth - 1] if depth else target


def own_folder(target: Path, piece: Piece) -> Path:
    """Folder for the unfinished files of a piece, in its benchmark's folder or the shared one."""
    return folder_of(target, piece) / OWN


def check_room(what: Plan) -> None:
    """Raises StorageError if the data will not fit on one of the disks that it goes to."""
    wanted: dict[int, tuple[Path, int]] = {}
    for job in what.jobs:
        folder = next(one for one in (job.own, *job.own.parents) if one.exists())
        device = folder.stat().st_dev
        wanted[device] = (folder, wanted.get(device, (folder, 0))[1] + job.room)
    for folder, room in wanted.values():
        if room:
            check_free(folder, room, "files and what is in them")
