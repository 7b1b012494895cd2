"""Stand-ins of sbatch, srun, sacct, scontrol and scancel on one machine, for tests without Slurm.

They do what submitit needs: a job's tasks get Slurm's variables and its signal before time is over, a job that is put
into the queue again starts anew under the same number, and states are told. The limit is ``FAKE_SLURM_LIMIT`` seconds,
since Slurm counts minutes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "sacct", "scontrol", "scancel")


def write_programs(folder: Path) -> dict[str, str]:
    """Writes them. Returns the environment in which they are found."""
    folder.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/bash\nexec {sys.executable} -m tests.support.fake_slurm {name} "$@"\n')
        program.chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "FAKE_SLURM": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


class _Job:
    def __init__(self, number: str) -> None:
        self.number = number
        self._folder = Path(os.environ["FAKE_SLURM"])

    def file(self, what: str) -> Path:
        return self._folder / f"{self.number}.{what}"

    def tell(self, state: str) -> None:
        self.file("new").write_text(state)
        self.file("new").replace(self.file("state"))

    def end(self) -> None:
        """Slurm's own way: asked first, killed a while later."""
        self.signal(signal.SIGTERM)
        subprocess.Popen(["bash", "-c", f"sleep 1.5; kill -9 {self.file('tasks').read_text()}"], start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def signal(self, number: int) -> None:
        with suppress(FileNotFoundError):
            for process in self.file("tasks").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(process), number)


def sbatch(script: str) -> None:
    time.sleep(float(os.environ.get("FAKE_SBATCH_SECONDS", "0")))
    number = str(7 + len(list(Path(os.environ["FAKE_SLURM"]).glob("*.state"))))
    _Job(number).tell("PENDING")
    subprocess.Popen([sys.executable, "-m", "tests.support.fake_slurm", "controller", script, number], start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    print(f"Submitted batch job {number}")


def controller(script: str, number: str) -> None:
    """Runs a job until it is not put into the queue any more."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # a real job is no child of sbatch's
    job = _Job(number)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", Path(script).read_text(), re.MULTILINE))
    tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
    environment = {
        **os.environ,
        "SLURM_JOB_ID": job.number,
        "SLURM_NTASKS": str(tasks),
        "SLURM_JOB_NUM_NODES": options["nodes"],
        "SLURM_JOB_NODELIST": "here",
    }
    while True:
        job.tell("RUNNING")
        batch = subprocess.Popen(["bash", script], env=environment)
        with suppress(subprocess.TimeoutExpired):
            batch.wait(float(os.environ["FAKE_SLURM_LIMIT"]))
        if batch.poll() is None:
            job.signal(getattr(signal, "SIG" + options["signal"].partition("@")[0]))
            with suppress(subprocess.TimeoutExpired):
                batch.wait(10)
            job.signal(signal.SIGKILL)
        code = batch.wait()
        if not job.file("again").exists():
            break
        job.file("again").unlink()
        job.tell("REQUEUED")
        time.sleep(0.5)
    job.tell("CANCELLED" if job.file("cancelled").exists() else "FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> int:
    """Starts the tasks, and waits for all of them."""
    words, options = list(arguments), dict[str, str]()
    while words[0].startswith("--"):
        key, is_set, value = words.pop(0).partition("=")
        options[key] = value if is_set else words.pop(0) if key in ("--output", "--error") else ""
    job, tasks = _Job(os.environ["SLURM_JOB_ID"]), []
    count, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    for rank in range(count):
        out, err = (
            Path(options[key].replace("%j", job.number).replace("%t", str(rank))) for key in ("--output", "--error")
        )
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % (count // nodes))}
        with out.open("ab") as to, err.open("ab") as errors:
            tasks.append(subprocess.Popen(words, env={**os.environ, **own}, stdout=to, stderr=errors))
    job.file("tasks").write_text(" ".join(str(task.pid) for task in tasks))
    return max(abs(task.wait()) for task in tasks)


def sacct(*_: str) -> int:
    if "FAKE_NO_ACCOUNTING" in os.environ:
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    print("JobID|State|NodeList")
    for state in Path(os.environ["FAKE_SLURM"]).glob("*.state"):
        print(f"{state.stem}|{state.read_text()}|here")
    return 0


def scontrol(what: str, number: str) -> None:
    assert what == "requeue"
    job = _Job(number)
    job.file("again").touch()
    job.end()


def scancel(number: str) -> None:
    job = _Job(number)
    job.file("cancelled").touch()
    job.end()


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
