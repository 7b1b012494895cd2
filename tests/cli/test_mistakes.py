"""The command line with mistakes, damaged folders, options from elsewhere, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import FAST, Cli, run_cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coco", "--checkpoint", "scripted", "--data-root", "nowhere"), "nowhere is not a folder"),
        (("coco", "--checkpoint", "scripted", "--data-root", "."), "coco is not a folder; coco is read from"),
        (("coco", "--checkpoint", "openflamingo-4b", "--data-root", "."), "unknown checkpoint"),
        (("plan", "cocoa"), "unknown benchmark 'cocoa' (did you mean coco?); known benchmarks: coco, flickr30k, "),
        (("coco", "--shots", "four"), "--shots 'four': give integers from 0 to 10000"),
        (("coco", "--shots", "-1"), "--shots '-1'"),
        (("coco", "--seeds", "x"), "--seeds 'x'"),
        (("coco", "--seeds", "4294967296"), "give integers from 0 to 4294967295"),
        (("coco", "--checkpoint", "scripted", "--data-root", ""), "--data-root is empty"),
        (("coco", "--checkpoint", "", "--data-root", "data"), "--checkpoint is empty"),
        (("coco", "--checkpoint", "scripted", "--data-root", "data", "--out", ""), "--out is empty"),
        (("coco", "--protocol", "mine"), "coco has no protocol 'mine'; it has: openflamingo, official"),
        (("coco", "--split", "train", "--checkpoint", "scripted", "--data-root", "data"), "coco has no split 'train'; it has: test, val"),
        (("hateful-memes", "--protocol", "openflamingo-2023-06"), "that harness is defective here"),
        (("coco", "--format", "pdf"), "--format 'pdf': give table, markdown, csv, json, latex or html"),
        (("coco", "--num-samples", "abc"), "--num-samples 'abc': give an integer from 1 on"),
        (("coco", "--trials", "0"), "--trials '0': give an integer from 1 to 1000"),
        (("coco", "--on-error", "go"), "--on-error 'go': give stop or skip"),
        (("coco", "--checkpoint", "scripted"), "--checkpoint scripted is given, but no data: add --data-root"),
        (("coco", "--data-root", "."), "--data-root . is given, but no checkpoint: add --checkpoint"),
        (("coco", "--shots", "0", "--checkpoint", "no.toml", "--data-root", "data"), "no.toml does not exist; a checkpoint is described by a TOML file"),
        (("report", "nowhere"), "nowhere is not a run folder"),
        (("list", "models"), "nothing to list under 'models'; known: benchmarks, checkpoints"),
        (("--config", "none.toml", "list"), "none.toml does not exist"),
        (("coco", "--seeds", "1,2", "--trials", "3"), "--seeds and --trials both choose the trials: give one of them"),
        (("plan", "coco", "--json", "--tokens"), "--json, --tokens and --manifest exclude each other"),
        (("plan", "coco", "--json", "--manifest", "m"), "--json, --tokens and --manifest exclude each other"),
        (("score", "coco", "--predictions", "p", "--shots", "3"), "--shots needs --out"),
        (("score", "coco", "--predictions", "p", "--num-samples", "3"), "--num-samples needs --out"),
        (("score", "coco", "--predictions", "p", "--out", "o", "--per-item", "i"), "--per-item has no effect with --out"),
        (("check", "r", "--baseline", "b", "--update", "--junit", "j"), "--junit has no effect with --update"),
        (("check", "r", "--baseline", "b", "--update", "--max-drop", "1"), "--max-drop has no effect with --update"),
        (("show", "r", "--shots", "4"), "--shots needs --query"),
        (("show", "r", "--all"), "--all needs --query"),
        (("plot", "r", "--deviations"), "--intervals/--deviations needs --out"),
        (("view", "r", "--bundle", "b", "--port", "1"), "--port has no effect with --bundle"),
        (("data", "prepare", "--from-manifest", "m", "--copy"), "--copy has no effect with --from-manifest"),
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
    [(), ("bogus",), ("coco", "--bogus"), ("features", "coco", "--shots", "1"), ("plan",)],
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


def test_a_finished_run_does_not_need_its_images(root: Path, cli: Cli) -> None:
    first = cli(*FAST, "--data-root", root, "--out", "run")
    for image in (root / "coco" / "val2014").iterdir():
        image.unlink()
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


@pytest.mark.slow
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
        "coco  1 shots  seed 42: 3 queries, 6 images"
    ]


def test_seeds_of_the_file_give_way_to_trials_of_the_environment(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is given in one place excludes each other."""
    Path("flamingo-eval.toml").write_text("seeds = [1, 2]\n")
    monkeypatch.setenv("FLAMINGO_EVAL_TRIALS", "1")
    plan = ("plan", "coco", "--data-root", root, "--shots", "2", "--num-samples", "3")
    assert [line.split()[4] for line in cli(*plan).stdout.splitlines()] == ["42:"]
    assert [line.split()[4] for line in cli(*plan, "--seeds", "7").stdout.splitlines()] == ["7:"]


def test_switches_are_shown_without_a_value(cli: Cli) -> None:
    shown = cli("coco", "--help").stdout
    for switch in ("--fresh", "--plain", "--offline"):
        [line] = [line for line in shown.splitlines() if f" {switch} " in line]
        assert "<bool>" not in line


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


@pytest.mark.slow
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
        ("shots = ", "flamingo-eval.toml is not a TOML file"),
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
    assert "absent   annotations/captions_val2014.json" in out


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(root: Path) -> None:
    command = f"{sys.executable} -m flamingo_eval plan coco --shots 4 --json --data-root {root} | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert len(result.stderr.splitlines()) == 1, "the note about the pool, and no complaint"
    assert json.loads(result.stdout)["shots"] == 4


@pytest.mark.slow  # four processes
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
    result = subprocess.run(
        [sys.executable, "-c", probe, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_help_by_one_letter_and_completion_of_commands(cli: Cli) -> None:
    assert cli("coco", "-h").stdout == cli("coco", "--help").stdout
    result = run_cli(
        env={"_FLAMINGO_EVAL_COMPLETE": "complete_bash", "COMP_WORDS": "flamingo-eval fl", "COMP_CWORD": "1"}
    )
    assert result.returncode == 0
    assert result.stdout.split() == ["flickr30k"]
