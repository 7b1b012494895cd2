"""What a benchmark's folder must hold, and where it comes from, as the benchmark's file states it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from flamingo_eval.core.reading import inside_root
from flamingo_eval.core.schema import Record

Digest = Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64}|sha1:[0-9a-f]{40}|md5:[0-9a-f]{32})$")]


class Piece(Record, frozen=True, kw_only=True):
    """A file or a folder that a benchmark's folder must hold: a line of ``layout``.

    Attributes:
        path: where it is, relative to the benchmark's folder; a folder ends with ``/``.
        setting: the setting of ``[data]`` that can name another path, such as ``splits.val.questions``; a template of
            image paths stands for its folder.
        below: the setting of ``[data]`` that names the folder it is in, where that is not the benchmark's own.
        about: what it is, for people.
        splits: the splits that need it when they are queried; empty if it is always needed.
        optional: whether it may be missing.
        variant: name of the version, converted by others, that it belongs to; empty for the owner's own. It is used
            only if the user asks for this variant.
        instead: groups of paths; a group whose paths all exist can replace it.
        file: the downloaded file that is this piece or contains it: a name of ``[[download.files]]``, or
            ``benchmark/name`` for another benchmark's.
        member: its path in that archive, ``path`` if empty; folders may come before it. ``.`` is the full archive.
        holds: what distinguishes it from others of that name: an entry of a folder (a pattern), or text in a file's
            first 100,000 bytes; after ``!``, text that must not be there.
        shared: the folder beside the benchmark's in which it is kept once for several benchmarks, which link to it.
        arrange: how it is rearranged before it is used. ``class_folders``: images that are all in one folder are put
            into a folder per class. ``class_archives``: an archive of an archive per class becomes a folder per class.
        classes: files that state the class of each image, for ``class_folders``; any one of them is enough.
        classes_in: a downloaded file that contains such a file.
    """

    path: str
    setting: str = ""
    below: str = ""
    about: str = ""
    splits: tuple[str, ...] = ()
    optional: bool = False
    variant: str = ""
    instead: tuple[tuple[str, ...], ...] = ()
    file: str = ""
    member: str = ""
    holds: str = ""
    shared: Annotated[str, Meta(pattern=r"^[\w-]*$")] = ""
    arrange: Literal["", "class_folders", "class_archives"] = ""
    classes: tuple[str, ...] = ()
    classes_in: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.endswith("/")

    @property
    def inner(self) -> str:
        """Its path in an archive, or in another folder that has the files."""
        return self.member or self.path

    def needed(self, split: str) -> bool:
        """Whether it is needed to query a split."""
        return not self.splits or split in self.splits


class SourceFile(Record, frozen=True, kw_only=True):
    """A file as its owner distributes it: an entry of ``[[download.files]]``.

    Attributes:
        name: its file name.
        address: its URL; empty where downloading needs the owner's consent. ``hf://datasets/OWNER/NAME/PATH`` is a
            file of a data set on the Hugging Face hub.
        also: other names that copies of it may have.
        size: its size in bytes; 0 if unknown.
        unpacked: approximate size of its content in bytes, where that is far from ``size``.
        digest: ``sha256:``, ``sha1:`` or ``md5:`` and the digest; empty if unknown.
        source: where address, size and digest were found.
        steps: what a person has to do to get it.
    """

    name: Annotated[str, Meta(min_length=1)]
    address: Annotated[str, Meta(pattern=r"^(https?://\S+|hf://datasets/[^/\s]+/[^/\s]+/\S+)?$")] = ""
    also: tuple[str, ...] = ()
    size: Annotated[int, Meta(ge=0)] = 0
    unpacked: Annotated[int, Meta(ge=0)] = 0
    digest: Digest | Literal[""] = ""
    source: str
    steps: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All its names."""
        return (self.name, *self.also)


class Download(Record, frozen=True, kw_only=True):
    """Where a benchmark's data comes from: ``[download]``.

    Attributes:
        page: the owner's page.
        licence: the terms of use, in short.
        looked_up: the day on which this information was looked up.
        files: the files, as their owners distribute them.
    """

    page: str
    licence: str
    looked_up: date
    files: tuple[SourceFile, ...] = ()


def read_layout(
    lines: tuple[str | Piece, ...], usual: Mapping[str, object], options: Mapping[str, object], where: str
) -> tuple[str | Piece, ...]:
    """The pieces of a benchmark's folder, at the paths that a user's own settings give them.

    Args:
        lines: entries of ``layout``; a plain text is for people only, and stays as it is.
        usual: ``[data]`` as the benchmark's file has it.
        options: the same with a user's settings.
        where: file and section, for messages.

    Raises:
        UserError: a path is outside the folder.
    """
    pieces: list[str | Piece] = []
    for piece in lines:
        if isinstance(piece, str):
            pieces.append(piece)
            continue
        for path in (piece.path, piece.inner, *(path for group in piece.instead for path in group)):
            inside_root(path.rstrip("/"), f"{where}: layout", "the benchmark's folder")
        named = setting_at(options, piece.setting)
        if piece.setting and named != setting_at(usual, piece.setting) and isinstance(named, str):
            path = f"{_folder_of(named)}/" if piece.is_folder else named
            inside_root(path.rstrip("/") or path, f"{where}: {piece.setting}", "the benchmark's folder")
            # images directly in the benchmark's folder: they are not downloaded there
            source = "" if path == "./" else piece.file
            piece = msgspec.structs.replace(
                piece, path=path, member=piece.inner, instead=(), file=source, shared=piece.shared if source else ""
            )
        pieces.append(_moved(piece, usual, options, where))
    return tuple(pieces)


def _moved(piece: Piece, usual: Mapping[str, object], options: Mapping[str, object], where: str) -> Piece:
    """A piece in the folder that a user's settings name for it. Raises UserError if that is outside."""
    folder = setting_at(options, piece.below)
    if not piece.below or folder == setting_at(usual, piece.below) or not isinstance(folder, str):
        return piece
    inside_root(folder.rstrip("/") or ".", f"{where}: {piece.below}", "the benchmark's folder")
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    instead = tuple(tuple(f"{prefix}{path}" for path in group) for group in piece.instead)
    return msgspec.structs.replace(piece, path=f"{prefix}{piece.path}", member=piece.inner, instead=instead)


def setting_at(options: Mapping[str, object], key: str) -> Any:
    """The setting at a dotted key; None if there is none.

    >>> setting_at({"splits": {"val": {"questions": "q.json"}}}, "splits.val.questions")
    'q.json'
    """
    value: Any = options
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _folder_of(template: str) -> str:
    """The folder of a template of image paths; a folder stays as it is."""
    return (template.rpartition("/")[0] if "{" in template else template).rstrip("/") or "."
