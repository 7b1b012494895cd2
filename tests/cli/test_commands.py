"""The command line as users meet it: real processes over small data, with a model that needs no weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from tests.support.helpers import FAST, Cli, read_lines, run_cli, write_coco_root


@pytest.mark.slow
def test_a_run_then_again_then_scored_again(root: Path, cli: Cli) -> None:
    first = run_cli(*FAST, "--data-root", root, "--out", "run")
    assert first.returncode == 0, first.stderr
    assert "run saved in run" in first.stdout
    assert "answering: 100%" in first.stderr
    journal = Path("run/journal.jsonl").read_bytes()
    assert len(journal.splitlines()) == 2 * 2 * 5

    again = cli(*FAST, "--data-root", root, "--out", "run")
    assert again.stdout == first.stdout
    assert "answering" not in again.stderr, "nothing is answered again"
    assert Path("run/journal.jsonl").read_bytes() == journal

    before = {name: Path("run", name).read_bytes() for name in ("scores.json", "scores.jsonl")}
    for name in before:
        Path("run", name).unlink()
    assert "is not scored yet: flamingo-eval score run" in cli("report", "run").stderr
    assert cli("score", "run").returncode == 0
    assert {name: Path("run", name).read_bytes() for name in before} == before
    report = cli("report", "run")
    assert report.stdout.strip() in first.stdout


@pytest.mark.slow
def test_more_shots_and_seeds_extend_a_run(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    more = cli(
        "coco", "--shots", "2,4", "--trials", "3", "--checkpoint", "scripted", "--data-root", root, "--out", "run"
    )
    assert more.returncode == 0, more.stderr
    assert (
        "2 shots  4 shots" in " ".join(more.stdout.splitlines()[0].split("  ")).replace("   ", "  ")
        or "4 shots" in more.stdout
    )
    assert "0 shots" not in more.stdout, "only what was asked for is shown"
    cells = json.loads(cli("report", "run", "--format", "json").stdout)["cells"]
    assert [(c["shots"], len(c["trials"])) for c in cells] == [(0, 2), (2, 3), (4, 3)]
    assert len(Path("run/journal.jsonl").read_text().splitlines()) == 5 * (2 + 3 + 3)


def test_samples(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    rows = [json.loads(line) for line in cli("samples", "run", "--format", "jsonl").stdout.splitlines()]
    assert len(rows) == 20
    row = next(r for r in rows if r["shots"] == 2)
    assert list(row) == [
        "benchmark",
        "shots",
        "seed",
        "query_id",
        "demonstration_ids",
        "images",
        "prompt",
        "rendering",
        "raw",
        "answer",
        "score",
        "references",
        "demo",
    ]
    assert row["raw"] == row["answer"] == f"a thing {row['demonstration_ids'][-1]}"
    cells = json.loads(cli("report", "run", "--format", "json").stdout)["cells"]
    value = next(t["value"] for c in cells if c["shots"] == 2 for t in c["trials"] if t["seed"] == row["seed"])
    scores = [r["score"] for r in rows if (r["shots"], r["seed"]) == (2, row["seed"])]
    assert sum(scores) / len(scores) == pytest.approx(value)


def test_another_setting_needs_another_folder(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    other = cli(*FAST, "--data-root", root, "--out", "run", "--query-set-size", "5")
    assert other.returncode == 2
    assert "holds a run with other settings: query_set_size is 5 here, 2048 in that run" in other.stderr
    smaller = cli(*FAST, "--data-root", root, "--out", "run", "--batch-size", "3")
    assert smaller.returncode == 0, "what does not change answers may change"
    default = cli(*FAST, "--data-root", root)
    assert "run saved in results/runs/coco-" in default.stdout


def test_changed_annotations_are_not_mixed_with_old_answers(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    path = root / "coco" / "dataset_coco.json"
    path.write_text(path.read_text().replace("a thing 101", "a bird"))
    changed = cli(*FAST, "--data-root", root, "--out", "run")
    assert changed.returncode == 2
    assert "coco data is" in changed.stderr
    assert cli("score", "run").returncode == 2


def test_a_changed_image_is_answered_again(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    Image.new("RGB", (8, 8), "white").save(root / "coco/val2014/COCO_val2014_000000000500.png")
    cli(*FAST, "--data-root", root, "--out", "run")
    answered = [row["query_id"] for row in read_lines(Path("run/journal.jsonl"))]
    assert len(answered) == 24
    assert set(answered[20:]) == {500}


def test_missing_images_stop_after_everything_else_is_answered(root: Path, cli: Cli) -> None:
    gone = root / "coco/val2014/COCO_val2014_000000000503.png"
    content = gone.read_bytes()
    gone.unlink()
    result = cli(*FAST, "--data-root", root, "--out", "run")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "4 queries could not be answered" in result.stderr
    assert f"{gone} does not exist" in result.stderr
    assert "coco, 0 shots, seed 42, query " in result.stderr
    assert "Traceback" not in result.stderr
    assert len(Path("run/journal.jsonl").read_text().splitlines()) == 16
    scored = cli("score", "run")
    assert scored.returncode == 2
    assert "answers are missing in 4 trials (coco, 0 shots, seed 42; " in scored.stderr
    gone.write_bytes(content)
    assert cli(*FAST, "--data-root", root, "--out", "run").returncode == 0
    assert len(Path("run/journal.jsonl").read_text().splitlines()) == 20


def test_killed_and_resumed(root: Path, cli: Cli) -> None:
    """The journal of a killed run, torn at its end, is continued; every query is answered once."""
    arguments = [*FAST, "--data-root", root, "--out", "run", "--batch-size", "1"]
    full = cli(*arguments)
    journal = Path("run/journal.jsonl")
    lines = journal.read_bytes()
    journal.write_bytes(lines[: len(lines) // 2 + 7])
    resumed = cli(*arguments)
    assert "ended in the middle of a line; that answer is dropped" in resumed.stderr
    assert resumed.stdout == full.stdout
    assert sorted(journal.read_bytes().splitlines()) == sorted(lines.splitlines())


@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "big", train=40, test=400)
    command = [sys.executable, "-m", "flamingo_eval", "coco", "--shots", "1,2,3,4", "--trials", "10", "--checkpoint",
               "scripted", "--data-root", str(root), "--out", "run", "--batch-size", "1"]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts jobs in the background has them ignore Ctrl-C, and so their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = Path("run/journal.jsonl")
    deadline = time.monotonic() + 30
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert 0 < len(journal.read_text().splitlines()) < 16_000


@pytest.mark.slow
def test_two_runs_into_one_folder(root: Path, cli: Cli) -> None:
    Path("run").mkdir()
    since = (datetime.now(UTC) - timedelta(hours=3)).isoformat(timespec="seconds")
    holder = f"""
import fcntl, time
lock = open("run/.lock", "w")
lock.write('{{"host": "h", "process": 7, "since": "{since}"}}')
lock.flush()
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        result = cli(*FAST, "--data-root", root, "--out", "run")
        assert result.returncode == 2
        assert f"run is in use by another run (host h, process 7, since {since}, 3 h ago)" in result.stderr
    finally:
        process.kill()
        process.communicate()
    assert cli(*FAST, "--data-root", root, "--out", "run").returncode == 0, "a dead run's lock does not last"
