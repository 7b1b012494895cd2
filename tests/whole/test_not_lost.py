"""Runs that are killed, on one process or many, lose the batch in flight and nothing else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.run_settings import Process
from flamingo_eval.storage.claims import Claims, process_from
from tests.support.helpers import Cli, read_lines, write_coco_root

DRIVER = Path(__file__).parents[1] / "support" / "driver.py"
BATCH = 4
SCRIPTED = ("run", "coco", "--checkpoint", "scripted", "--shots", "0,2", "--seeds", "42,43", "--batch-size", str(BATCH))
DEMO = ("run", "coco", "vqav2", "hateful-memes", "--shots", "0,4", "--trials", "8", "--num-samples", "24", "--batch-size",
        str(BATCH), "--device", "cpu")  # fmt: skip
QUERIES = 3 * 2 * 8 * 24
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


class Starter:
    """Starts commands on one run folder, with every batch noted."""

    def __init__(self, folder: Path, arguments: tuple[str | Path, ...], pause: float) -> None:
        self.run, self.asked = folder / "run", folder / "asked.txt"
        self._arguments = [*map(str, arguments), "--out", str(self.run)]
        self._environment = {**os.environ, "ASKED": str(self.asked), "PAUSE": str(pause), "OMP_NUM_THREADS": "1",
                             "PYTHONPATH": str(DRIVER.parents[2])}  # fmt: skip

    def start(self, *more: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen[str]:
        return subprocess.Popen([*launcher, str(DRIVER), *self._arguments, *more], env=self._environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip

    def finish(self, *more: str, launcher: tuple[str, ...] = (sys.executable,)) -> str:
        process = self.start(*more, launcher=launcher)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out

    def batches(self) -> list[int]:
        return [int(line) for line in self.asked.read_text(encoding="ascii").split()] if self.asked.exists() else []

    def wait_for_batches(self, count: int, *processes: subprocess.Popen[str]) -> None:
        """Until so many batches have been asked in all, or a process has ended by itself."""
        deadline = time.monotonic() + 120
        while len(self.batches()) < count and all(p.poll() is None for p in processes):
            assert time.monotonic() < deadline, "nothing happens"
            time.sleep(0.005)


def kill(process: subprocess.Popen[str]) -> None:
    """The process and all it started, without warning."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def journal_rows(run: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(run.glob("journal*.jsonl")) for row in read_lines(file)]


def slot(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("benchmark", "shots", "seed", "query_id"))


def samples_of(run: Path, cli: Cli) -> list[dict[str, Any]]:
    result = cli("samples", run)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_same(run: Path, full: Path, cli: Cli) -> None:
    """The same plan, texts and scores to the last letter; log-likelihoods, which batches round, nearly."""
    ours, theirs = samples_of(run, cli), samples_of(full, cli)
    for one, other in zip(ours, theirs, strict=True):
        a, b = one.pop("class_logprobs", None), other.pop("class_logprobs", None)
        assert (a is None) == (b is None)
        if a is not None:
            assert a == pytest.approx(b, abs=1e-4)
    assert json.dumps(ours) == json.dumps(theirs)
    cells = [json.loads((folder / "scores.json").read_text())["cells"] for folder in (run, full)]
    for one, other in zip(*cells, strict=True):
        ranked = one["metric"].startswith("ROC")
        assert one == other if not ranked else one["mean"] == pytest.approx(other["mean"], abs=0.5)


def assert_once(run: Path, queries: int) -> None:
    counts = Counter(map(slot, journal_rows(run)))
    assert len(counts) == queries
    assert set(counts.values()) == {1}, "every query is answered exactly once"


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco_root(tmp_path_factory.mktemp("data"), train=20, test=60)


def test_who_a_process_is() -> None:
    assert process_from({}, None) == Process(0, 1, 0)
    assert process_from({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, None) == Process(5, 8, 1)
    assert process_from({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "2"}, None) == Process(2, 4, 2)
    assert process_from({"RANK": "5", "WORLD_SIZE": "8"}, "1/2") == Process(1, 2, 1)
    for wrong in ("2/2", "a/b", "1", "-1/2", "0/0"):
        with pytest.raises(UserError, match="give RANK/COUNT"):
            process_from({}, wrong)
    for environment in ({"RANK": "8", "WORLD_SIZE": "8"}, {"RANK": "x", "WORLD_SIZE": "8"}):
        with pytest.raises(UserError, match="make no sense"):
            process_from(environment, None)


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    code = f"""
from pathlib import Path
from flamingo_eval.storage.claims import Claims
claims = Claims(Path({str(tmp_path / "claims")!r}))
print(claims.take("a"), claims.take("b"), flush=True)
claims.release("b")
input()
"""
    assert claims.take("b")
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline().split() == ["True", "False"]
    assert not claims.take("a")
    other.kill()
    other.communicate()
    assert claims.take("a")
    claims.close()


@pytest.mark.slow
def test_two_processes_share_a_run(coco: Path, tmp_path: Path, cli: Cli) -> None:
    """Each query once, in one of two journals; the first process shows the table that one alone would show."""
    starter = Starter(tmp_path, (*SCRIPTED, "--data-root", coco), pause=0.004)
    second = starter.start("--process", "1/2")
    out = starter.finish("--process", "0/2")
    second_out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert second_out == ""
    assert_once(starter.run, 240)
    assert {file.name for file in starter.run.glob("journal*")} == {"journal.jsonl", "journal-1.jsonl"}
    assert sum(starter.batches()) == 240, "nothing was asked twice"
    alone = cli(*SCRIPTED, "--data-root", coco, "--out", "whole")
    assert out.split("\n\nrun saved")[0] == alone.stdout.split("\n\nrun saved")[0]
    assert_same(starter.run, Path("whole"), cli)
    sessions = json.loads((starter.run / "run.json").read_text())["sessions"]
    assert sorted(session["rank"] for session in sessions) == [0, 1]
    assert sum(session["answered"] for session in sessions) == 240
    assert all(session["end"] for session in sessions)


@pytest.mark.slow
def test_who_may_join(coco: Path, tmp_path: Path, cli: Cli) -> None:
    """One alone keeps others out; of processes that share a run each number may be there once."""
    starter = Starter(tmp_path, (*SCRIPTED, "--data-root", coco), pause=0.2)
    for first, refused in ((("--process", "1/2"), ("0/1", "1/2")), ((), ("0/1", "1/2"))):
        running = starter.start(*first)
        starter.wait_for_batches(len(starter.batches()) + 1, running)
        for process in refused:
            result = cli(*SCRIPTED, "--data-root", coco, "--out", starter.run, "--process", process)
            assert result.returncode == 2
            assert (
                f"is in use by another run (host {os.uname().nodename}, process {running.pid}, since" in result.stderr
            )
        listed = cli("runs", tmp_path, "--format", "json")
        state = json.loads(listed.stdout)[0]
        assert state["state"] == "running"
        assert f"process {running.pid}" in state["holder"]
        assert state["planned"] == 240
        kill(running)
    assert json.loads(cli("runs", tmp_path, "--format", "json").stdout)[0]["state"] == "unfinished"
    assert cli(*SCRIPTED, "--data-root", coco, "--out", starter.run).returncode == 0
    state = json.loads(cli("runs", tmp_path, "--format", "json").stdout)[0]
    assert (state["state"], state["answered"]) == ("complete", 240)
    assert "240/240 (100%)" in cli("runs", tmp_path).stdout
    assert "--fresh is for one process" in cli(
        *SCRIPTED, "--data-root", coco, "--out", starter.run, "--process", "0/2", "--fresh"
    ).stderr  # fmt: skip


@pytest.mark.slow
def test_sigterm_ends_in_good_order(coco: Path, tmp_path: Path) -> None:
    starter = Starter(tmp_path, (*SCRIPTED, "--data-root", coco), pause=0.05)
    process = starter.start()
    starter.wait_for_batches(3, process)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert json.loads((starter.run / "run.json").read_text())["sessions"][0]["end"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.long)])
def test_three_processes_killed_many_times(coco: Path, tmp_path: Path, cli: Cli, times: int) -> None:
    """One of them or all; at last one dies, and the living take up what it had claimed."""
    draw = random.Random(5)
    arguments = (*SCRIPTED, "--data-root", coco, "--seeds", "42,43,44,45,46,47,48,49")
    starter = Starter(tmp_path, arguments, pause=0.05)
    lost = 0
    for _ in range(times):
        processes = [starter.start("--process", f"{rank}/3") for rank in range(3)]
        starter.wait_for_batches(len(starter.batches()) + draw.randrange(1, 6), *processes)
        victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
        lost += len(victims)
        for victim in victims:
            kill(victim)
        for survivor in (p for p in processes if p not in victims):
            kill(survivor)
            lost += 1
    assert len(journal_rows(starter.run)) < 900
    processes = [starter.start("--process", f"{rank}/3") for rank in range(3)]
    starter.wait_for_batches(len(starter.batches()) + 3, *processes)
    kill(processes[1])
    for survivor in (processes[0], processes[2]):
        assert survivor.communicate(timeout=60)
        assert survivor.returncode == 0
    assert_once(starter.run, 960)
    assert sum(starter.batches()) <= 960 + (lost + 1) * BATCH
    cli(*arguments, "--out", "whole")
    assert_same(starter.run, Path("whole"), cli)


@pytest.fixture(scope="module")
def uninterrupted_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's model that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    starter = Starter(folder, DEMO, pause=0)
    starter.finish()
    assert sum(starter.batches()) == QUERIES
    return starter.run


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.long)])
def test_a_real_run_killed_many_times(uninterrupted_demo: Path, tmp_path: Path, cli: Cli, times: int) -> None:
    draw = random.Random(7)
    starter = Starter(tmp_path, DEMO, pause=0.02)  # a fast machine must not be done before the last kill
    for _ in range(times):
        process = starter.start()
        starter.wait_for_batches(len(starter.batches()) + draw.randrange(1, 9), process)
        time.sleep(draw.random() * 0.06)
        assert process.poll() is None, "it was finished before the last kill"
        kill(process)
    starter.finish()
    assert_once(starter.run, QUERIES)
    assert sum(starter.batches()) <= QUERIES + times * BATCH, "at most one batch is repeated per kill"
    assert_same(starter.run, uninterrupted_demo, cli)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_torchrun_with_one_process_killed_or_all(
    uninterrupted_demo: Path, tmp_path: Path, cli: Cli, count: int
) -> None:
    """torchrun ends the others when one dies; the same command continues, and so does one process alone."""
    starter = Starter(tmp_path, DEMO, pause=0.15)  # a fast machine must not be done before the last kill
    launcher = (*TORCHRUN, str(count))
    dead: set[int] = set()
    for one_only in (True, False, True):
        process = starter.start(launcher=launcher)
        starter.wait_for_batches(len(starter.batches()) + 5, process)
        while len(launched(starter.run) - dead) < count and process.poll() is None:
            time.sleep(0.02)
        if one_only:
            os.kill(random.Random(count).choice(sorted(launched(starter.run) - dead)), signal.SIGKILL)
            process.communicate(timeout=120)
            assert process.returncode != 0
        else:
            process.kill()  # its children are in sessions of their own, and would go on
            for pid in launched(starter.run) - dead:
                os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=60)
        dead |= launched(starter.run)
    before = len(journal_rows(starter.run))
    assert 0 < before < QUERIES
    starter.finish(launcher=launcher if count == 2 else (sys.executable,))  # begun with three, ended with one
    assert_once(starter.run, QUERIES)
    assert sum(starter.batches()) <= QUERIES + 3 * count * BATCH
    assert_same(starter.run, uninterrupted_demo, cli)


def launched(run: Path) -> set[int]:
    """All processes that have ever been at work."""
    if not (run / "run.json").exists():
        return set()
    return {session["process"] for session in json.loads((run / "run.json").read_text(encoding="utf-8"))["sessions"]}


@pytest.mark.torch
@pytest.mark.slow
def test_torchrun_from_the_module(tmp_path: Path) -> None:
    """As the README writes it, from nothing to the table."""
    command = [*TORCHRUN, "2", "-m", "flamingo_eval", "coco", "--shots", "0", "--num-samples", "40", "--device", "cpu",
               "--out", str(tmp_path / "run")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("CIDEr x 100") == 1
    assert_once(tmp_path / "run", 120)
