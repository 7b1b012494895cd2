"""Writes the output files that users name: completely or not at all, and never over a run's own records."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import exists
from flamingo_eval.storage.files import open_atomic, storage_errors
from flamingo_eval.storage.run_folder import RunFolder

_RECORDS = re.compile(r"run\.json|journal(-\d+)?\.jsonl|scores\.jsonl?|failures\.json|\w+-\w+\.json|\.lock.*|\.claims")
_DEVICES = ("/dev/", "/proc/")


@contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """A file to be written. A pipe or a device is written to directly, as by the shell's ``>``.

    Raises:
        UserError: it is one of a run's own records.
        StorageError: disk full, read-only, not allowed.
    """
    if _RECORDS.fullmatch(path.name) and exists(RunFolder(path.parent).run_file):
        raise UserError(f"{path} is a record of the run itself, and is not written over; choose another name")
    with storage_errors(path):
        stream = str(path).startswith(_DEVICES) or (os.path.lexists(path) and _is_stream(path))
    if not stream:
        with open_atomic(path) as file:
            yield file
        return
    with storage_errors(path), path.open("wb") as file:
        yield file


def write_output(path: Path, text: str) -> None:
    """Writes a text. Raises as :func:`open_output`."""
    with open_output(path) as file:
        file.write(text.encode("utf-8"))


def _is_stream(path: Path) -> bool:
    mode = path.lstat().st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode)
