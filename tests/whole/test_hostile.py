"""Records changed by hand or lost while they are used: never a wrong number in silence, never a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.errors import StorageError
from flamingo_eval.core.records import Prediction
from flamingo_eval.storage.journal import Entry, Journal
from flamingo_eval.storage.vectors import FeatureStore
from tests.support.helpers import FAST, Cli, read_lines, run_scripted, write_coco_root


def test_a_runs_own_records_are_not_written_over(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    for command in (("samples", "run", "--out", "run/journal.jsonl"),
                    ("check", "run", "--baseline", "run/run.json", "--update"),
                    ("check", "run", "--baseline", "run", "--junit", "run/scores.json"),
                    ("check", "run", "--baseline", "run", "--markdown", "run/journal-1.jsonl")):  # fmt: skip
        result = cli(*command)
        assert result.returncode == 2, command
        assert "is a record of the run itself" in result.stderr
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    assert cli("samples", "run", "--out", "run/samples.jsonl").returncode == 0


def entry(id: int) -> Entry:
    return Entry(("coco", 4, 42, id, 0), Prediction(f"key{id}", f"answer {id}"))


@pytest.mark.parametrize("loss", ["deleted", "replaced", "cut", "folder moved"])
def test_a_journal_lost_while_a_run_answers_is_noticed(tmp_path: Path, loss: str) -> None:
    path = tmp_path / "run/journal.jsonl"
    journal = Journal(path)
    journal.append([entry(1), entry(2)])
    if loss == "deleted":
        path.unlink()
    elif loss == "replaced":
        path.rename(tmp_path / "old")
        path.write_bytes((tmp_path / "old").read_bytes())
    elif loss == "cut":
        os.truncate(path, 10)
    else:
        path.parent.rename(tmp_path / "elsewhere")
    for act in (journal.check, lambda: journal.append([entry(3)])):
        with pytest.raises(StorageError, match="has been deleted, replaced or cut while this run was answering"):
            act()
    assert not path.exists() or b"\0" not in path.read_bytes()


def test_the_next_command_answers_what_a_lost_journal_held(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Journal.append, []

    def append(self: Journal, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            self.path.unlink()
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        result = cli(*FAST, "--data-root", root, "--out", "run", "--batch-size", "1")
    assert result.returncode == 3, result.stderr
    assert "give the same command again" in result.stderr
    run_scripted(cli, root)
    assert len(read_lines(Path("run/journal.jsonl"))) == 20


def test_answers_to_other_prompts_than_the_records_are_refused(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    record = json.loads(Path("run/run.json").read_text())
    for change in ({"num_samples": 2}, {"query_set_size": 3}):
        Path("run/run.json").write_text(json.dumps({**record, "identity": {**record["identity"], **change}}))
        for command in (("score", "run"), ("samples", "run"), ("show", "run", "--query", "500")):
            result = cli(*command)
            assert result.returncode == 2, (change, command)
            assert "was given to another prompt than run.json and the data make" in result.stderr


@pytest.mark.slow
def test_a_score_of_an_older_answer_is_not_shown(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    row = read_lines(Path("run/journal.jsonl"))[0]
    with Path("run/journal.jsonl").open("a") as file:
        file.write(json.dumps({**row, "again": 1, "raw": "SOMETHING ELSE"}) + "\n")
    for command in (("samples", "run"), ("show", "run", "--query", str(row["query_id"]))):
        result = cli(*command)
        assert result.returncode == 2
        assert "was scored before the answer to query" in result.stderr
    assert cli("score", "run").returncode == 0
    assert "SOMETHING ELSE" in cli("samples", "run").stdout


def test_a_baseline_that_lost_a_cell_is_no_baseline(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    table = json.loads(Path("run/scores.json").read_text())
    Path("run/scores.json").write_text(json.dumps({**table, "cells": table["cells"][:1]}))
    shutil.copytree("run", "other")
    run_scripted(cli, root, "whole")
    assert cli("check", "whole", "--baseline", "run").returncode == 2
    assert cli("report", "run").returncode == 2


@pytest.mark.parametrize("place", ["mv", "rm", "record"])
def test_a_folder_that_goes_while_a_run_answers_is_named(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    real, calls = Journal.append, []

    def append(self: Journal, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            if place == "record":
                Path("run/run.json").unlink()
            else:
                Path("run").rename("moved")
                if place == "rm":
                    shutil.rmtree("moved")
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        result = cli(*FAST, "--data-root", root, "--out", "run", "--batch-size", "1")
    assert result.returncode == 3, result.stderr
    assert "deleted" in result.stderr
    assert "Traceback" not in result.stderr
    run_scripted(cli, root)
    assert len(read_lines(Path("run/journal.jsonl"))) == 20


def test_a_disk_that_fails_while_a_journal_is_read_is_a_message(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    Path("run/journal-1.jsonl").symlink_to("/proc/self/mem")
    for command in (("score", "run"), ("samples", "run"), (*FAST, "--data-root", root, "--out", "run")):
        result = cli(*command)
        assert result.returncode == 2, result.stderr
        assert "journal-1.jsonl" in result.stderr


@pytest.mark.parametrize("value", ["2", "1.5", "true", "30000", "1000000000000", "Infinity", "[" * 100_000])
def test_a_store_whose_head_is_damaged_is_built_anew(tmp_path: Path, value: str) -> None:
    import numpy as np

    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)

    def build() -> FeatureStore:
        store = FeatureStore(tmp_path / "store", "e")
        with store.building():
            missing = [key for key in "abcd" if key not in store]
            try:
                store.read([key for key in "abcd" if key in store])
            except KeyError as error:
                store.forget(error.args)
                missing = [key for key in "abcd" if key not in store]
            if missing:
                store.append(missing, vectors[["abcd".index(key) for key in missing]], {})
        return store

    build()
    index = tmp_path / "store/index.txt"
    index.write_text(index.read_text().replace('"width": 3', f'"width": {value}'))
    build()
    assert np.array_equal(FeatureStore(tmp_path / "store", "e").read([*"abcd"]), vectors)


VALUES: tuple[Any, ...] = (
    None, True, -1, 3, 1.5, 10**30, "", "x", "../../etc", "a\0b", "\x1b[31m", [], [[]], {}, {"a": 1}, [None], ["x"],
    float("nan"), "n" * 300,
)  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of a list the first and the last."""
    yield place
    keys = (
        value if isinstance(value, dict) else sorted({0, len(value) - 1}) if isinstance(value, list) and value else ()
    )
    for key in keys:
        yield from places(value[key], (*place, key))


def with_other(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    """A copy with something else at a place, or without it where ``other`` is the type ``object``."""
    if not place:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and other is object:
        del copy[place[0]]
    else:
        copy[place[0]] = with_other(value[place[0]], place[1:], other)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize(
    "name", ["run.json", "scores.json", "scores.jsonl", "journal.jsonl", "failures.json", "b.json"]
)
def test_any_value_anywhere_in_a_record(tmp_path: Path, cli: Cli, name: str, count: int) -> None:
    """One value of one record is another, or gone, under every command that reads it."""
    root = write_coco_root(tmp_path / "data", train=4, test=3)
    (root / "coco/val2014/COCO_val2014_000000000502.png").unlink()
    command = ("coco", "--shots", "0,2", "--seeds", "42,43", "--num-samples", "2", "--select", "rices", "--rices-model",
               "scripted", "--checkpoint", "scripted", "--data-root", root, "--out", "run", "--on-error", "skip")  # fmt: skip
    assert cli(*command).returncode in (0, 4)
    assert cli("check", "run", "--baseline", "b.json", "--update").returncode in (0, 4)
    path = Path(name) if name == "b.json" else Path("run", name)
    path = path if path.exists() else Path("run/scores.json")
    full = path.read_text()
    lines = full.splitlines() if path.suffix == ".jsonl" else [full]
    mutants = [(n, place, value) for n in {0, len(lines) - 1} for place in places(json.loads(lines[n]))
               for value in (*VALUES, *([object] if place else []))]  # fmt: skip
    run: str | Path = path if name == "b.json" else "run"
    readers: list[tuple[Any, ...]] = [
        ("report", run, "--intervals"), ("report", run, "--format", "html"), ("compare", run, "b.json"),
        ("check", "run", "--baseline", run, "--junit", "j.xml"), ("plot", run, "--out", "p.svg"), ("card", run),
    ]  # fmt: skip
    if name != "b.json":
        readers += [("samples", run), ("show", run), ("show", run, "--query", "500"), ("runs", "."), ("score", run),
                    ("controls", run, "--only", "majority"), command]  # fmt: skip
    shutil.copytree("run", "kept")
    bad: list[Any] = []
    for n, place, value in random.Random(0).sample(mutants, min(count, len(mutants))):
        changed = [json.dumps(with_other(json.loads(line), place, value)) if i == n else line
                   for i, line in enumerate(lines)]  # fmt: skip
        path.write_text("\n".join(changed) + "\n")
        for reader in readers:
            result = cli(*reader)
            if result.returncode not in (0, 1, 2, 3, 4) or "Traceback" in result.stderr:
                bad.append((place, value, reader[0], result.stderr[-200:]))
        shutil.rmtree("run")
        shutil.copytree("kept", "run")
        path.write_text(full)
    assert bad == []
