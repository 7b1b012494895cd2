"""The command line as users meet it: real processes over small data, with a model that needs no weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from flamingo_eval.cli.main import main
from tests.helpers import read_lines, run_cli, write_coco_root

FAST = ("coco", "--shots", "0,2", "--seeds", "42,43", "--checkpoint", "scripted")


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line inside this process: much faster than a process of its own, which a few tests use."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["flamingo-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return subprocess.CompletedProcess(list(arguments), stop.value.code, out, err)

    return call


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
        "raw",
        "answer",
        "score",
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
    assert "holds a run with other settings: query_set_size is 5, there 2048" in other.stderr
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


def test_a_changed_picture_is_answered_again(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    Image.new("RGB", (8, 8), "white").save(root / "coco/val2014/COCO_val2014_000000000500.png")
    cli(*FAST, "--data-root", root, "--out", "run")
    answered = [row["query_id"] for row in read_lines(Path("run/journal.jsonl"))]
    assert len(answered) == 24
    assert set(answered[20:]) == {500}


def test_missing_pictures_stop_after_everything_else_is_answered(root: Path, cli: Cli) -> None:
    gone = root / "coco/val2014/COCO_val2014_000000000503.png"
    content = gone.read_bytes()
    gone.unlink()
    result = cli(*FAST, "--data-root", root, "--out", "run")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "4 queries could not be answered" in result.stderr
    assert f"{gone} does not exist" in result.stderr
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
    whole = cli(*arguments)
    journal = Path("run/journal.jsonl")
    lines = journal.read_bytes()
    journal.write_bytes(lines[: len(lines) // 2 + 7])
    resumed = cli(*arguments)
    assert "ended in the middle of a line; that answer is dropped" in resumed.stderr
    assert resumed.stdout == whole.stdout
    assert sorted(journal.read_bytes().splitlines()) == sorted(lines.splitlines())


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


def test_two_runs_into_one_folder(root: Path, cli: Cli) -> None:
    Path("run").mkdir()
    holder = """
import fcntl, time
lock = open("run/.lock", "w")
lock.write('{"host": "h", "process": 7, "since": "noon"}')
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
        assert "run is in use by another run (host h, process 7, since noon)" in result.stderr
    finally:
        process.kill()
        process.communicate()
    assert cli(*FAST, "--data-root", root, "--out", "run").returncode == 0, "a dead run's lock does not last"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coco", "--checkpoint", "scripted", "--data-root", "nowhere"), "nowhere is not a folder"),
        (("coco", "--checkpoint", "scripted", "--data-root", "."), "coco is not a folder; coco is read from"),
        (("coco", "--checkpoint", "openflamingo-4b", "--data-root", "."), "unknown checkpoint"),
        (("plan", "cocoa"), "unknown benchmark 'cocoa'; known benchmarks: coco, flickr30k, "),
        (("coco", "--shots", "four"), "--shots 'four': give whole numbers from 0 to 10000"),
        (("coco", "--shots", "-1"), "--shots '-1'"),
        (("coco", "--seeds", "x"), "--seeds 'x'"),
        (("coco", "--seeds", "4294967296"), "give whole numbers from 0 to 4294967295"),
        (("coco", "--checkpoint", "scripted", "--data-root", ""), "--data-root is empty"),
        (("coco", "--checkpoint", "", "--data-root", "data"), "--checkpoint is empty"),
        (("coco", "--checkpoint", "scripted", "--data-root", "data", "--out", ""), "--out is empty"),
        (("coco", "--protocol", "mine"), "coco has no protocol 'mine'; it has: openflamingo, official"),
        (("coco", "--split", "train", "--checkpoint", "scripted", "--data-root", "data"), "coco has no split 'train'; it has: test, val"),
        (("hateful-memes", "--protocol", "openflamingo-2023-06"), "that harness is defective here"),
        (("coco", "--format", "pdf"), "unknown format 'pdf'"),
        (("coco", "--checkpoint", "scripted"), "--checkpoint scripted is given, but no data: add --data-root"),
        (("coco", "--data-root", "."), "--data-root . is given, but no checkpoint: add --checkpoint"),
        (("coco", "--shots", "0", "--checkpoint", "no.toml", "--data-root", "data"), "can't read checkpoint file"),
        (("report", "nowhere"), "nowhere is not a run folder"),
        (("list", "models"), "nothing to list under 'models'; known: benchmarks, checkpoints"),
        (("--config", "none.toml", "list"), "can't read none.toml"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("root")
def test_mistakes_get_one_message_and_exit_code_2(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    result = cli(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_unknown_checkpoints_are_refused_with_the_known_ones(root: Path, cli: Cli) -> None:
    err = cli("coco", "--checkpoint", "x", "--data-root", root).stderr
    for name in ("demo", "openflamingo/OpenFlamingo-4B-vitl-rpj3b", "scripted", "TOML"):
        assert name in err


def test_too_many_shots(root: Path, cli: Cli) -> None:
    result = cli(*FAST[:1], "--shots", "16", *FAST[5:], "--data-root", root)
    assert result.returncode == 2
    assert "16 demonstrations asked for, but the pool holds 12" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("bogus",), ("coco", "--bogus"), ("coco", "--num-samples", "abc"), ("coco", "--trials", "0"), ("plan",)],
)
def test_usage_errors_end_with_2_and_no_traceback(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "Usage: flamingo-eval" in result.stderr + result.stdout


def test_other_ways_of_reading_the_same_files_are_another_run(root: Path, cli: Cli) -> None:
    """Demonstrations from another split change every answer, though no file has changed."""
    assert cli(*FAST, "--data-root", root, "--out", "run").returncode == 0
    Path("flamingo-eval.toml").write_text('[coco.data]\ntrain = "restval"\n')
    changed = cli("coco", "--shots", "1", "--seeds", "42", *FAST[5:], "--data-root", root, "--out", "run")
    assert changed.returncode == 2
    assert "coco reading is" in changed.stderr


def test_a_finished_run_does_not_need_its_pictures(root: Path, cli: Cli) -> None:
    first = cli(*FAST, "--data-root", root, "--out", "run")
    for picture in (root / "coco" / "val2014").iterdir():
        picture.unlink()
    again = cli(*FAST, "--data-root", root, "--out", "run")
    assert again.returncode == 0
    assert again.stdout == first.stdout


def test_an_extended_run_still_shows_what_is_finished(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    (root / "coco/val2014/COCO_val2014_000000000503.png").unlink()
    assert cli("coco", "--shots", "4", *FAST[3:], "--data-root", root, "--out", "run").returncode == 2
    for command in (("report", "run"), ("score", "run"), ("samples", "run")):
        result = cli(*command)
        assert result.returncode == 2, "something is missing"
        assert "answers are missing in 2 trials (coco, 4 shots, seed 42; coco, 4 shots, seed 43)" in result.stderr
        assert "0 shots" in result.stdout or '"shots": 0' in result.stdout, "what is there is shown"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", '{"format": 1}'),
        ("run.json", '{"format": 99}'),
        ("run.json", "[]"),
        ("run.json", "{"),
        ("scores.json", '{"format": 1, "notes": [], "cells": [{"benchmark": "coco"}]}'),
        ("scores.json", "null"),
        ("scores.jsonl", "{"),
        ("scores.jsonl", None),
        ("journal.jsonl", "[]\n"),
    ],
)
def test_damaged_run_folders_get_a_message(root: Path, cli: Cli, name: str, content: str | None) -> None:
    cli("coco", "--shots", "1", "--seeds", "42", *FAST[5:], "--data-root", root, "--out", "run")
    Path("run", name).unlink()
    if content is not None:
        Path("run", name).write_text(content)
    for command in ("report", "samples", "score"):
        result = cli(command, "run")
        if result.returncode:
            assert result.returncode == 2
            assert result.stderr.startswith("error: run/")
    assert (cli("score", "run").returncode == 0) == name.startswith("scores"), "scores are made again, answers are not"


def test_trials_on_the_command_line_beat_seeds_of_the_file(root: Path, cli: Cli) -> None:
    Path("flamingo-eval.toml").write_text("seeds = [7, 8]\n")
    arguments = ("plan", "coco", "--shots", "1", "--data-root", root)
    assert [line.split()[4] for line in cli(*arguments).stdout.splitlines()] == ["7:", "8:"]
    assert "seed 42" in cli(*arguments, "--trials", "1").stdout


def test_a_benchmarks_section_is_for_its_plan_too(root: Path, cli: Cli) -> None:
    Path("flamingo-eval.toml").write_text("trials = 1\n[coco]\nshots = [1]\nnum-samples = 3\n")
    assert cli("plan", "coco", "--data-root", root).stdout.splitlines() == [
        "coco  1 shots  seed 42: 3 queries, 6 pictures"
    ]


def test_a_file_is_no_run_folder(root: Path, cli: Cli) -> None:
    result = cli(*FAST, "--data-root", root, "--out", root / "coco" / "dataset_coco.json")
    assert result.returncode == 2
    assert "dataset_coco.json is a file; a run is saved in a folder" in result.stderr


def test_all_queries_by_number_are_all_queries(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    same = cli(*FAST, "--data-root", root, "--out", "run", "--num-samples", "5")
    assert same.returncode == 0
    assert "answering" not in same.stderr


def test_files_get_the_usual_permissions(root: Path, cli: Cli) -> None:
    cli(*FAST, "--data-root", root, "--out", "run")
    assert len({path.stat().st_mode for path in Path("run").iterdir() if path.name != ".lock"}) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_a_storage_error() -> None:
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m flamingo_eval list > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3
    assert "can't write the output: No space left on device" in result.stderr


def test_debug_shows_the_traceback(cli: Cli) -> None:
    for arguments in (("--debug", "report", "nowhere"), ("report", "nowhere", "--debug")):
        result = cli(*arguments)
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert "error: nowhere is not a run folder" in result.stderr


def test_options_come_from_flags_then_environment_then_file(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("flamingo-eval.toml").write_text(
        f'checkpoint = "scripted"\ndata-root = "{root}"\ntrials = 1\n[coco]\nshots = [1, 2]\n', encoding="utf-8"
    )

    def shots(text: str) -> list[str]:
        return [word for word in text.splitlines()[0].split() if word.isdigit()]

    assert shots(cli("coco").stdout) == ["1", "2"]
    monkeypatch.setenv("FLAMINGO_EVAL_SHOTS", "3")
    assert shots(cli("coco").stdout) == ["3"]
    assert shots(cli("coco", "--shots", "4").stdout) == ["4"]


def test_files_can_be_named_otherwise(root: Path, cli: Cli) -> None:
    (root / "coco" / "dataset_coco.json").rename(root / "coco" / "karpathy.json")
    arguments = ("plan", "coco", "--shots", "1", "--seeds", "42", "--data-root", root)
    assert "dataset_coco.json does not exist" in cli(*arguments).stderr
    Path("flamingo-eval.toml").write_text('[coco.data]\nannotations = "karpathy.json"\n')
    result = cli(*arguments)
    assert result.returncode == 0
    assert "5 queries" in result.stdout
    Path("flamingo-eval.toml").write_text('[coco.data]\nannotation = "karpathy.json"\n')
    assert "unknown data setting 'annotation' for coco; known settings: annotations, " in cli(*arguments).stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("shots = ", "flamingo-eval.toml is not TOML"),
        ("shotz = 4", "unknown key 'shotz' in the top level; known keys: shots"),
        ("[cocoa]", "unknown section [cocoa]; benchmarks: coco, "),
        ("[coco]\nshotz = 4", "unknown key 'shotz' in [coco]"),
    ],
)
def test_broken_configuration(cli: Cli, content: str, message: str) -> None:
    Path("flamingo-eval.toml").write_text(content)
    result = cli("list")
    assert result.returncode == 2
    assert message in result.stderr


def test_data_where_shows_what_is_there(root: Path, cli: Cli) -> None:
    out = cli("data", "where", "coco", "--data-root", root).stdout
    assert "found    dataset_coco.json" in out
    assert "missing  annotations/captions_val2014.json" in out


def test_a_closed_pipe_is_no_error(root: Path) -> None:
    command = f"{sys.executable} -m flamingo_eval plan coco --shots 4 --json --data-root {root} | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 1, "the note about the pool, and no complaint"
    assert json.loads(result.stdout)["shots"] == 4


def test_nothing_heavy_is_imported_before_it_is_needed(root: Path) -> None:
    run_cli(*FAST, "--data-root", root, "--out", "run")
    commands = [
        ["--help"], ["--version"], ["list"], ["coco", "--help"], ["report", "run"], ["score", "run"],
        ["plan", "coco", "--shots", "4", "--json", "--data-root", str(root)],
        ["samples", "run"], [*FAST, "--data-root", str(root), "--out", "run"],
    ]  # fmt: skip
    probe = """
import json, sys
from flamingo_eval.cli.main import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, (command, stop.code)
    heavy = [name for name in ("torch", "transformers", "open_clip", "pandas", "nltk", "sklearn") if name in sys.modules]
    assert not heavy, (command, heavy)
"""
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", probe, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < len(commands), "about a second each, at the very most"
