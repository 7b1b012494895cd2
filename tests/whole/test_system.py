"""The system around a run: links, pipes, lost journals, locks, kills, clocks, memory; and what a host gets back."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flamingo_eval.core.errors import DataError, StorageError
from flamingo_eval.core.reading import many_objects
from flamingo_eval.storage.files import open_atomic
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.vectors import FeatureStore
from tests.support.helpers import FAST, Cli, read_lines, run_cli, run_scripted


@pytest.mark.slow
@pytest.mark.parametrize("name", [".lock", "journal.jsonl", ".claims", "run.json", "scores.json", "scores.jsonl"])
def test_nothing_is_written_through_a_link(root: Path, cli: Cli, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    run_scripted(cli, root)
    path = Path("run") / name
    path.unlink()
    path.symlink_to(victim)
    for command in (("score", "run"), (*FAST, "--data-root", root, "--out", "run"), ("runs", "."), ("report", "run")):
        result = cli(*command)
        assert "Traceback" not in result.stderr
        assert victim.read_text() == "years of work", command
        if name == ".lock" and command[0] in ("score", "coco"):
            assert result.returncode == 3
            assert ".lock: it is a link, and nothing is written through links" in result.stderr


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", "run.json", "scores.jsonl", "scores.json", "failures.json"])
def test_a_pipe_in_place_of_one_of_our_files_is_refused(root: Path, cli: Cli, name: str) -> None:
    run_scripted(cli, root)
    path = Path("run") / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for command in (("samples", "run"), ("show", "run", "--query", "500"), ("runs", "."), ("score", "run"),
                    (*FAST, "--data-root", root, "--out", "run")):  # fmt: skip
        result = cli(*command)
        assert result.returncode in (0, 2, 3), result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["report", "compare", "check", "samples", "show", "plot"])
def test_a_pipe_in_place_of_the_scored_answers_hangs_no_reader(root: Path, cli: Cli, command: str) -> None:
    run_scripted(cli, root)
    Path("run/scores.jsonl").unlink()
    os.mkfifo("run/scores.jsonl")
    more = {"compare": ("run",), "check": ("--baseline", "run"), "show": ("--query", "500"), "plot": ("--out", "p.svg"),
            "report": ("--intervals",)}  # fmt: skip
    result = cli(command, "run", *more.get(command, ()))
    assert result.returncode == 2, result.stderr
    assert "not a regular file" in result.stderr


def test_pipes_and_devices_are_written_into(root: Path, cli: Cli) -> None:
    import threading

    run_scripted(cli, root)
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    reader.start()
    assert cli("samples", "run", "--out", "pipe").returncode == 0
    reader.join()
    assert len(read[0].splitlines()) == 20
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert cli("check", "run", "--baseline", "run", "--junit", "/dev/null").returncode == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    Path("folder").mkdir()
    assert cli("samples", "run", "--out", "folder").returncode == 3


def test_half_written_files_of_others_stay(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    Path("run/.movie.mp4.partial").write_text("mine")
    Path("run/.scores.json.x7.partial").write_text("ours")
    assert cli("score", "run").returncode == 0
    assert {path.name for path in Path("run").glob(".*.partial")} == {".movie.mp4.partial"}


def test_a_store_is_not_written_through_links(tmp_path: Path) -> None:
    import numpy as np

    victim = tmp_path / "thesis.txt"
    for name in (".lock", "index.txt", "vectors.f32"):
        victim.write_text("years of work")
        store = FeatureStore(tmp_path / name, "e")
        (tmp_path / name).mkdir()
        (tmp_path / name / name).symlink_to(victim)
        with pytest.raises(StorageError, match="it is a link"), store.building():
            store.append(["a"], np.ones((1, 3), np.float32), {})
        assert victim.read_text() == "years of work"


def test_a_store_without_locks_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(StorageError, match=r"can't be locked .*FLAMINGO_EVAL_CACHE"),
        FeatureStore(tmp_path, "e").building(),
    ):
        pytest.fail("it was held")


def test_a_host_keeps_its_garbage_collector() -> None:
    before = gc.get_freeze_count(), gc.isenabled()
    with many_objects():
        assert not gc.isenabled()
    assert (gc.get_freeze_count(), gc.isenabled()) == before


@pytest.mark.torch
def test_loading_leaves_transformers_as_it_was() -> None:
    from transformers.utils import logging as theirs

    import flamingo_eval

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    flamingo_eval.load_model("demo", device="cpu")
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("command", ["run", "controls", "bench"])
def test_the_model_is_closed_whatever_ends_a_command(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from flamingo_eval.models.scripted import ScriptedModel

    run_scripted(cli, root)
    closed = []

    def answer(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedModel, "answer", answer)
    monkeypatch.setattr(ScriptedModel, "close", lambda _: closed.append(1))
    arguments = {"run": (*FAST, "--data-root", root, "--out", "other"), "controls": ("controls", "run", "--only", "blind"),
                 "bench": ("bench", "coco", "--shots", "0", "--checkpoint", "scripted", "--data-root", root)}[command]  # fmt: skip
    assert cli(*arguments).returncode == 130
    assert closed == [1]


def test_what_a_killed_writer_left_is_cleared_away(root: Path, cli: Cli, tmp_path: Path) -> None:
    run_scripted(cli, root)
    script = ("import os, sys\nfrom pathlib import Path\nfrom flamingo_eval.storage.files import open_atomic\n"
              "with open_atomic(Path(sys.argv[1])) as file:\n    file.write(b'half')\n    file.flush()\n    os._exit(9)\n")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script, "run/scores.json"], check=False, env=environment)
    assert len(list(Path("run").glob(".*.partial"))) == 1
    assert cli("score", "run").returncode == 0
    assert not list(Path("run").glob(".*.partial"))
    with pytest.raises(ZeroDivisionError), open_atomic(tmp_path / "x") as file:
        file.write(bytes(1 // 0))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_two_commands_into_one_folder(root: Path, cli: Cli) -> None:
    """The second is refused while the first holds it, and afterwards where its settings differ."""
    with RunFolder(Path("run")).lock():
        result = cli(*FAST, "--data-root", root, "--out", "run")
        assert result.returncode == 2
        assert "is in use by another run" in result.stderr
    run_scripted(cli, root)
    result = cli(*FAST, "--data-root", root, "--out", "run", "--num-samples", "3")
    assert result.returncode == 2
    assert "holds a run with other settings" in result.stderr


def test_a_run_moved_or_copied_is_the_same_run(root: Path, cli: Cli) -> None:

    first = run_scripted(cli, root, "run", "--format", "json").stdout
    shutil.copytree("run", "copy")
    Path("run").rename("moved")
    for name in ("copy", "moved"):
        again = run_scripted(cli, root, name, "--format", "json").stdout
        assert json.loads(again)["cells"] == json.loads(first)["cells"]
        assert len(read_lines(Path(name, "journal.jsonl"))) == 20, "nothing is asked again"


def test_clocks_that_jump_change_nothing(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    import flamingo_eval.storage.run_folder as folder

    first = run_scripted(cli, root, "run", "--format", "json").stdout
    for path in Path("run").iterdir():
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(folder, "now", lambda: "1970-01-01T00:00:00+00:00")
    again = run_scripted(cli, root, "run", "--format", "json").stdout
    assert json.loads(again)["cells"] == json.loads(first)["cells"]
    listed = cli("runs", ".")
    assert listed.returncode == 0
    assert "complete" in listed.stdout


def test_a_broken_journal_under_a_finished_run_is_named(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    Path("run/journal.jsonl").write_bytes(b"\0" * 100 + b"\n")
    with pytest.raises(DataError, match="line 1: not a line of a journal"):
        Journal(Path("run/journal.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "result"),
    [
        (("score", "run"), "run/scores.json"),
        (("samples", "run", "--out", "s.jsonl"), "s.jsonl"),
        (("check", "run", "--baseline", "b.json", "--update"), "b.json"),
        (("controls", "run", "--only", "blind"), "run/controls/blind.jsonl"),
        (("report", "run"), "run/scores.json"),
    ],
)
def test_commands_killed_anywhere_give_the_same_afterwards(
    root: Path, cli: Cli, command: tuple[str, ...], result: str
) -> None:
    """Killed at ten moments; what is there then is the old file or the new one, and the command given again is whole."""
    import random
    import signal
    import time

    def content(path: Path) -> object:
        text = path.read_text()
        return sorted(text.splitlines()) if path.suffix == ".jsonl" else {**json.loads(text), "written": None}

    run_scripted(cli, root)
    began = time.monotonic()
    assert run_cli(*command).returncode == 0
    full, seconds = content(Path(result)), time.monotonic() - began
    draw = random.Random(0)
    for _ in range(10):
        if result.startswith(("s.", "b.", "run/controls")) and draw.random() < 0.5:
            Path(result).unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-m", "flamingo_eval", *command], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL,
                                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
        time.sleep(draw.uniform(0.3, 1.1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not result.endswith("blind.jsonl"):
            assert not Path(result).exists() or content(Path(result)) == full
    assert run_cli(*command).returncode == 0
    assert content(Path(result)) == full
    assert cli("report", "run").returncode == 0
    assert not list(Path("run").glob(".*.partial")) or command[0] in ("samples", "check", "report")


@pytest.mark.slow
def test_demo_data_killed_while_it_is_written_is_complete_afterwards(tmp_path: Path) -> None:
    import signal
    import time

    cache = tmp_path / "cache"
    command = [sys.executable, "-c", "from flamingo_eval.demo.data import demo_data_root; print(demo_data_root())"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "FLAMINGO_EVAL_CACHE": str(cache)}
    for seconds in (0.5, 1.5, 3.0):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert (folder / "imagenet/class_names.json").is_file()
    assert run_cli("coco", "--checkpoint", "scripted", "--data-root", folder, "--shots", "0", "--seeds", "42",
                   "--num-samples", "5", "--out", tmp_path / "run").returncode == 0  # fmt: skip


@pytest.mark.slow
def test_hundred_megabytes_in_one_string(root: Path, cli: Cli) -> None:
    file = root / "coco/dataset_coco.json"
    file.write_text(file.read_text().replace('"a thing 500"', json.dumps("x" * 100_000_000)))
    result = cli("data", "check", "coco", "--data-root", root)
    assert result.returncode == 2
    assert "published are" in result.stderr + result.stdout
    assert len(result.stderr) < 10_000


@pytest.mark.slow
@pytest.mark.torch
def test_little_memory_is_a_message_and_no_loop(root: Path) -> None:
    """Under an address space that the weights do not fit into."""
    command = (
        f"ulimit -v 1500000; CLI coco --checkpoint demo --data-root {root} --shots 0 --seeds 42 --device cpu --out r"
    )
    result = subprocess.run(["bash", "-c", command.replace("CLI", f"{sys.executable} -m flamingo_eval")],
                            capture_output=True, text=True, check=False, timeout=200,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert re.search("error: (there is not enough memory|a library can't be loaded): ", result.stderr)
    assert "Traceback" not in result.stderr


def test_another_precision_or_device_on_resume(root: Path, cli: Cli) -> None:
    """The precision is part of what a run is, the device is not."""
    run_scripted(cli, root)
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**record, "identity": {**record["identity"], "precision": "bf16"}}))
    result = cli(*FAST, "--data-root", root, "--out", "run")
    assert result.returncode == 2
    assert "precision is fp32 here, bf16 in that run" in result.stderr


def test_settings_that_never_led_to_an_answer_do_not_hold_the_folder(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that does not load, mended, is another checkpoint: the same command must then go on."""
    from flamingo_eval.core.errors import CheckpointError
    from flamingo_eval.models.scripted import ScriptedSource

    def load(*_: object, **__: object) -> None:
        raise CheckpointError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(ScriptedSource, "load", load)
        assert cli(*FAST, "--data-root", root, "--out", "run", "--num-samples", "3").returncode == 2
    assert Path("run/run.json").exists()
    run_scripted(cli, root)
    Path("run/journal.jsonl").unlink()
    result = cli(*FAST, "--data-root", root, "--out", "run", "--num-samples", "3")
    assert result.returncode == 2, "a scored run is never taken for an empty one"
    assert "holds a run with other settings" in result.stderr


@pytest.mark.torch
def test_loading_draws_no_random_numbers_of_the_hosts_and_logs_nowhere() -> None:
    script = ("import logging, torch, flamingo_eval\nfrom flamingo_eval.core import registry\n"
              "from flamingo_eval.core.images import Images\nfrom pathlib import Path\n"
              "torch.manual_seed(1)\nbefore = torch.get_rng_state()\nflamingo_eval.load_model('demo', device='cpu')\n"
              "registry.image_encoder('demo', None).load('cpu')\n"
              "assert torch.equal(before, torch.get_rng_state())\nassert logging.getLogger().handlers == []\n")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_commit_recorded_is_this_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flamingo_eval.engine import identity as record

    record.git_commit.cache_clear()
    before = record.git_commit()
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    record.git_commit.cache_clear()
    assert record.git_commit() == before
