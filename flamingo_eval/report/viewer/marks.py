"""What readers say of answers, kept beside the run, never in it: a file of JSON lines, appended to."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import exists, open_regular
from flamingo_eval.core.reading import parse_json
from flamingo_eval.core.schema import typed
from flamingo_eval.report.viewer.payload import Mark
from flamingo_eval.storage.files import open_own, storage_errors

_LONGEST = 2000
"""Characters of a tag, which may be a reader's own words."""


def marks_file(run: Path) -> Path:
    """Where the marks of a run are kept: beside its folder, under its name."""
    run = run.absolute()
    return run.with_name(f"{run.name}.marks.jsonl")


def read_marks(run: Path) -> list[Mark]:
    """A run's marks, in the order they were made; a later one of the same answer and tag counts.

    Raises:
        UserError: a line that is none; the message says which.
    """
    path = marks_file(run)
    if not exists(path):
        return []
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    whole = lines[:-1]  # what stands behind the last line break is still being written
    return [
        typed(parse_json(line, f"{path}, line {number}"), Mark, f"{path}, line {number}")
        for number, line in enumerate(whole, start=1)
        if line.strip()
    ]


def add_mark(run: Path, mark: Mark) -> Mark:
    """Appends a mark, with the time.

    Raises:
        UserError: it has no tag, or is too long.
        StorageError: the file can't be written.
    """
    if not 1 <= len(mark.tag) <= _LONGEST:
        raise UserError(f"a mark is a text of 1 to {_LONGEST} characters")
    mark = msgspec.structs.replace(mark, when=datetime.now(UTC).isoformat(timespec="seconds"))
    line = json.dumps(msgspec.to_builtins(mark)) + "\n"
    path = marks_file(run)
    with storage_errors(path), os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
        file.write(line.encode("ascii"))
    return mark
