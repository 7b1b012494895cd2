"""What a job asks Slurm for, as a user says it and as submitit takes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flamingo_eval.core.errors import UserError

_OURS = {"signal", "output", "error", "open_mode", "array", "requeue", "no_requeue", "ntasks"}
"""Options of sbatch's that following a job rests on, beside those that have an option here."""


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

    def __post_init__(self) -> None:
        """Raises UserError for options of sbatch's that are not the user's to say."""
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """As submitit's ``SlurmExecutor.update_parameters`` takes them. Raises UserError."""
        # a task that dies leaves its work to the others; srun does not take --cpus-per-task from sbatch (since 22.05)
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
            "signal_delay_s": self.told_before,
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
    def told_before(self) -> int:
        """Seconds before its end at which the job is told; half of its time at most, since it must have begun."""
        return max(1, min(self.grace, int(30 * self.minutes)))


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
