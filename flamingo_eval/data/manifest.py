"""Lists the files that a plan needs, with sizes and digests, and copies just these, for machines without a network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, to_builtins

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.paths import open_regular
from flamingo_eval.core.progress import progress_bar
from flamingo_eval.core.reading import inside_root, read_json
from flamingo_eval.core.schema import Record, typed
from flamingo_eval.core.source import Source
from flamingo_eval.data.download import check_free
from flamingo_eval.storage.files import json_text, open_atomic, write_atomic

_CHUNK = 1 << 20


class Entry(Record, frozen=True, kw_only=True):
    """A file.

    Attributes:
        path: relative to the data root.
        size: in bytes.
        sha256: of its content.
    """

    path: str
    size: Annotated[int, Meta(ge=0, le=2**62)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Record, frozen=True, kw_only=True):
    """The files that a plan needs."""

    format: Literal[1] = 1
    files: tuple[Entry, ...]


def files_of(source: Source, images: Iterable[str]) -> list[str]:
    """Paths of the files that a benchmark's plan needs, relative to the data root.

    Args:
        source: benchmark and data.
        images: the images that are queried or shown. Where the list of images is itself the data (a folder per class),
            all images are needed: with fewer, other examples would be drawn.
    """
    annotations = [file.relative_to(source.root).as_posix() for file in (*source.data.files, *source.references.files)]
    if source.data.listing:
        images = (example.image for part in (source.data.train, source.data.test) for example in part)
    return list(dict.fromkeys((*annotations, *images)))


def write_manifest(file: Path, root: Path, paths: Iterable[str]) -> int:
    """Writes a manifest; returns the total size of its files in bytes.

    Raises:
        DataError: one of the files can't be read.
        StorageError: the manifest can't be written.
    """
    wanted = list(paths)
    bar = progress_bar(len(wanted), "file", "digests")
    entries = []
    for path in wanted:
        try:
            with open_regular(root / path) as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
                entries.append(Entry(path=path, size=os.fstat(content.fileno()).st_size, sha256=digest))
        except OSError as error:
            raise DataError(f"{root / path} can't be read: {error.strerror}") from error
        bar.update(1)
    bar.close()
    write_atomic(file, json_text(to_builtins(Manifest(files=tuple(entries)))))
    return sum(entry.size for entry in entries)


def read_manifest(file: Path) -> Manifest:
    """Reads a manifest. Raises UserError, DataError."""
    manifest = typed(read_json(file), Manifest, str(file))
    for entry in manifest.files:
        inside_root(entry.path, str(file))
    return manifest


def copy_files(manifest: Manifest, from_: Path, to: Path) -> list[str]:
    """Copies a manifest's files from one data root to another; files already there with the right content stay.

    Returns:
        A message for each file that could not be copied.

    Raises:
        StorageError: disk full, read-only, not allowed.
    """
    problems = []
    missing = sum(entry.size for entry in manifest.files if not os.path.exists(to / entry.path))  # noqa: PTH110
    check_free(to, missing, "the files of the manifest")
    bar = progress_bar(sum(entry.size for entry in manifest.files), "B", "copying", scaled=True)
    for entry in manifest.files:
        if not _is_there(to / entry.path, entry):
            problem = _copy(entry, from_ / entry.path, to / entry.path)
            problems += [problem] if problem else []
        bar.update(entry.size)
    bar.close()
    return problems


def _is_there(path: Path, entry: Entry) -> bool:
    try:
        with open_regular(path) as content:
            return (
                os.fstat(content.fileno()).st_size == entry.size
                and hashlib.file_digest(content, "sha256").hexdigest() == entry.sha256
            )
    except OSError:
        return False


class _OtherError(Exception):
    """A file's content is not what the manifest states."""


def _copy(entry: Entry, from_: Path, to: Path) -> str | None:
    """Copies a file; returns a message if it can't be copied, else None."""
    if os.path.lexists(to):
        return f"{to} is another file; nothing is written over it"
    if not os.path.isfile(from_):  # noqa: PTH113  # pathlib's raises for a name that is too long
        return f"{from_} is not there, or is no file"
    digest = hashlib.sha256()
    try:
        with open_regular(from_) as file, open_atomic(to, durable=False) as copy:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
            if digest.hexdigest() != entry.sha256:
                raise _OtherError
    except _OtherError:
        return f"{from_} has another content than when the manifest was written"
    except OSError as error:
        return f"{from_} can't be read: {error.strerror}"
    return None
