"""Gives files and folders their place: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from flamingo_eval.core.layout import Piece
from flamingo_eval.data.planning import folder_of, own_folder
from flamingo_eval.storage.files import storage_errors


def finish(stage: Path, target: Path) -> None:
    """Gives what is whole, and on the disk, its own name."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.sync()
        stage.rename(target)


def put_link(there: Path, target: Path, piece: Piece) -> None:
    """A link to what lies elsewhere; relative within one data root, so that the root can be moved."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() and not target.exists():
            target.unlink()  # it led to what is gone
        inside = there.absolute().is_relative_to(folder_of(target, piece).parent.absolute())
        to = os.path.relpath(there.absolute(), target.parent.absolute()) if inside else there.resolve()
        target.symlink_to(to)


def copy_to(from_: Path, target: Path, piece: Piece) -> None:
    stage = own_folder(target, piece) / "unpacked" / piece.path
    with storage_errors(target):
        stage.parent.mkdir(parents=True, exist_ok=True)
        if from_.is_dir():
            shutil.copytree(from_, stage, dirs_exist_ok=True)
        else:
            shutil.copyfile(from_, stage)
    finish(stage, target)


def drop_empty(folder: Path) -> None:
    """Removes a folder, and those in it, as far as nothing is in them."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
