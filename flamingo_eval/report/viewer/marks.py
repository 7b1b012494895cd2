"""Readers' marks on answers, kept beside the run, never in it: a file of JSON lines that is only appended to."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.paths import open_regular
from flamingo_eval.core.reading import parse_json
from flamingo_eval.core.schema import typed
from flamingo_eval.report.viewer.payload import Mark
from flamingo_eval.storage.files import open_own

_LONGEST = 2000
"""Characters of a tag, at most; it may be a reader's own words."""


def marks_file(run: Path) -> Path:
    """Where the marks of a run are kept: beside its folder, under its name."""
    run = run.absolute()
    return run.with_name(f"{run.name}.marks.jsonl")


def read_marks(run: Path) -> tuple[list[Mark], str]:
    """A run's marks, in the order they were made, and what is wrong with the file; empty if nothing is.

    Of several marks with the same answer and tag, the last one counts. Lines that can't be read are left out.
    """
    path = marks_file(run)
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"{path} can't be read: {error.strerror}"
    marks, bad = [], []
    for number, line in enumerate(lines[:-1], start=1):  # text after the last line break is still being written
        try:
            if line.strip():
                marks.append(typed(parse_json(line, f"line {number}"), Mark, f"line {number}"))
        except (DataError, UserError):
            bad.append(str(number))
    return marks, f"{path}: no marks can be read from line {', '.join(bad[:5])}" if bad else ""


def add_mark(run: Path, mark: Mark) -> Mark:
    """Appends a mark, with the time.

    Raises:
        UserError: the tag is empty or too long, or the file can't be written.
    """
    if not 1 <= len(mark.tag) <= _LONGEST:
        raise UserError(f"a mark is a text of 1 to {_LONGEST} characters")
    when = datetime.now(UTC).isoformat(timespec="seconds")
    mark = msgspec.structs.replace(mark, run=run.absolute().name, when=when)
    line = (json.dumps(msgspec.to_builtins(mark)) + "\n").encode("ascii")
    path = marks_file(run)
    try:
        with os.fdopen(open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "rb+", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # a process was stopped in the middle of a line
            file.write(line)
    except OSError as error:
        link = "it is a link, and nothing is written through links"
        raise UserError(f"{path} can't be written: {link if error.errno == errno.ELOOP else error.strerror}") from error
    return mark
