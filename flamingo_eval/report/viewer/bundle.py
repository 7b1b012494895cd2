"""The page as files that open from the disk: classic scripts, data in ``.js`` files, each image once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import exists, is_folder
from flamingo_eval.core.progress import progress_bar
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.report.viewer.images import BundledImages
from flamingo_eval.report.viewer.payload import encode
from flamingo_eval.report.viewer.rows import CHUNK, Row
from flamingo_eval.report.viewer.views import PAGE, Views, page_file
from flamingo_eval.storage.files import open_own, storage_errors

GROUP = 20
"""Answers in a file of details."""

_SIGN = "flamingo-eval-bundle"
"""A file that says that a folder is a bundle, and may be written over."""


class _Writer:
    """Files under a folder that is a bundle's."""

    def __init__(self, folder: Path) -> None:
        if exists(folder) and (not is_folder(folder) or (any(folder.iterdir()) and not exists(folder / _SIGN))):
            raise UserError(f"--bundle {folder} is there already, and is no bundle; name a new folder")
        self._folder = folder
        for part in (folder, folder / "data", folder / "images"):
            if part.is_symlink():
                raise UserError(f"--bundle: {part} is a link, and nothing is written through links")
            with storage_errors(part):
                part.mkdir(parents=True, exist_ok=True)
        with storage_errors(folder):
            for left in (folder / "data").iterdir():
                left.unlink()  # of an earlier bundle, of other runs
        self.put(_SIGN, b"flamingo-eval view --bundle\n")

    def put(self, name: str, content: bytes) -> None:
        """Writes a file."""
        path = self._folder / name
        with storage_errors(path), os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)

    def put_data(self, name: str, payload: msgspec.Struct | Sequence[msgspec.Struct]) -> None:
        """Writes data as a script that hands it over."""
        self.put(f"data/{name}.js", b'viewer.receive("' + name.encode("ascii") + b'",' + encode(payload) + b");\n")


def write_bundle(
    folder: Path, paths: Sequence[Path], root_of: RootOf, data_root: str | None, *, limit: int | None, text: str | None
) -> int:
    """Writes a page of one run or two as files.

    Args:
        folder: where to; a new one, or a bundle, which is written over.
        paths: of the runs.
        root_of: from a data root as users name it to the folder.
        data_root: where the data is now, if it has moved.
        limit: of each trial only so many answers, the first of its plan; None for all.
        text: only answers that have this in their id, text or answer, in lower case or upper; None for all.

    Returns:
        How many answers it has.

    Raises:
        UserError, DataError: see :class:`flamingo_eval.report.viewer.views.Views`; or the folder is something else.
        StorageError: it can't be written.
    """
    writer = _Writer(folder)
    views = Views(paths, root_of, data_root, BundledImages(writer.put), GROUP)
    for run in views.runs:
        run.rows.keep(lambda row: _is_wanted(row, limit, text))
    total = sum(len(run.rows.found) for run in views.runs)
    bar = progress_bar(total, "answer", "bundle")
    writer.put_data("state", views.state(refresh=False))
    for number, run in enumerate(views.runs):
        found = run.rows.found
        for chunk in range(max(1, -(-len(found) // CHUNK))):
            writer.put_data(f"rows-{number}-{chunk}", run.rows.chunk(chunk))
        for group in range(-(-len(found) // GROUP)):
            part = found[group * GROUP : (group + 1) * GROUP]
            writer.put_data(f"detail-{number}-{group}", [run.detail(row.trial, row.position) for row in part])
            writer.put_data(f"explain-{number}-{group}", [run.explanation(row.trial, row.position) for row in part])
            bar.update(len(part))
    bar.close()
    for name in PAGE:
        content = page_file(name)
        writer.put(name, content.replace(b'data-from="server"', b'data-from="files"'))
    return total


def _is_wanted(row: Row, limit: int | None, text: str | None) -> bool:
    if limit is not None and row.position >= limit:
        return False
    return text is None or any(text.lower() in part.lower() for part in (row.id, row.text, row.answer))
