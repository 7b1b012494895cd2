"""Which pieces of a benchmark's data are there, and where the others can be obtained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from flamingo_eval.core.benchmark import Benchmark, load_benchmark
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.layout import Piece, SourceFile
from flamingo_eval.data.finding import Places, there


class Found(Enum):
    """How a piece can be obtained.

    Attributes:
        THERE: it is where it belongs, or an alternative to it is there.
        ELSEWHERE: it was found in another place, or it still has to be arranged by class.
        ARCHIVE: the file that holds it was found.
        DOWNLOAD: it can be downloaded.
        BY_HAND: a person has to get it.
        UNKNOWN: the benchmark's file does not say where it comes from.
    """

    THERE = "there"
    ELSEWHERE = "elsewhere"
    ARCHIVE = "archive"
    DOWNLOAD = "download"
    BY_HAND = "by hand"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class PieceState:
    """A piece, and how it can be obtained.

    Attributes:
        benchmark: the benchmark that needs it.
        piece: the piece.
        target: where it belongs.
        found: how it can be obtained.
        at: where it, or the file that holds it, lies now; None if neither was found.
        links: pairs of where it lies and where it belongs; may be several for an alternative that lies elsewhere.
        source: the owner's file that is or holds it; None if no file is named.
        place: the alternative that is used instead, as text for people; empty if it is the piece itself.
    """

    benchmark: Benchmark
    piece: Piece
    target: Path
    found: Found
    at: Path | None = None
    source: SourceFile | None = None
    place: str = ""
    links: tuple[tuple[Path, Path], ...] = ()


def pieces_of(benchmark: Benchmark, variant: str = "") -> tuple[Piece, ...]:
    """The pieces, required and optional, for querying the benchmark's split.

    Args:
        benchmark: the benchmark.
        variant: take the files as converted by others under this name, instead of the files that these replace.
    """
    needed = [piece for piece in benchmark.data.layout if isinstance(piece, Piece) and piece.needed(benchmark.split)]
    converted = {piece.path for piece in needed if variant and piece.variant == variant}
    return tuple(
        piece
        for piece in needed
        if piece.variant in ("", variant) and not any(converted.issuperset(group) for group in piece.instead)
    )


def source_of(benchmark: Benchmark, piece: Piece) -> SourceFile | None:
    """The file that a piece is, or that holds it. Raises UserError if no ``[download]`` lists it."""
    if not piece.file:
        return None
    owner, _, name = piece.file.rpartition("/")
    whose = load_benchmark(owner) if owner else benchmark
    files = whose.download.files if whose.download else ()
    source = next((file for file in files if file.name == name), None)
    if source is None:
        raise UserError(f"{benchmark.file}: [data]: layout names the file {piece.file!r}, which no [download] lists")
    return source


def states(benchmark: Benchmark, root: Path, places: Places, variant: str = "") -> list[PieceState]:
    """How each piece of a benchmark can be obtained.

    Args:
        benchmark: with the user's own file names.
        root: the data root.
        places: other folders in which pieces, and files that hold them, may lie.
        variant: see :func:`pieces_of`.

    Raises:
        UserError: the benchmark's file contradicts itself, or a folder can't be read.
    """
    return [_state(benchmark, piece, root, places) for piece in pieces_of(benchmark, variant)]


def _state(benchmark: Benchmark, piece: Piece, root: Path, places: Places) -> PieceState:
    folder = root / benchmark.data.folder
    target, source = folder / piece.path, source_of(benchmark, piece)

    def state(found: Found, at: Path | None = None, place: str = "") -> PieceState:
        links = ((at, target),) if at is not None and found is Found.ELSEWHERE else ()
        return PieceState(benchmark, piece, target, found, at, source, place, links)

    if there(folder, [piece.path]) and not _to_arrange(piece, target):
        return state(Found.THERE, target)
    for group in piece.instead:
        if there(folder, group):
            return state(Found.THERE, folder / group[0], " and ".join(group))
    if there(folder, [piece.path]):
        return state(Found.ELSEWHERE, target)
    if piece.arrange == "class_folders" and there(folder, [f"{flat_name(target)}/"]):
        return state(Found.ELSEWHERE, target.with_name(flat_name(target)))
    lying = places.piece(piece, target)
    if lying is not None:
        return state(Found.ELSEWHERE, lying)
    for group in piece.instead:
        found = [places.piece(_named(benchmark, piece, path), folder / path) for path in group]
        links = tuple((one, folder / path) for one, path in zip(found, group, strict=True) if one is not None)
        if len(links) == len(group):
            return PieceState(
                benchmark, piece, target, Found.ELSEWHERE, links[0][0], source, " and ".join(group), links
            )
    if source is None:
        return state(Found.UNKNOWN)
    itself = source.name == PurePosixPath(piece.inner).name  # no archive: it was looked for as the piece
    archive = None if itself else places.file(source)
    if archive is not None:
        return state(Found.ARCHIVE, archive)
    return state(Found.DOWNLOAD if source.address else Found.BY_HAND)


def _named(benchmark: Benchmark, piece: Piece, path: str) -> Piece:
    """An alternative to a piece, as a piece: as the layout lists it, else one of the same kind."""
    listed = (one for one in benchmark.data.layout if isinstance(one, Piece) and one.path == path)
    holds = "*.jpg" if path.endswith("/") else piece.holds
    return next(listed, Piece(path=path, holds=holds))


def flat_name(target: Path) -> str:
    """The new name of a folder of unsorted images, whose old name goes to the folder of the class folders."""
    return f"{target.name}.flat"


def _to_arrange(piece: Piece, target: Path) -> bool:
    """Whether the images at a target still have to be put into a folder per class."""
    return piece.arrange == "class_folders" and not any(
        one.is_dir() for one in target.iterdir() if not one.name.startswith(".")
    )


def missing(found: Iterable[PieceState]) -> Sequence[PieceState]:
    """The pieces that are required and are not where they belong."""
    return [one for one in found if one.found is not Found.THERE and not one.piece.optional]


def how(state: PieceState) -> str:
    """A text: where a missing piece can be obtained, and what ``data prepare`` does about it."""
    source = state.source
    match state.found:
        case Found.ELSEWHERE if state.at == state.target:
            return f"{state.target}: images lie side by side; `data prepare` puts them into a folder per class"
        case Found.ELSEWHERE:
            return f"it lies in {state.at}; `data prepare` links it"
        case Found.ARCHIVE:
            return f"{state.at} holds it; `data prepare` unpacks it"
        case Found.DOWNLOAD if source is not None:
            size = f" ({size_text(source.size)})" if source.size else ""
            return f"from {source.address}{size}"
        case Found.BY_HAND if source is not None:
            return f"from {source.name}, which a person has to get (below)"
        case Found.THERE:
            return "it is there"
    return "nothing is known of where it comes from"


def would(state: PieceState) -> str:
    """A text: what ``data prepare`` would do about a piece."""
    source = state.source
    match state.found:
        case Found.THERE:
            return "found"
        case Found.ELSEWHERE:
            return f"would be taken from {state.at}"
        case Found.ARCHIVE:
            return f"would be unpacked from {state.at}"
        case Found.DOWNLOAD if source is not None:
            size = f" ({size_text(source.size)})" if source.size else ""
            return f"would be downloaded from {source.address}{size}"
        case Found.BY_HAND if source is not None:
            return f"from {source.name}, which a person has to get"
    return "nothing is known of where it comes from"


def size_text(count: int) -> str:
    """A number of bytes as text for people.

    >>> size_text(13_510_573_713)
    '13.5 GB'
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def steps(found: Iterable[PieceState]) -> Iterable[tuple[SourceFile, tuple[str, ...]]]:
    """For each file that the user has to get by hand: the file, and the steps to take."""
    sources = {one.source.name: one.source for one in found if one.found is Found.BY_HAND and one.source}
    return [(source, source.steps) for source in sources.values()]
