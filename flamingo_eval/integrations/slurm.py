"""Slurm jobs that carry out a run, through submitit: submitted, followed, and requeued when their time is over.

A job's tasks are the processes of the run (``srun`` starts them); they share its folder through locks. When a job's
time is over, its answers are in the journal, so the same job goes on from there.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from flamingo_eval.core.errors import FlamingoEvalError, UserError
from flamingo_eval.core.progress import note
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.text import printable
from flamingo_eval.integrations.allocation import Allocation
from flamingo_eval.storage.files import storage_errors

if TYPE_CHECKING:
    import submitit

POLL = 1.0
"""Seconds between two reads of a job's log."""

_PATIENCE = 15.0
"""Seconds after its first task has ended in which a job may still go back into the queue."""

_LOCAL_REQUEUES = 5
"""submitit's local executor starts a job six times at most (its local.py, Controller.run)."""

_HELD_BACK = {signal.SIGINT, signal.SIGTERM}

_OF_SUBMITIT, _AGAIN = re.compile(r"submitit [A-Z]+ \(\d{4}-.*", re.DOTALL), "Calling checkpoint method"


class NotFollowed(FlamingoEvalError):
    """The user has stopped following a job; the job continues."""

    exit_code = 130


@dataclass(frozen=True)
class Job:
    """What each task of a job does.

    Attributes:
        spec: the run.
        carry_out: carries out the run and returns an exit code; a module-level function. Its second argument is whether
            SIGTERM is handled already.
        logs: the folder where the first task writes its exit code.
    """

    spec: RunSpec
    carry_out: Callable[[RunSpec, bool], int]
    logs: Path

    def __call__(self) -> None:
        """Carries out a task's part of the run. Raises SystemExit if it fails, so that Slurm records the failure."""
        import submitit

        here = submitit.JobEnvironment()
        os.environ.update(RANK=str(here.global_rank), WORLD_SIZE=str(here.num_tasks), LOCAL_RANK=str(here.local_rank))
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8")  # the encoding in which `follow` reads the log
        ended = exit_code_file(self.logs, here.job_id)
        if here.global_rank == 0:
            ended.unlink(missing_ok=True)
        # Slurm also sends SIGTERM when it preempts a job; submitit waits for its own signal
        code = self.carry_out(self.spec, here.cluster == "slurm")
        if here.global_rank == 0:
            ended.write_text(f"{code}\n")
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What is requeued when the job's time is over: the same job, since its answers are in the journal."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def in_time() -> Iterator[None]:
    """Turns submitit's error for a job that ran out of time too often into ours.

    Raises:
        UserError: the job ran out of time too often.
    """
    from submitit.core.utils import UncompletedJobError

    try:
        yield
    except UncompletedJobError as error:
        raise UserError(f"{error} What is answered is kept, and the same command goes on (--requeues)") from error


def exit_code_file(logs: Path, job: str) -> Path:
    """The file where a job's first task writes its exit code."""
    return logs / f"{job}_exit_code"


def script(allocation: Allocation, logs: Path) -> str:
    """The batch script that a job is submitted with."""
    import submitit

    class Anywhere(submitit.SlurmExecutor):
        """Works without Slurm, too, since nothing is submitted."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Anywhere(logs)
    executor.update_parameters(**allocation.parameters())
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(job: Job, allocation: Allocation, *, local: bool) -> submitit.Job[None]:
    """Submits a job; with ``local``, it runs in processes of this machine, as a test.

    Raises:
        UserError: there is no Slurm, or it does not accept the job.
        StorageError: the folder of the logs can't be made.
        NotFollowed: the user has pressed Ctrl-C meanwhile; the job is submitted.
    """
    if local and allocation.nodes > 1:
        raise UserError("--local is this machine alone: leave out --nodes")
    if not local:
        _check_slurm()
    with storage_errors(job.logs):
        job.logs.mkdir(parents=True)
    if local:
        return _submit_here(job, allocation)
    return _submit_to_slurm(job, allocation)


def _check_slurm() -> None:
    import submitit

    if not submitit.SlurmExecutor.affinity() > 0:
        raise UserError(
            "there is no srun here: give the command on a machine that submits to Slurm. --print shows the script, "
            "--local runs the job on this machine"
        )


def _submit_here(job: Job, allocation: Allocation) -> submitit.Job[None]:
    import submitit

    executor = submitit.LocalExecutor(job.logs, max_num_timeout=min(allocation.requeues, _LOCAL_REQUEUES))
    executor.update_parameters(
        tasks_per_node=allocation.tasks,
        gpus_per_node=allocation.gpus,
        visible_gpus=_visible(os.environ.get("CUDA_VISIBLE_DEVICES")),
        timeout_min=allocation.minutes,
        signal_delay_s=allocation.signal_delay,
    )
    # a terminal's Ctrl-C is for the process that follows the job, which ends it in good order
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with storage_errors(job.logs):
            return executor.submit(job)
    except ValueError as error:  # more GPUs than are visible
        raise UserError(f"--gpus-per-node {allocation.gpus}: {error}") from error
    finally:
        signal.signal(signal.SIGINT, before)


def _visible(devices: str | None) -> tuple[int, ...]:
    """Numbers of the GPUs that may be used; empty means all."""
    parts = (devices or "").split(",")
    return tuple(map(int, parts)) if all(part.strip().isdecimal() for part in parts) else ()


def _submit_to_slurm(job: Job, allocation: Allocation) -> submitit.Job[None]:
    import submitit

    executor = submitit.SlurmExecutor(job.logs, max_num_timeout=allocation.requeues)
    executor.update_parameters(**allocation.parameters())
    # sbatch and what is written for the job belong together: a Ctrl-C in between would leave a job that can't begin
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        submitted = executor.submit(job)
        if signal.sigpending() & _HELD_BACK:
            signal.sigwait(_HELD_BACK)
            raise _left(submitted)
        return submitted
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        raise UserError(f"the job was not taken: {' '.join(str(error).split())[:400]}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)


def _left(job: submitit.Job[None]) -> NotFollowed:
    return NotFollowed(
        f"no longer followed; job {job.job_id} goes on (log: {job.paths.stderr}). scancel {job.job_id} ends it"
    )


def check_installed() -> None:
    """Raises UserError if submitit is missing; otherwise silences its logger."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("flamingo-eval slurm needs submitit: pip install 'flamingo-eval[slurm]'")
    import submitit  # noqa: F401  # its logger would print on stdout, where the job's table goes

    logger = logging.getLogger("submitit")
    logger.handlers.clear()
    logger.propagate = False


def follow(job: submitit.Job[None], logs: Path, *, local: bool) -> int:
    """Shows what a job's first task prints, until the job has ended.

    Returns:
        the first task's exit code.

    Raises:
        NotFollowed: the user has pressed Ctrl-C; the job continues.
        KeyboardInterrupt: the user has pressed Ctrl-C, and the job ran on this machine; it is ended.
        UserError: the job has ended without an exit code, for example because it was cancelled.
    """
    first, ended = job.task(0), exit_code_file(logs, job.job_id)
    tails = [_Tail(first.paths.stderr, sys.stderr), _Tail(first.paths.stdout, sys.stdout)]
    state, patience = "", _PATIENCE
    try:
        while True:
            # a task that has ended writes its exit code at once; Slurm's accounting shows it later or never. A task
            # that was requeued begins again and removes the exit code
            patience = patience - POLL if ended.exists() else _PATIENCE
            done = job.done() or patience < 0
            if job.state != state:
                state = job.state
                note(f"job {job.job_id}: {state.lower()}")
            for tail in tails:
                tail.show(to_the_end=done)
            if done:
                break
            time.sleep(POLL)
    except KeyboardInterrupt:
        if not local:
            raise _left(job) from None
        _end(job)
        raise
    try:
        return int(ended.read_text())
    except (OSError, ValueError):
        raise UserError(
            f"job {job.job_id} has not come to an end ({state.lower()}); its log is {first.paths.stderr}. What is "
            "answered is kept, and the same command goes on"
        ) from None


def _end(job: submitit.Job[None]) -> None:
    """Ends a job on this machine: its controller passes the signal on, and waits for the tasks."""
    with suppress(ValueError, OSError):
        os.kill(int(job.job_id), signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    while not job.done() and time.monotonic() < until:
        time.sleep(0.1)


class _Tail:
    """A growing log, shown line by line; submitit's own messages are left out."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path, self._stream, self._at, self._rest = path, stream, 0, b""

    def show(self, *, to_the_end: bool) -> None:
        """Shows the new lines; a line without a line end is shown only if ``to_the_end``."""
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
