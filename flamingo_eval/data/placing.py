"""Puts files and folders in their place: completely, or not at all. Nothing that is in the way is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from flamingo_eval.core.errors import DataError
from flamingo_eval.storage.files import storage_errors


def check_place(target: Path) -> None:
    """Raises DataError if something is already where a piece belongs; an empty folder does not count."""
    try:
        _check_place(target)
    except OSError as error:
        raise DataError(f"{str(target)[:200]} can't be looked at: {error.strerror}") from error


def _check_place(target: Path) -> None:
    if target.is_symlink() and not target.exists():
        raise DataError(f"{target} is a link to {target.readlink()}, which is not there: mount that disk, or remove it")
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    if os.path.lexists(target):
        raise DataError(f"{target} is in the way: it is not what belongs there; move it elsewhere")


def _make_room(target: Path) -> None:
    check_place(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            target.rmdir()


def finish(stage: Path, target: Path) -> None:
    """Moves a complete file or folder to its final name, once it is on the disk. Raises DataError, StorageError."""
    _make_room(target)
    with storage_errors(target):
        os.sync()
        try:
            stage.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            beside = target.with_name(f".{target.name}.prepare")  # the target's folder is on another disk
            shutil.rmtree(beside, ignore_errors=True)
            copy_tree(stage, beside)
            beside.rename(target)
            shutil.rmtree(stage, ignore_errors=True) if stage.is_dir() else stage.unlink()


def put_link(there: Path, target: Path, root: Path) -> None:
    """Makes a link to what lies elsewhere. It is relative within one data root, so that the root can be moved.

    Raises:
        DataError: something is in the way.
        StorageError: not allowed.
    """
    _make_room(target)
    with storage_errors(target):
        inside = all(path.absolute().is_relative_to(root.absolute()) for path in (there, target))
        straight = target.parent.resolve() == target.parent.absolute()  # no link on the way: ".." would follow it
        to = os.path.relpath(there.absolute(), target.parent.absolute()) if inside and straight else there.resolve()
        target.symlink_to(to)


def copy_tree(from_: Path, stage: Path) -> None:
    """Copies a file, or all files of a folder and its subfolders; links to folders are not followed.

    Raises:
        DataError: a file can't be read.
        StorageError: disk full, not allowed.
    """
    files = [from_] if from_.is_file() else [Path(top, name) for top, _, names in os.walk(from_) for name in names]
    for file in files:
        if not file.is_file():
            continue  # a pipe, a device, a link that leads nowhere
        to = stage if from_.is_file() else stage / file.relative_to(from_)
        with storage_errors(to):
            to.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = file.open("rb")
        except OSError as error:
            raise DataError(f"{file} can't be read: {error.strerror}") from error
        with source, storage_errors(to), to.open("wb", buffering=0) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files in a folder and its subfolders."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for top, _, names in os.walk(path) for entry in map(Path(top).joinpath, names)
               if entry.is_file())  # fmt: skip


def drop_empty(folder: Path) -> None:
    """Removes a folder and its subfolders, except those that hold files."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
