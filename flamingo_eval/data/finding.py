"""Finds files and folders of a benchmark that are already on the disk, under the names that their owners gave them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.layout import Piece, SourceFile
from flamingo_eval.core.paths import exists, is_file, is_folder, open_regular

_DEPTH = 4
"""How many levels deep a folder is searched."""

_MANY = 200
"""If a folder has more subfolders than this, such as one per class, they are not searched."""

_SEEN = 100_000
"""Bytes at a file's beginning that are searched for the words that identify it."""

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

OWN = ".prepare"
"""Folder for unfinished downloads and half-unpacked archives; nothing in it is ever taken for data."""


@dataclass(frozen=True)
class Places:
    """The files and folders that a search found, by name; images are left out.

    Attributes:
        folders: the folders that were searched, the most important first.
        by_name: name -> paths, one searched folder after another, in each the least deep first.
    """

    folders: tuple[Path, ...]
    by_name: dict[str, list[Path]] = field(default_factory=dict)

    def file(self, source: SourceFile) -> Path | None:
        """A file with one of the source's names and, if its size is known, that size; None if there is none."""
        found = (path for name in source.names for path in self.by_name.get(name, ()))
        return next((path for path in found if _is_file(path) and source.size in (0, path.stat().st_size)), None)

    def piece(self, piece: Piece, usual: Path) -> Path | None:
        """Where a piece lies, other than at ``usual``; None if no such path holds what the piece must hold.

        Args:
            piece: the piece; it is looked for under its path in the owner's archive, then in the benchmark's folder.
            usual: where it belongs.
        """
        for wanted in dict.fromkeys((piece.inner, piece.path)):
            parts = PurePosixPath(wanted).parts  # empty for ".", which stands for all of an archive
            for path in self.by_name.get(parts[-1], ()) if parts else ():
                if path.parts[-len(parts) :] == parts and path != usual and holds(piece, path):
                    return path
        return None


def search(folders: Iterable[Path]) -> Places:
    """Searches folders and their subfolders, a few levels deep; links are followed."""
    places = Places(tuple(dict.fromkeys(folder for folder in folders if is_folder(folder))))
    seen: set[Path] = set()
    for folder in places.folders:
        level: list[Path] = [folder]
        for _ in range(_DEPTH):
            level = [inner for one in level for inner in _entries(one, places.by_name, seen)]
    return places


def _entries(folder: Path, by_name: dict[str, list[Path]], seen: set[Path]) -> list[Path]:
    """Records what a folder holds in ``by_name``; returns its subfolders. An unreadable folder counts as empty."""
    try:
        real = folder.resolve()
        if real in seen:
            return []
        seen.add(real)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (OSError, RuntimeError):
        return []
    folders = []
    for entry in entries:
        if entry.name.startswith(".") or is_image(entry.name):
            continue
        by_name.setdefault(entry.name, []).append(Path(entry.path))
        with contextlib.suppress(OSError):  # a circular link, or access is denied
            if entry.is_dir():
                folders.append(Path(entry.path))
    return folders if len(folders) <= _MANY else []


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return name.lower().endswith(_IMAGES) and not name.startswith(".")


def holds(piece: Piece, path: Path) -> bool:
    """Whether a path can be this piece: a file, or a non-empty folder, with the content that identifies the piece."""
    if piece.is_folder:
        return _has(path, piece.holds or "[!.]*")
    if not _is_file(path):
        return False
    if not piece.holds:
        return True
    try:
        with open_regular(path) as file:
            begins = file.read(_SEEN)
    except OSError:
        return False
    return (piece.holds.removeprefix("!").encode() in begins) is not piece.holds.startswith("!")


def _is_file(path: Path) -> bool:
    """Whether a path is a regular file; False if that can't be found out."""
    try:
        return is_file(path)
    except UserError:
        return False


def _has(folder: Path, pattern: str) -> bool:
    """Whether a folder has an entry whose name matches a pattern; False if it is not a folder or can't be read."""
    try:
        with os.scandir(folder) as entries:
            return any(fnmatchcase(entry.name, pattern) for entry in entries)
    except OSError:
        return False


def there(folder: Path, paths: Sequence[str]) -> bool:
    """Whether all these paths exist; a folder must also hold something."""
    return all(_there(folder / path, path.endswith("/")) for path in paths)


def _there(path: Path, folder: bool) -> bool:
    return _has(path, "[!.]*") if folder else exists(path)
