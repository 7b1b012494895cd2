"""Jobs: submitit's local executor, and its Slurm executor with stand-ins of Slurm's programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.main import _command
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.run_settings import SETTINGS
from flamingo_eval.integrations.allocation import minutes
from tests.support.fake_slurm import write_programs
from tests.support.helpers import Cli, read_lines, write_coco_root
from tests.support.slow_model import Slow


def answered_once(slow: Slow, answers: int) -> None:
    rows = [row for path in (slow.folder / "run").glob("journal*.jsonl") for row in read_lines(path)]
    slots = {(row["shots"], row["seed"], row["query_id"]) for row in rows}
    assert len(rows) == len(slots) == answers


def logs(folder: Path, name: str) -> list[Path]:
    return list((folder / "results" / "slurm").glob(f"*/{name}"))


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=180)


@pytest.mark.slow
def test_a_job_whose_time_is_over_goes_on(tmp_path: Path) -> None:
    """By submitit's local executor, with real signals; the table is printed as if it had run here."""
    write_coco_root(tmp_path / "data", train=20, test=60)
    slow = Slow(tmp_path, seconds=0.2)
    job = slow.start(
        "--local", "--gpus-per-node", "0", "--tasks-per-node", "2", "--time", "0:00:14", "--grace", "7", via="slurm"
    )
    out, err = ended(job)
    assert job.returncode == 0, err
    answered_once(slow, 240)
    requeued = sum(path.read_text().count("Requeued job") for path in logs(tmp_path, "*_0_log.out"))
    assert requeued >= 1
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert {session["rank"] for session in sessions} == {0, 1}
    assert len(sessions) >= 2 * requeued
    # lost was what two processes had at hand
    assert 240 <= slow.answered()[0] <= 240 + requeued * 2 * 2 * 8
    assert out.startswith("benchmark  split")
    assert "submitit" not in out + err
    assert "back into the queue" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_job_that_is_killed(tmp_path: Path) -> None:
    """One task: the other does its work. All of them: it is said, and the same command goes on."""
    write_coco_root(tmp_path / "data", train=20, test=60)
    slow = Slow(tmp_path, seconds=0.1)
    words = ("--local", "--gpus-per-node", "0", "--tasks-per-node", "2")
    job = slow.start(*words, via="slurm")
    by = slow.until(40, job)
    while len(by) < 2:
        by = slow.until(slow.answered()[0] + 2, job)
    sessions = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    [first] = [session["process"] for session in sessions if session["rank"] == 0]
    for process in by:
        if process != first:
            os.kill(process, signal.SIGKILL)
    slow.until(slow.answered()[0] + 40, job)
    os.kill(first, signal.SIGKILL)
    _, err = ended(job)
    assert job.returncode == 2
    assert re.search(r"job \d+ has not come to an end \(finished\); its log is .*_0_log\.err", err)
    again = slow.start(*words, via="slurm")
    out, err = ended(again)
    assert again.returncode == 0, err
    answered_once(slow, 240)
    assert out.startswith("benchmark  split")


@pytest.mark.slow
def test_as_slurm_does_it(tmp_path: Path) -> None:
    """Two nodes: time that is over, a follower that leaves, a job that is cancelled, and one that is waited for."""
    write_coco_root(tmp_path / "data", train=20, test=60)
    slow = Slow(tmp_path, seconds=0.3)
    slow.environment |= {**write_programs(tmp_path / "bin"), "FAKE_SLURM_LIMIT": "14"}
    words = ("--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "1")
    job = slow.start(*words, via="slurm")
    slow.until(40, job)
    job.send_signal(signal.SIGINT)
    _, err = ended(job)
    assert job.returncode == 130
    assert "no longer followed; job 7 goes on" in err
    assert slow.answered()[0] < 240
    until = time.monotonic() + 240
    while (tmp_path / "bin" / "7.state").read_text() != "COMPLETED":
        assert time.monotonic() < until
        time.sleep(0.2)
    answered_once(slow, 240)
    [log] = [path.read_text() for path in logs(tmp_path, "7_0_log.out")]
    assert "Calling checkpoint method" in log
    assert "benchmark  split" in log
    assert {session["rank"] for session in json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]} == {
        0,
        1,
    }

    more = slow.start(*words, "--shots", "1,2,3", via="slurm")
    slow.until(slow.answered()[0] + 20, more)
    subprocess.run([tmp_path / "bin" / "scancel", "8"], env={**os.environ, **slow.environment}, check=True)
    _, err = ended(more)
    assert more.returncode == 2
    assert "job 8: running" in err
    assert "job 8 has not come to an end (cancelled)" in err
    last = slow.start(*words, "--shots", "1,2,3", via="slurm")
    out, err = ended(last)
    assert last.returncode == 0, err
    answered_once(slow, 360)
    assert out.startswith("benchmark  split")


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_whose_time_is_over_too_often(tmp_path: Path) -> None:
    write_coco_root(tmp_path / "data", train=20, test=60)
    slow = Slow(tmp_path, seconds=0.2)
    job = slow.start("--local", "--gpus-per-node", "0", "--time", "0:00:08", "--requeues", "0", via="slurm")
    _, err = ended(job)
    assert job.returncode == 2
    assert "Job not requeued because: timed-out too many times. What is answered is kept" in err
    assert "Traceback" not in err
    assert read_lines(tmp_path / "run" / "journal.jsonl")


@pytest.mark.slow
def test_what_fails_in_a_job_is_reported_here(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "data", train=20, test=3)
    sorted((root / "coco" / "val2014").iterdir())[0].unlink()
    slow = Slow(tmp_path, seconds=0.0)
    job = slow.start("--local", "--gpus-per-node", "0", "--shots", "1", "--trials", "1", via="slurm")
    out, err = ended(job)
    assert job.returncode == 2
    assert "1 queries could not be answered; everything else is answered and saved" in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_of_a_cluster_without_accounting_that_fails(tmp_path: Path) -> None:
    """Its exit code is known all the same, and tables stay clean."""
    write_coco_root(tmp_path / "data", train=20, test=3)
    slow = Slow(tmp_path, seconds=0.0)
    slow.environment |= {**write_programs(tmp_path / "bin"), "FAKE_SLURM_LIMIT": "60", "FAKE_NO_ACCOUNTING": "1"}
    job = slow.start("--gpus-per-node", "0", "--shots", "1,32", via="slurm")
    out, err = ended(job)
    assert job.returncode == 2
    assert "error: " in err
    assert "32" in err
    assert out == ""
    good = slow.start("--gpus-per-node", "0", "--format", "json", via="slurm")
    out, err = ended(good)
    assert good.returncode == 0, err
    assert json.loads(out)["cells"]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("way", ["slurm", "local"])
def test_ctrl_c_while_a_job_is_submitted(tmp_path: Path, way: str) -> None:
    """No job is left that nobody knows; one of this machine ends in good order, without a traceback."""
    write_coco_root(tmp_path / "data", train=20, test=60)
    slow = Slow(tmp_path, seconds=0.2)
    slow.environment |= {**write_programs(tmp_path / "bin"), "FAKE_SLURM_LIMIT": "60", "FAKE_SBATCH_SECONDS": "3"}
    words = slow.command("--gpus-per-node", "0", *(["--local"] if way == "local" else []))
    words[3:3] = ["slurm"]
    job = subprocess.Popen(words, env={**os.environ, **slow.environment}, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    if way == "local":
        slow.until(10, job)
    else:
        until = time.monotonic() + 60
        while not list((tmp_path / "results").rglob("*.sh")):
            assert time.monotonic() < until
            time.sleep(0.05)
    os.killpg(job.pid, signal.SIGINT)
    _, err = ended(job)
    assert job.returncode == 130
    assert "Traceback" not in err
    if way == "local":
        assert "interrupted; what is finished is kept" in err
        [log] = logs(tmp_path, "*_0_log.err")
        assert "interrupted; what is finished is kept" in log.read_text()
        assert "Traceback" not in log.read_text()
    else:
        assert "no longer followed; job 7 goes on" in err
        with subprocess.Popen(["sleep", "120"], text=True) as waiting:
            slow.until(20, waiting)
            waiting.kill()
        subprocess.run([tmp_path / "bin" / "scancel", "7"], env={**os.environ, **slow.environment}, check=True)


def test_the_script(cli: Cli) -> None:
    shown = cli("slurm", "coco", "okvqa", "--shots", "0,4", "--nodes", "4", "--gpus-per-node", "8", "--cpus-per-task", "6",
                "--mem", "200G", "--time", "1-2:30", "--partition", "gpu", "--account", "us", "--qos", "high", "--grace", "120",
                "--sbatch", "constraint=a100", "--sbatch", "exclusive", "--logs", "/shared/logs", "--print")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    flags = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert flags >= {
        "--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=6", "--mem=200G", "--time=1590",
        "--partition=gpu", "--account=us", "--qos=high", "--signal=USR2@120", "--constraint=a100", "--exclusive", "--requeue",
        "--job-name=flamingo-eval-all", "--error=/shared/logs/%j_0_log.err",
    }  # fmt: skip
    [srun] = [line for line in lines if line.startswith("srun")]
    assert "--kill-on-bad-exit=0 --cpus-per-task=6" in srun
    assert srun.endswith("-m submitit.core._submit /shared/logs")
    own = cli(
        "slurm", "coco", "--sbatch", "gpus-per-node=a100:4", "--sbatch", "job-name=mine", "--time", "1", "--print"
    ).stdout
    assert own.count("--gpus-per-node=a100:4") == own.count("--gpus-per-node") == 1
    assert own.count("--job-name=mine") == 1
    assert "--job-name=flamingo" not in own
    assert "--signal=USR2@30" in own
    several = cli("slurm", "coco", "--system", "be brief\nrm -r x", "--checkpoint", "demo-chat", "--print").stdout
    assert all(line.startswith("# ") for line in several.splitlines()[-2:])
    one = cli("slurm", "coco", "--gpus-per-node", "8", "--tasks-per-node", "1", "--print").stdout
    assert "--ntasks-per-node=1" in one
    assert "--gpus-per-node=8" in one
    assert "--cpus-per-task" not in one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shots", "four"), "four"),
        (("--checkpoint", "mine"), "--data-root"),
        (("--process", "0/2"), "No such option"),
        (("--time", "soon"), "--time 'soon': give minutes, H:MM:SS or D-HH:MM:SS"),
        (("--time", "0"), "a job needs some time"),
        (("--sbatch", "=x"), "give KEY=VALUE"),
        (("--sbatch", "nodes=2"), "--sbatch nodes: this command says that itself"),
        (("--sbatch", "array=0-3"), "--sbatch array: this command says that itself"),
        (("--executor", "ray"), "--executor ray has workers of its own"),
        (("--local", "--detach"), "--detach is for Slurm"),
        (
            ("--checkpoint", "openai:m", "--base-url", "http://u:secret@h/v1", "--data-root", "demo"),
            "--base-url holds a name or a password",
        ),
        (("--local", "--nodes", "2"), "--local is this machine alone"),
        ((), "there is no srun here"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(cli: Cli, words: tuple[str, ...], message: str) -> None:
    refused = cli("slurm", "coco", *words)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_without_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words in ((), ("--print",), ("--local",)):
        refused = cli("slurm", "coco", *words)
        assert refused.returncode == 2
        assert refused.stderr == "error: flamingo-eval slurm needs submitit: pip install 'flamingo-eval[slurm]'\n"


@pytest.mark.slow
def test_a_job_that_slurm_refuses(tmp_path: Path) -> None:
    """What sbatch says is passed on."""
    environment = write_programs(tmp_path / "bin")
    (tmp_path / "bin" / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n"
    )
    refused = subprocess.run([sys.executable, "-m", "flamingo_eval", "slurm", "coco", "--partition", "gpu"], text=True,
                             capture_output=True, check=False, cwd=tmp_path, env={**os.environ, **environment})  # fmt: skip
    assert refused.returncode == 2
    assert "error: the job was not taken: " in refused.stderr
    assert "invalid partition specified: gpu" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_names_of_options_do_not_meet() -> None:
    """An option of a job's that is called like one of a run's would hide it."""
    command = _command()
    names = [name for one in command.get_command(None, "slurm").params for name in one.opts]  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    assert {SETTINGS[name].option for name in specs.SLURM} <= set(names)


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "1-", "0-0"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        minutes(text)
