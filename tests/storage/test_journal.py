"""The journal: append-only, and nothing in it is lost or invented."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_eval.core.errors import DataError, StorageError
from flamingo_eval.core.records import Id, Prediction
from flamingo_eval.storage.journal import Entry, Journal


def entry(id: Id, raw: str = "text", key: str = "k") -> Entry:
    return Entry(("coco", 4, 42, id, 0), Prediction(key, raw))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.integers(), st.text()), st.text()), max_size=12))
def test_what_is_appended_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[Id, str]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    for id, raw in answers:
        journal.append([entry(id, raw)])
    again = Journal(path)
    assert not again.torn
    assert {id: again.get(("coco", 4, 42, id, 0)) for id, _ in answers} == {
        id: Prediction("k", raw) for id, raw in answers
    }


def test_the_last_line_of_a_slot_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append([entry(1, "old", "a"), entry(1, "new", "b")])
    assert Journal(tmp_path / "j").get(("coco", 4, 42, 1, 0)) == Prediction("b", "new")


def test_ids_that_look_alike_stay_apart(tmp_path: Path) -> None:
    Journal(tmp_path / "j").append([entry(7, "number"), entry("7", "text")])
    again = Journal(tmp_path / "j")
    assert [p.answer for p in (again.get(("coco", 4, 42, 7, 0)), again.get(("coco", 4, 42, "7", 0))) if p] == [
        "number",
        "text",
    ]


def test_a_torn_last_line_is_dropped_wherever_it_tears(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).append([entry(1, "first"), entry(2, "second é")])
    full = path.read_bytes()
    first_line = full.index(b"\n") + 1
    for length in range(first_line + 1, len(full)):
        path.write_bytes(full[:length])
        journal = Journal(path)
        assert journal.torn
        assert len(journal) == 1
    journal.append([entry(2, "again")])
    assert [json.loads(line)["raw"] for line in path.read_text().splitlines()] == ["first", "again"]
    assert not Journal(path).torn


@pytest.mark.parametrize("line", ["{}", "7", "not json", '{"benchmark": "coco", "shots": "4"}'])
def test_a_broken_line_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j"
    Journal(path).append([entry(1)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match="j, line 2: not a line of a journal"):
        Journal(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")])
def test_a_full_or_broken_disk_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    journal = Journal(tmp_path / "j")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=reason) as error:
        journal.append([entry(1)])
    assert error.value.exit_code == 3
    assert len(journal) == 0, "what is not on the disk does not count as answered"
