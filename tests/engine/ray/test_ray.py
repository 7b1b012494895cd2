"""A real Ray cluster of nodes on this machine: the same bytes as one process, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flamingo_eval.core.errors import UserError
from flamingo_eval.engine.executors.ray.cluster import Room, _undisturbed, room
from flamingo_eval.engine.executors.ray.worker import check_versions, same_digest
from flamingo_eval.engine.identity import versions
from tests.support.helpers import Cli, read_lines, write_coco_root
from tests.support.slow_model import Slow

pytestmark = pytest.mark.slow


@dataclass
class Nodes:
    """A cluster of nodes on this machine."""

    process: subprocess.Popen[str]
    address: str

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def nodes(environment: Mapping[str, str], *cpus: int) -> Iterator[Nodes]:
    command = [sys.executable, "-m", "tests.support.ray_nodes", *map(str, cpus)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env={**os.environ, **environment}, cwd=Path(__file__).parents[3]) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield Nodes(process, process.stdout.readline().strip())
        finally:
            process.communicate(timeout=60)


def test_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions, answers and log-likelihoods of the demo, where nothing but who answers is another."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ("run", "coco", "vqav2", "hateful-memes", "--shots", "2", "--trials", "1", "--num-samples", "8", "--device", "cpu",
             "--batch-size", "1")  # fmt: skip
    with nodes({"FLAMINGO_EVAL_CACHE": str(tmp_path / "b")}, 1, 1) as two:
        for out, more in (("one", ()), ("two", ("--executor", "ray", "--address", two.address))):
            environment = {**os.environ, "FLAMINGO_EVAL_CACHE": str(tmp_path / out), "RAY_ADDRESS": ""}
            done = subprocess.run([sys.executable, "-m", "flamingo_eval", *words, *more, "--out", tmp_path / out], check=False,
                                  env=environment, capture_output=True, text=True)  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stderr.count("Traceback") == 0
            shown = subprocess.run([sys.executable, "-m", "flamingo_eval", "samples", tmp_path / out], capture_output=True,
                                   env=environment, check=True)  # fmt: skip
            (tmp_path / f"{out}.jsonl").write_bytes(shown.stdout)
    assert len(read_lines(tmp_path / "one.jsonl")) == 24
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    workers = json.loads((tmp_path / "two" / "run.json").read_text())["sessions"][0]["workers"]
    assert sum(workers.values()) == 24
    assert all(re.fullmatch(r".+, process \d+", worker) for worker in workers)


def test_whatever_dies(tmp_path: Path) -> None:
    """A worker, the driver, a node; a node comes. Nothing is lost, nothing but what was in flight is answered twice."""
    write_coco_root(tmp_path / "data", train=20, test=100)
    slow = Slow(tmp_path)
    with nodes(slow.environment, 1, 1) as two:
        more = ("--executor", "ray", "--workers", "2", "--address", two.address)
        first = slow.start(*more)
        by = slow.until(40, first)
        os.kill(max(by, key=lambda process: by[process]), signal.SIGKILL)
        slow.until(slow.answered()[0] + 60, first)
        first.kill()
        first.communicate()
        kept = len(read_lines(tmp_path / "run" / "journal.jsonl"))
        assert kept >= 60
        again = slow.start(*more)
        slow.until(slow.answered()[0] + 40, again)
        two.tell("remove 0")
        slow.until(slow.answered()[0] + 20, again)
        two.tell("add 1")
        out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "lost with workers that died, and done again by others" in err
    rows = read_lines(tmp_path / "run" / "journal.jsonl")
    slots = {(row["shots"], row["seed"], row["query_id"]) for row in rows}
    assert len(rows) == len(slots) == 400
    # a worker has two pieces at once of at most four batches of two; lost were those of one worker, two, and one
    assert 400 <= slow.answered()[0] <= 400 + 4 * 2 * 8
    assert out.startswith("benchmark  split")
    assert "raylet" not in out + err


def test_images_are_sent_to_workers_that_have_none(tmp_path: Path) -> None:
    """The data root's path leads nowhere for a worker, features are built all the same; it opens nothing of the run's."""
    write_coco_root(tmp_path / "data", train=20, test=8)
    slow = Slow(tmp_path, seconds=0.0)
    slow.environment["FLAMINGO_EVAL_CACHE"] = str(tmp_path / "cache")
    rices = ("--select", "rices", "--rices-model", "scripted")
    with nodes(slow.environment, 1, 1) as two:
        hidden = ("--data-root", "/proc/self/cwd/data", "--executor", "ray", "--address", two.address)
        refused = slow.start(*hidden)  # no worker has a folder of that name
        _, err = refused.communicate(timeout=120)
        assert refused.returncode == 2
        assert "has no folder /proc/self/cwd/data, where the images are" in err
        assert "--ship-images" in err
        assert "Traceback" not in err
        shutil.rmtree(tmp_path / "run")
        sent = slow.start(*hidden, "--ship-images", *rices)
        _, err = sent.communicate(timeout=120)
        assert sent.returncode == 0, err
    slow.environment["FLAMINGO_EVAL_CACHE"] = str(tmp_path / "another")
    here = subprocess.run(slow.command("--out", tmp_path / "here", *rices), env={**os.environ, **slow.environment},
                          capture_output=True, check=True)  # fmt: skip
    assert b"coco" in here.stdout
    keep = ("shots", "seed", "query_id", "key", "pictures", "raw")
    found = [
        sorted(tuple(row[name] for name in keep) for row in read_lines(tmp_path / run / "journal.jsonl"))
        for run in ("run", "here")
    ]
    assert found[0] == found[1]
    nearest = [(tmp_path / run / "rices-coco.json").read_bytes() for run in ("run", "here")]
    assert nearest[0] == nearest[1]
    opened = [line for line in slow.log.read_text().splitlines() if line.startswith("opened")]
    assert not opened, "a worker opens the run's files for writing"


@pytest.mark.cluster
def test_what_workers_die_of_is_named(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "data", train=20, test=12)
    images = sorted(path.name for path in (root / "coco" / "val2014").iterdir())
    slow = Slow(tmp_path, seconds=0.0, poison=images[3])
    run = slow.start("--executor", "ray", "--address", "local", "--workers", "2", "--shots", "1", "--trials", "1")
    out, err = run.communicate(timeout=150)
    assert run.returncode == 2
    assert out == "", "what Ray says of its workers does not stand where a table would"
    assert "raylet" not in err
    assert "1 queries could not be answered; everything else is answered and saved" in err
    assert "2 workers have died of it" in err
    assert len(read_lines(tmp_path / "run" / "journal.jsonl")) == 11


@pytest.mark.cluster
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, how: signal.Signals) -> None:
    """As in one process: exit 130, what is answered is kept, the workers end."""
    write_coco_root(tmp_path / "data", train=20, test=60)
    slow = Slow(tmp_path, seconds=0.2)
    run = subprocess.Popen(
        slow.command("--executor", "ray", "--address", "local", "--workers", "2"), cwd=tmp_path, text=True,
        env={**os.environ, **slow.environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    by = slow.until(20, run)
    os.killpg(run.pid, how) if how == signal.SIGINT else run.send_signal(how)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "interrupted; what is finished is kept" in err
    assert "Traceback" not in err
    assert len(read_lines(tmp_path / "run" / "journal.jsonl")) >= 4
    end = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in by):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 8.0}], (None, None), Room(2, 0, 4)),
        ([{"CPU": 4.0}, {"CPU": 8.0}], (4, None), Room(4, 0, 2)),
        ([{"CPU": 1.0}], (3, None), Room(3, 0, 1)),
        ([{}, {"CPU": 0.0}, {"CPU": 2.0}], (None, None), Room(1, 0, 2)),  # heads that lend no CPU
        ([{}], (None, None), Room(1, 0, 1)),  # an autoscaler's, before there is work
        ([{"CPU": 4.0, "GPU": 8.0}, {"CPU": 2.0}], (None, None), Room(8, 1, 1)),
        ([{"CPU": 4.0, "GPU": 8.0}, {"CPU": 2.0}], (None, 4), Room(2, 4, 1)),
        ([{"CPU": 4.0, "GPU": 8.0}, {"CPU": 2.0}], (None, 0), Room(2, 0, 2)),
        ([{"CPU": 4.0}], (3, 2), Room(3, 2, 1)),  # they wait for machines
    ],
)
def test_how_many_workers_there_are(
    nodes: list[dict[str, float]],
    wanted: tuple[int | None, int | None],
    expected: Room,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert room(*wanted) == expected


def test_ctrl_c_waits_until_ray_is_there() -> None:
    """Cut off in its start, Ray crashes the process (exit code -11)."""
    before, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), _undisturbed():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) == before


def test_workers_need_a_gpu_that_the_cluster_has(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"Alive": False, "Resources": {"GPU": 8.0}}
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}, dead])
    with pytest.raises(UserError, match="--gpus-per-worker 1: the cluster has 0 GPUs; --workers N waits for more"):
        room(None, 1)
    with pytest.raises(UserError, match="--gpus-per-worker 1: this machine has 0 GPUs for 2 workers"):
        room(2, 1, alone=True)


def test_what_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions, other weights, no cluster, no Ray, addresses that are none."""
    check_versions(versions())
    with pytest.raises(UserError, match=r"flamingo-eval .* \(not 0\.0\.0\): every node needs the versions"):
        check_versions({**versions(), "flamingo-eval": "0.0.0"})
    with pytest.raises(UserError, match="has another mine than the machine where the run was started"):
        same_digest("mine", "a" * 64, "b" * 64)
    root = write_coco_root(tmp_path / "data", train=4, test=2)
    plain = ("coco", "--checkpoint", "scripted", "--data-root", root, "--shots", "0", "--out", "run")
    refused = cli(*plain, "--workers", "2")
    assert refused.returncode == 2
    assert "--workers goes with --executor ray" in refused.stderr
    common = (*plain, "--executor", "ray")
    for address, message in (
        ("127.0.0.1:9", "--address 127.0.0.1:9: no cluster there"),
        ("ray://head:10001", "is for Ray's client; give the command on a node of the cluster"),
        ("nonsense", "auto, local, or HOST:PORT of a cluster"),
    ):
        refused = cli(*common, "--address", address)
        assert refused.returncode == 2
        assert message in refused.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = cli(*common)
    assert refused.returncode == 2
    assert (
        refused.stderr.strip().splitlines()[-1] == "error: --executor ray needs Ray: pip install 'flamingo-eval[ray]'"
    )
