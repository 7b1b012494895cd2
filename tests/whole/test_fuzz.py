"""Damaged files: an error that names them, or all that is whole in them; never a traceback, never a silent loss."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flamingo_eval.core.benchmark import benchmark_names, load_benchmark
from flamingo_eval.core.errors import DataError, FlamingoEvalError
from flamingo_eval.core.records import Prediction
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.query_details import query_details
from flamingo_eval.engine.reopen import reopen
from flamingo_eval.storage.journal import Entry, Journal
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.runs import list_runs
from flamingo_eval.storage.scores import item_rows, read_scores
from tests.support.fuzzing import damaged_bytes, damaged_json
from tests.support.helpers import Cli, write_coco_root

pytestmark = pytest.mark.slow
SEEDS = st.integers(0, 2**48)


def cases(count: int) -> Callable[[Any], Any]:
    """A test of one damaged file, by seed."""

    def decorate(test: Any) -> Any:
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        configured = settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None)
        return configured(given(seed=SEEDS)(test))

    return decorate


def damage(path: Path, full: bytes, draw: random.Random) -> None:
    """Writes a damaged version of a JSON or JSON lines file."""
    if draw.random() < 0.4:
        path.write_bytes(damaged_bytes(full, draw))
        return
    lines = full.splitlines() if path.suffix == ".jsonl" else [full]
    number = draw.randrange(len(lines))
    lines[number] = json.dumps(damaged_json(json.loads(lines[number]), draw)).encode("utf-8", "surrogatepass")
    path.write_bytes(b"\n".join(lines) + b"\n")


def names(error: FlamingoEvalError, path: Path) -> None:
    """The message says where to look."""
    assert path.name in str(error), error


@pytest.fixture(scope="module")
def journal_lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    answers: list[Any] = ["a cat", "", "ein Löwe\n\u2028", {"yes": -0.5, "no": -1.25}, '"quoted"']
    Journal(path).append(
        [Entry(("coco", 4, 42, i, 0), Prediction(f"k{i}", output, "p")) for i, output in enumerate(answers)]
    )
    Journal(path).append([Entry(("coco", 4, 42, 1, 0), Prediction("k1", "again", "q"))])
    return path.read_bytes().splitlines(keepends=True)


@cases(5000)
def test_journals(journal_lines: list[bytes], tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "journal.jsonl"
    damage(path, b"".join(journal_lines), draw)
    content = path.read_bytes()
    try:
        journal = Journal(path)
    except DataError as error:
        names(error, path)
        return
    kept = content.split(b"\n")
    intact = [json.loads(line) for line in journal_lines if line.rstrip(b"\n") in kept[:-1]]
    foreign = [line for line in kept[:-1] if line.strip() and line + b"\n" not in journal_lines]
    claimed = [json.loads(line)["query_id"] for line in foreign]
    for row in intact:
        latest = max((r for r in intact if r["query_id"] == row["query_id"]), key=lambda r: r.get("again", 0))
        if row["query_id"] in claimed:
            continue  # a damaged line that is still one speaks of the same query
        found = journal.get(("coco", 4, 42, row["query_id"], 0))
        assert found is not None
        assert found.key == latest["key"]
        assert found.answer == (latest["raw"] if latest["raw"] is not None else latest["class_logprobs"])
    before = len(journal)
    journal.append([Entry(("coco", 4, 42, "new", 0), Prediction("n", "new"))])
    again = Journal(path)
    assert len(again) == before + 1, "what was behind a torn end is not glued to the next line"


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's annotation files, cut to a few records each, without images; ``whole`` holds copies."""
    from flamingo_eval.demo.root import data_folder

    folder = tmp_path_factory.mktemp("demo")
    source = data_folder("demo")
    for file in source.rglob("*.json*"):
        for copy in ("whole", "root"):
            target = folder / copy / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(shortened(file))
    return folder / "root"


def shortened(file: Path) -> bytes:
    """The first six records, and six test images of Karpathy's."""
    if file.suffix == ".jsonl":
        return b"".join(file.read_bytes().splitlines(keepends=True)[:6])
    table = json.loads(file.read_bytes())
    if isinstance(table, list):
        return json.dumps(table[:6]).encode()
    if "images" in table and "sentences" in str(table["images"][0]):
        chosen = [[image for image in table["images"] if image["split"] == split][:6] for split in ("train", "test")]
        return json.dumps({**table, "images": chosen[0] + chosen[1]}).encode()
    return json.dumps({key: v[:6] if isinstance(v, list) else v for key, v in table.items()}).encode()


@cases(4000)
def test_annotation_files(demo_root: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = draw.choice(sorted(demo_root.rglob("*.json*")))
    folder = path.relative_to(demo_root).parts[0]
    benchmark = next(name for name in benchmark_names() if load_benchmark(name).data.folder == folder)
    full = (demo_root.with_name("whole") / path.relative_to(demo_root)).read_bytes()
    damage(path, full, draw)
    try:
        source = read_source(benchmark, demo_root)
        references = source.references.by_id
        assert len(source.data.train) > 0
        assert len({example.id for example in source.data.test}) == len(source.data.test)
        assert all(not example.image.startswith(("/", "..")) for example in source.data.test)
        assert isinstance(references, dict)
    except FlamingoEvalError as error:
        names(error, path.parent)
    finally:
        path.write_bytes(full)


@cases(1500)
def test_run_folders(finished: tuple[Path, Path], seed: int) -> None:
    """Every file of a run, damaged, under every command that reads runs."""
    draw = random.Random(seed)
    run, root = finished
    path = run / draw.choice(
        ("run.json", "scores.json", "scores.jsonl", "journal.jsonl", "failures.json", "rices-coco.json")
    )
    full = path.read_bytes()
    damage(path, full, draw)
    folder = RunFolder(run)

    def root_of(_: str) -> Path:
        return root

    readers: tuple[Callable[[], object], ...] = (
        folder.read_run, lambda: read_scores(folder), lambda: item_rows(folder), lambda: reopen(folder, root_of),
        lambda: list_runs(run.parent), lambda: query_details(folder, root_of, "500"), folder.skipped,
    )  # fmt: skip
    messages: list[str] = []
    try:
        for read in readers:
            try:
                read()
            except FlamingoEvalError as error:
                messages.append(str(error))
    finally:
        path.write_bytes(full)
    assert all(len(message) > 10 for message in messages)


@pytest.fixture
def finished(tmp_path: Path, cli: Cli) -> tuple[Path, Path]:
    """A run by RICES with something it could not answer."""
    root = write_coco_root(tmp_path / "data", train=4, test=3)
    (root / "coco/val2014/COCO_val2014_000000000502.png").unlink()
    shutil.copytree(root, tmp_path / "kept")
    result = cli("coco", "--shots", "2", "--select", "rices", "--rices-model", "scripted", "--checkpoint", "scripted",
                 "--data-root", root, "--out", tmp_path / "runs/run", "--on-error", "skip")  # fmt: skip
    assert result.returncode == 4, result.stderr
    return tmp_path / "runs/run", root
