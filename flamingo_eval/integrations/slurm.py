"""Slurm jobs that carry out a run, by submitit: submitted, followed, put into the queue again when time is over.

A job's tasks are the processes of the run (``srun`` starts them); they share its folder through locks. What is answered
when a job's time is over is in the journal, so the same job goes on.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flamingo_eval.core.errors import FlamingoEvalError, UserError
from flamingo_eval.core.progress import note
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.text import printable

if TYPE_CHECKING:
    import submitit

POLL = 1.0
"""Seconds between two looks at a job's log."""

_OF_SUBMITIT, _AGAIN = re.compile(r"submitit [A-Z]+ \(\d{4}-.*", re.DOTALL), "Calling checkpoint method"


class NotFollowed(FlamingoEvalError):
    """The user has stopped following a job, which goes on."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job asks Slurm for; see sbatch's manual. None leaves it to the cluster.

    Attributes:
        name: the job's.
        nodes: how many.
        gpus: of each node.
        tasks: processes on each node.
        minutes: how long it may take.
        grace: seconds before the end at which it is told, and goes back into the queue.
        requeues: how often its time may be over until it stays so.
        cpus: of each task.
        memory: of each node, such as 64G.
        partition, account, qos: where, and on whose account.
        more: other options of sbatch's, without dashes -> value, or True for a switch.
    """

    name: str
    nodes: int
    gpus: int
    tasks: int
    minutes: float
    grace: int
    requeues: int
    cpus: int | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    more: Mapping[str, str | bool] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """As submitit's ``SlurmExecutor.update_parameters`` takes them."""
        # a task that dies leaves its work to the others; srun does not take --cpus-per-task from sbatch (since 22.05)
        srun = ["--kill-on-bad-exit=0", *([f"--cpus-per-task={self.cpus}"] if self.cpus else [])]
        wanted = {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "time": math.ceil(self.minutes),
            "signal_delay_s": self.grace,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "srun_args": srun,
            "additional_parameters": {"requeue": True, **self.more},
        }
        return {name: value for name, value in wanted.items() if value is not None}


def minutes(text: str) -> float:
    """A time as Slurm's sbatch reads it (its manual, ``--time``), in minutes.

    >>> [minutes(text) for text in ("90", "1:30", "4:00:00", "1-0", "1-2:30")]
    [90.0, 1.5, 240.0, 1440.0, 1590.0]

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", text.strip())
    if match is None:
        raise UserError(f"--time {text!r}: give minutes, H:MM:SS or D-HH:MM:SS")
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:
        total = int(days) * 1440 + first * 60 + second + third / 60
    elif parts[2] is not None:
        total = first * 60 + second + third / 60
    else:
        total = first + second / 60
    if not total:
        raise UserError(f"--time {text!r}: a job needs some time")
    return total


@dataclass(frozen=True)
class Job:
    """What each task of a job does.

    Attributes:
        spec: the run.
        carry_out: does it, and returns an exit code; a function of a module.
        logs: where the first task leaves its exit code.
    """

    spec: RunSpec
    carry_out: Callable[[RunSpec], int]
    logs: Path

    def __call__(self) -> None:
        """Carries out a task's part of the run. Raises SystemExit where it fails, so that Slurm knows."""
        import submitit

        here = submitit.JobEnvironment()
        os.environ.update(RANK=str(here.global_rank), WORLD_SIZE=str(here.num_tasks), LOCAL_RANK=str(here.local_rank))
        ended = exit_code_file(self.logs, here.job_id)
        if here.global_rank == 0:
            ended.unlink(missing_ok=True)
        code = self.carry_out(self.spec)
        if here.global_rank == 0:
            ended.write_text(f"{code}\n")
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What is put into the queue again when time is over: the same, since answers are in the journal."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def in_time() -> Iterator[None]:
    """Turns submitit's word that a job's time was over too often into ours.

    Raises:
        UserError: it was.
    """
    from submitit.core.utils import UncompletedJobError

    try:
        yield
    except UncompletedJobError as error:
        raise UserError(f"{error} What is answered is kept, and the same command goes on (--requeues)") from error


def exit_code_file(logs: Path, job: str) -> Path:
    """Where a job's first task leaves its exit code."""
    return logs / f"{job}_exit_code"


def script(allocation: Allocation, logs: Path) -> str:
    """The batch script that a job is submitted with."""
    _check_installed()
    import submitit

    class Anywhere(submitit.SlurmExecutor):
        """Also where there is no Slurm, since nothing is submitted."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Anywhere(logs)
    _update(executor, allocation)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(job: Job, allocation: Allocation, *, local: bool) -> submitit.Job[None]:
    """Submits a job; ``local``: to processes of this machine, as a trial.

    Raises:
        UserError: there is no submitit, no Slurm, or it does not take the job.
    """
    _check_installed()
    import submitit

    if not local:
        executor: submitit.Executor = _slurm(job.logs, allocation)
        _update(executor, allocation)
    elif allocation.nodes > 1:
        raise UserError("--local is this machine alone: leave out --nodes")
    else:
        executor = submitit.LocalExecutor(job.logs, max_num_timeout=allocation.requeues)
        executor.update_parameters(
            tasks_per_node=allocation.tasks,
            gpus_per_node=allocation.gpus,
            timeout_min=allocation.minutes,
            signal_delay_s=min(allocation.grace, int(30 * allocation.minutes)),
        )
    try:
        return executor.submit(job)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        raise UserError(f"the job was not taken: {' '.join(str(error).split())[:400]}") from error


def _slurm(logs: Path, allocation: Allocation) -> submitit.SlurmExecutor:
    import submitit

    if not submitit.SlurmExecutor.affinity() > 0:
        raise UserError(
            "there is no srun here: give the command on a machine that submits to Slurm. --print shows the script, "
            "--local runs the job on this machine"
        )
    return submitit.SlurmExecutor(logs, max_num_timeout=allocation.requeues)


def _update(executor: submitit.Executor, allocation: Allocation) -> None:
    executor.update_parameters(**allocation.parameters())


def _check_installed() -> None:
    if importlib.util.find_spec("submitit") is None:
        raise UserError("flamingo-eval slurm needs submitit: pip install 'flamingo-eval[slurm]'")


def follow(job: submitit.Job[None], logs: Path, *, local: bool) -> int:
    """Shows what a job's first task prints, until the job has ended.

    Returns:
        the first task's exit code.

    Raises:
        NotFollowed: the user has pressed Ctrl-C; the job goes on.
        UserError: the job has ended without one, because it was cancelled, say.
    """
    first = job.task(0)
    tails = [_Tail(first.paths.stderr, sys.stderr), _Tail(first.paths.stdout, sys.stdout)]
    state = ""
    try:
        while True:
            done = job.done()
            if job.state != state:
                state = job.state
                note(f"job {job.job_id}: {state.lower()}")
            for tail in tails:
                tail.show(to_the_end=done)
            if done:
                break
            time.sleep(POLL)
    except KeyboardInterrupt:
        if local:
            with suppress(subprocess.SubprocessError, OSError):
                job.cancel()
            raise
        raise NotFollowed(
            f"no longer followed; job {job.job_id} goes on (log: {first.paths.stderr}). scancel {job.job_id} ends it"
        ) from None
    try:
        return int(exit_code_file(logs, job.job_id).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"job {job.job_id} has not come to an end ({state.lower()}); its log is {first.paths.stderr}. What is "
            "answered is kept, and the same command goes on"
        ) from None


class _Tail:
    """A log that grows, shown line by line; submitit's own remarks are left out."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path, self._stream, self._at, self._rest = path, stream, 0, b""

    def show(self, *, to_the_end: bool) -> None:
        """Shows what has come; what has no line end yet only at the end."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
            self._at += len(content)
            self._rest += content
        *lines, self._rest = re.split(rb"(?<=[\r\n])", self._rest)
        if to_the_end:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line.decode(errors="replace")
            own = _OF_SUBMITIT.sub("", text)
            body = own.rstrip("\r\n")
            print(printable(body), end=own[len(body) :], file=self._stream)
            if own != text and _AGAIN in text:
                note("the job's time is over, or another one goes before it: back into the queue")
        self._stream.flush()
