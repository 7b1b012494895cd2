"""What a job requests from Slurm, as the user gives it and as submitit takes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flamingo_eval.core.errors import UserError

_OURS = {"signal", "output", "error", "open_mode", "array", "requeue", "no_requeue", "ntasks"}
"""Options that ``--sbatch`` refuses, since following a job depends on them. It also refuses most of those that
have an option of their own in this command."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job requests from Slurm; see sbatch's manual. None leaves a value to the cluster.

    Attributes:
        name: name of the job.
        nodes: number of nodes.
        gpus: GPUs per node.
        tasks: processes per node.
        minutes: time limit of the job.
        grace: seconds before the time limit at which the job is signalled, and goes back into the queue.
        requeues: how often the job may reach its time limit and go back into the queue.
        cpus: CPUs per task.
        memory: memory per node, such as 64G.
        partition, account, qos: where the job runs, and on which account.
        more: other options of sbatch, without leading dashes -> value, or True for a switch.
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

    def __post_init__(self) -> None:
        """Raises UserError for options of sbatch that users can't set."""
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """The arguments for submitit's ``SlurmExecutor.update_parameters``. Raises UserError."""
        # if a task dies, the others do its work; srun does not take --cpus-per-task from sbatch (since 22.05)
        srun = ["--kill-on-bad-exit=0", *([f"--cpus-per-task={self.cpus}"] if self.cpus else [])]
        more: dict[str, str | bool] = {"requeue": True}
        wanted = {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "time": math.ceil(self.minutes),
            "signal_delay_s": self.signal_delay,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "srun_args": srun,
            "additional_parameters": more,
        }
        for key, value in self.more.items():
            name = key.replace("-", "_")
            if name in ("job_name", "gpus_per_node"):
                wanted[name] = value
            elif name in _OURS | wanted.keys():
                raise UserError(f"--sbatch {key}: this command says that itself; see its other options")
            else:
                more[key] = value
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def signal_delay(self) -> int:
        """Seconds before the time limit at which the job is signalled; at most half of its time, to let it begin."""
        return max(1, min(self.grace, int(30 * self.minutes)))


def minutes(text: str) -> float:
    """A time as Slurm's sbatch reads it (its manual, ``--time``), in minutes.

    >>> [minutes(text) for text in ("90", "1:30", "4:00:00", "1-0", "1-2:30")]
    [90.0, 1.5, 240.0, 1440.0, 1590.0]

    Raises:
        UserError: it is not a time, or zero.
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
