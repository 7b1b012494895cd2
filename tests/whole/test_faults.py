"""What goes wrong on the way is said, and costs what it must and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelBase
from flamingo_eval.core.records import Answer, Decoding, NoAnswer
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.engine.answer import Answering
from flamingo_eval.models.flamingo.rendering import RENDERER
from flamingo_eval.storage.journal import Journal
from tests.support.bundles import load_over
from tests.support.helpers import FAST, Cli, Kit, LazyModule, read_lines, run_cli, write_coco_root

torch: Any = LazyModule("torch")


def without_an_image(root: Path) -> Path:
    image = root / "coco/val2014/COCO_val2014_000000000502.png"
    image.unlink()
    return image


@pytest.mark.slow
def test_skipped_queries_are_partial_everywhere(root: Path, cli: Cli) -> None:
    gone = without_an_image(root)
    arguments = (*FAST, "--data-root", root, "--out", "run")
    stopped = cli(*arguments)
    assert stopped.returncode == 2
    assert "4 queries could not be answered; everything else is answered and saved" in stopped.stderr
    assert cli("report", "run").returncode == 2
    skipped = cli(*arguments, "--on-error", "skip")
    assert skipped.returncode == 4
    assert "(0.0) *" in skipped.stdout
    assert "a partial number, not comparable with others" in skipped.stdout
    assert (
        f"4 queries could not be answered and were left out; numbers with a star are partial. The reasons:\n  {gone}"
        in skipped.stderr
    )
    for command in (("report", "run"), ("score", "run"), ("samples", "run"), ("card", "run"), ("plot", "run"),
                    ("plot", "run", "--out", "plot.svg"), ("controls", "run", "--only", "majority"),
                    ("check", "run", "--baseline", "run"), ("view", "run", "--bundle", "page")):  # fmt: skip
        done = cli(*command)
        assert done.returncode == 4
        assert "were left out; numbers with a star are partial" in done.stderr
    assert "(partial)" in cli("plot", "run").stdout
    assert "complete: false" in cli("card", "run").stdout
    cells = json.loads(cli("report", "run", "--format", "json").stdout)["cells"]
    assert [cell["complete"] for cell in cells] == [False, False]
    assert {(t["queries"], t["planned"]) for cell in cells for t in cell["trials"]} == {(4, 5)}
    assert [row["query_id"] for row in json.loads(Path("run/failures.json").read_text())] == [502] * 4
    shown = cli("show", "run", "--query", "502", "--shots", "2", "--seed", "43").stdout
    assert f"NOT ANSWERED  {gone} does not exist" in shown
    gone.write_bytes((root / "coco/val2014/COCO_val2014_000000000503.png").read_bytes())
    full = cli(*arguments, "--on-error", "skip")
    assert full.returncode == 0, "the image is back"
    assert "*" not in full.stdout
    assert json.loads(Path("run/failures.json").read_text()) == []


def test_a_trial_with_no_answer_at_all_is_no_zero(root: Path, cli: Cli) -> None:
    for image in (root / "coco/val2014").iterdir():
        image.unlink()
    result = cli(*FAST, "--data-root", root, "--out", "run", "--on-error", "skip")
    assert result.returncode == 4
    assert "20 queries could not be answered and were left out" in result.stderr
    assert "public answers" not in result.stderr
    assert json.loads(Path("run/scores.json").read_text())["cells"] == []
    assert cli("report", "run").returncode == 4


def test_skipping_is_a_choice_of_each_command(root: Path, cli: Cli) -> None:
    """Numbers that were left partial stay so when other cells are added without that choice, and the other way round."""
    without_an_image(root)
    arguments = ("coco", "--checkpoint", "scripted", "--data-root", root, "--out", "run", "--shots")
    assert cli(*arguments, "0", "--on-error", "skip").returncode == 4
    assert cli(*arguments, "2").returncode == 2
    cells = json.loads(Path("run/scores.json").read_text())["cells"]
    assert [(cell["shots"], cell["complete"]) for cell in cells] == [(0, False)]


def test_starting_over_keeps_what_was_there(root: Path, cli: Cli) -> None:
    arguments = (*FAST, "--data-root", root, "--out", "runs/run")
    cli(*arguments)
    before = Path("runs/run/journal.jsonl").read_bytes()
    again = cli(*arguments, "--fresh")
    assert again.returncode == 0
    kept = next(path for path in Path("runs").iterdir() if path.name != "run")
    assert f"starting over; what was there is kept in {kept}" in again.stderr
    assert (kept / "journal.jsonl").read_bytes() == before
    assert len(json.loads(Path("runs/run/run.json").read_text())["sessions"]) == 1
    listed = json.loads(cli("runs", "runs", "--format", "json").stdout)
    assert [Path(run["run"]).name for run in listed] == ["run", kept.name]
    assert cli(*FAST, "--data-root", root, "--out", "other", "--fresh").returncode == 0, "nothing to keep"


def test_a_run_and_a_query_are_shown(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    assert json.loads(cli("show", "run", "--json").stdout) == json.loads(Path("run/run.json").read_text())
    text = cli("show", "run").stdout
    for wanted in ("checkpoint", "scripted-1", "coco, 2 shots, seed 43", "versions", "answered"):
        assert wanted in text
    rows = [json.loads(line) for line in cli("show", "run", "--query", "501", "--all", "--json").stdout.splitlines()]
    assert [(row["shots"], row["seed"]) for row in rows] == [(0, 42), (0, 43), (2, 42), (2, 43)]
    row = rows[3]
    assert row["references"] == ["a thing 501", "thing 501 on a table", "there is thing 501"]
    assert [one["caption"] for one in row["demonstrations"]] == [
        f"a thing {one['id']}" for one in row["demonstrations"]
    ]
    assert row["raw"] == row["answer"] == f"a thing {row['demonstration_ids'][-1]}"
    assert row["prompt"].endswith("<image>Output:")
    first = cli("show", "run", "--query", "501", "--benchmark", "coco", "--shots", "2")
    assert first.stdout.count("shots, seed") == 1, "one answer"
    assert "1 more trials ask query 501: --all shows them" in first.stderr
    text = cli("show", "run", "--query", "501", "--shots", "2", "--seed", "43").stdout
    for wanted in (row["demonstrations"][0]["image"], "there is thing 501", repr(row["raw"]), "score"):
        assert wanted in text
    missing = cli("show", "run", "--query", "77")
    assert missing.returncode == 2
    assert "has a query '77'" in missing.stderr
    assert "is not a folder" in cli("runs", "nowhere").stderr


def test_samples_for_pandas(root: Path, cli: Cli) -> None:
    import pandas

    cli(*FAST, "--data-root", root, "--out", "run")
    rows = [json.loads(line) for line in cli("samples", "run").stdout.splitlines()]
    assert cli("samples", "run", "--format", "parquet", "--out", "s.parquet").returncode == 0
    frame = pandas.read_parquet("s.parquet")
    assert cli("samples", "run", "--format", "csv", "--out", "s.csv").returncode == 0
    table = pandas.read_csv("s.csv")
    assert len(frame) == len(table) == len(rows) == 20
    for column in ("benchmark", "shots", "seed", "prompt", "raw", "answer", "score"):
        assert frame[column].tolist() == table[column].tolist() == [row[column] for row in rows]
    assert [list(ids) for ids in frame["demonstration_ids"]] == [[*map(str, row["demonstration_ids"])] for row in rows]
    assert [json.loads(text) for text in table["images"]] == [row["images"] for row in rows]
    assert "known formats: jsonl, csv, parquet" in cli("samples", "run", "--format", "xml").stderr
    assert cli("samples", "run", "--format", "csv", "--out", "/proc/none/s.csv").returncode == 3


class Overflowing(ModelBase):
    """Has no answer to every third query."""

    def prepare(self, prompt: Any, task: Any, images: Any) -> Any:
        return prompt

    def answer(self, prepared: Any, task: Any) -> list[Answer | NoAnswer]:
        return [NoAnswer("logits are not numbers") if "501" in p.images[-1] else "text" for p in prepared]


def test_overflowing_logits_name_their_query(root: Path, tmp_path: Path) -> None:
    from flamingo_eval.core.source import read_source
    from flamingo_eval.engine.plan import plan_trial
    from flamingo_eval.engine.requests import find_pending

    trial = plan_trial(read_source("coco", root), RENDERER, RunSpec(pool_size=12), shots=2, seed=42)
    journal = Journal(tmp_path / "j.jsonl")
    pending = list(find_pending([trial], journal, "m"))
    work = Answering(Overflowing(), journal, batch_size=2, extra={})
    assert sum(work.answer(pending)) == 5
    assert [failure.reason for failure in work.failures] == ["logits are not numbers"]
    assert len(journal) == 4
    assert all(work.done(item) for item in pending)


@pytest.mark.torch
@pytest.mark.parametrize("plain", [False, True])
def test_a_model_that_overflows_answers_the_other_queries(kit: Kit, plain: bool) -> None:
    """One image's latents are infinite: its prompts have no answer, and their neighbours' texts are as ever."""
    from flamingo_eval.core import registry
    from flamingo_eval.core.records import Ranking, Rendering

    images = kit.images(4)
    source = registry.model_source(str(kit.toml), {"plain": plain, "keep": False})
    model: Any = load_over(source, kit.data)
    encode = model.model.encode
    bad = model._store(Decoding(5)).pixels(model._store(Decoding(5)).find(kit.data / images[1], False, Images(Path())))

    def overflow(pixels: Any) -> Any:
        latents = encode(pixels)
        latents[(pixels == bad).all(dim=(1, 2, 3))] = torch.inf
        return latents

    prompts = [Rendering("<image>Output:", (image,)) for image in images]
    tasks = (Decoding(8), Decoding(8, num_beams=1), Ranking(("yes", "no way")))
    expected = [model.answer([model.read(p, task) for p in prompts], task) for task in tasks]
    model.model.encode = overflow
    for store in model.stores.values():
        store._known.clear()
    for task, before in zip(tasks, expected, strict=True):
        after = model.answer([model.read(p, task) for p in prompts], task)
        assert isinstance(after[1], NoAnswer)
        assert "not numbers" in after[1].reason
        others = [0, 2, 3]
        if isinstance(task, Decoding):
            assert [after[i] for i in others] == [before[i] for i in others]
        else:
            assert all(after[i] == pytest.approx(before[i], abs=1e-4) for i in others)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 100 kB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_full_disk_and_a_read_only_one(tmp_path: Path, small_disk: Path) -> None:
    """Exit code 3 with a message; what is saved stays, and the same command continues."""
    root = write_coco_root(tmp_path / "data", train=20, test=40)
    arguments = (
        "coco",
        "--shots",
        "0,1,2,4",
        "--checkpoint",
        "scripted",
        "--data-root",
        root,
        "--out",
        small_disk / "run",
    )
    full = run_cli(*arguments)
    assert full.returncode == 3, full.stderr
    assert "the disk is full. Nothing already saved is lost" in full.stderr
    assert "Traceback" not in full.stderr
    saved = read_lines(small_disk / "run/journal.jsonl") if complete_lines(small_disk / "run/journal.jsonl") else []
    assert saved
    remount(small_disk, "size=10m,ro")
    read_only = run_cli(*arguments)
    assert read_only.returncode == 3
    assert "the file system is read-only" in read_only.stderr
    remount(small_disk, "size=10m,rw")
    resumed = run_cli(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    rows = read_lines(small_disk / "run/journal.jsonl")
    assert len(rows) == 480
    assert rows[: len(saved)] == saved


def complete_lines(path: Path) -> bool:
    """Cuts a torn last line off, for reading; the run does so itself."""
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"\n") + 1])
    return b"\n" in data
