"""The page as files that open from the disk: classic scripts, data in ``.js`` files, each image once."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.progress import progress_bar
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.report.viewer.images import BundledImages
from flamingo_eval.report.viewer.payload import encode
from flamingo_eval.report.viewer.rows import CHUNK, Row
from flamingo_eval.report.viewer.run_view import RunView
from flamingo_eval.report.viewer.views import PAGE, Views, page_file
from flamingo_eval.storage.files import storage_errors

GROUP = 20
"""Answers in a file of details; the last file may have fewer."""

_SIGN = "flamingo-eval-bundle"
"""A file that marks a folder as a bundle, which may be replaced."""


def write_bundle(
    folder: Path, paths: Sequence[Path], root_of: RootOf, data_root: str | None, *, limit: int | None, text: str | None
) -> int:
    """Writes a page of one run or two as files.

    Args:
        folder: where to write: a new folder, or a bundle, which is replaced once the new one is complete.
        paths: the folders of the runs.
        root_of: turns a data root as users name it into its folder.
        data_root: where the data is now, if it has moved.
        limit: at most this many answers of each trial, the first of its plan that pass ``text``; None for all.
        text: only answers that have this in their id, text or answer, in lower case or upper; None for all.

    Returns:
        How many answers the page has.

    Raises:
        UserError, DataError: see :class:`flamingo_eval.report.viewer.views.Views`; or the folder can't hold a bundle.
        StorageError: the page can't be written.
    """
    _check_place(folder, paths)
    target = folder.absolute()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}.", dir=target.parent))
    try:
        count = _write(new, paths, root_of, data_root, limit, text)
        with storage_errors(target):
            _replace(target, new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return count


def _check_place(folder: Path, runs: Sequence[Path]) -> None:
    """Raises UserError unless a folder is a bundle, empty or not there: nothing else is ever replaced."""
    if folder.is_symlink():
        raise UserError(f"--bundle: {folder} is a link, and nothing is written through links")
    if any(run.resolve() in (folder.resolve(), *folder.resolve().parents) for run in runs):
        raise UserError(f"--bundle {folder} is inside a run's folder; name one outside")
    try:
        there = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--bundle {folder} can't be used: {error.strerror}") from error
    others = sorted(there - {_SIGN, "data", "images", *PAGE})
    if there and (_SIGN not in there or others):
        what = f"and holds {others[0]}" if _SIGN in there else "and is no bundle"
        raise UserError(f"--bundle {folder} is there already, {what}; name a new folder")


def _replace(target: Path, new: Path) -> None:
    """Puts a bundle in its place, and removes one that was there. (Removing a folder follows no links.)"""
    new.chmod(0o755)
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}.", dir=target.parent)) / "old"
        target.rename(old)
    new.rename(target)
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)


def _write(
    new: Path, paths: Sequence[Path], root_of: RootOf, data_root: str | None, limit: int | None, text: str | None
) -> int:
    def put(name: str, content: bytes) -> None:
        with storage_errors(new / name):
            (new / name).write_bytes(content)

    def put_data(name: str, payload: msgspec.Struct | Sequence[msgspec.Struct]) -> None:
        put(f"data/{name}.js", b'viewer.receive("' + name.encode("ascii") + b'",' + encode(payload) + b");\n")

    with storage_errors(new):
        for part in ("data", "images"):
            (new / part).mkdir()
    put(_SIGN, b"flamingo-eval view --bundle\n")
    views = Views(paths, root_of, data_root, BundledImages(put), GROUP)
    for run in views.runs:
        _select(run, limit, text)
    total = sum(len(run.rows.found) for run in views.runs)
    with progress_bar(total, "answer", "bundle") as bar:
        put_data("state", msgspec.structs.replace(views.state(refresh=False), kept=[]))
        for number, run in enumerate(views.runs):
            found = run.rows.found
            for chunk in range(max(1, -(-len(found) // CHUNK))):
                put_data(f"rows-{number}-{chunk}", run.rows.chunk(chunk))
            for group in range(-(-len(found) // GROUP)):
                part_of = found[group * GROUP : (group + 1) * GROUP]
                put_data(f"detail-{number}-{group}", [run.detail(row.trial, row.position) for row in part_of])
                put_data(f"explain-{number}-{group}", [run.explanation(row.trial, row.position) for row in part_of])
                bar.update(len(part_of))
    for name in PAGE:
        put(name, page_file(name).replace(b'data-from="server"', b'data-from="files"'))
    return total


def _select(run: RunView, limit: int | None, text: str | None) -> None:
    """Leaves out the answers that are not wanted, and states so in the run's ``selection``."""
    words = [
        *([f"with {text!r} in their id, question or answer"] if text is not None else []),
        *([f"the first {limit} of each trial"] if limit is not None else []),
    ]
    if words:
        run.rows.keep(_wanted(limit, text))
        run.selection = f"a selection of the run's answers: {', '.join(words)}"


def _wanted(limit: int | None, text: str | None) -> Callable[[Row], bool]:
    kept: Counter[int] = Counter()

    def is_wanted(row: Row) -> bool:
        passes = text is None or any(text.lower() in part.lower() for part in (row.id, row.text, row.answer))
        if not passes or (limit is not None and kept[row.trial] >= limit):
            return False
        kept[row.trial] += 1
        return True

    return is_wanted
