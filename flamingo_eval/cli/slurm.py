"""The command ``slurm``."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.ending import exit_code_of
from flamingo_eval.cli.output import emit
from flamingo_eval.cli.runs import carry_out, make_run
from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.progress import note
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.integrations import slurm as jobs
from flamingo_eval.integrations.allocation import Allocation, minutes

PANEL = "Slurm"


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command(rich_help_panel="Benchmarks")(opt.with_settings(specs.SLURM)(_with_wishes(slurm)))


def _text(flag: str, help: str, metavar: str = "TEXT") -> typer.models.OptionInfo:
    return typer.Option(flag, metavar=metavar, rich_help_panel=PANEL, help=help)  # type: ignore[no-any-return]


def _count(flag: str, help: str, least: int = 1) -> typer.models.OptionInfo:
    return typer.Option(flag, min=least, metavar="N", rich_help_panel=PANEL, help=help)  # type: ignore[no-any-return]


def _switch(flag: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(flag, rich_help_panel=PANEL, help=help)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user wants of a job; each field is an option."""

    nodes: Annotated[int, _count("--nodes", "Machines.")] = 1
    gpus_per_node: Annotated[int, _count("--gpus-per-node", "GPUs of each; 0 for a run on CPUs.", 0)] = 1
    tasks_per_node: Annotated[
        int | None,
        _count(
            "--tasks-per-node",
            "Processes on each, each with the model. Default: one for each GPU; give 1 for a model that "
            "takes several GPUs (--device-map auto).",
        ),
    ] = None
    cpus_per_task: Annotated[int | None, _count("--cpus-per-task", "CPU cores of each process.")] = None
    memory: Annotated[str | None, _text("--mem", "Memory of each machine.", "64G")] = None
    time: Annotated[
        str,
        _text(
            "--time",
            "How long the job may take until it goes back into the queue: minutes, H:MM:SS or D-HH:MM:SS.",
            "TIME",
        ),
    ] = "4:00:00"
    requeues: Annotated[int, _count("--requeues", "How often it does so.", 0)] = 10
    grace: Annotated[
        int,
        typer.Option(
            "--grace",
            min=1,
            metavar="SECONDS",
            rich_help_panel=PANEL,
            help="How long before its end it gets a signal; at most half its time.",
        ),
    ] = 90
    partition: Annotated[str | None, _text("--partition", "Which partition.")] = None
    account: Annotated[str | None, _text("--account", "On whose account.")] = None
    qos: Annotated[str | None, _text("--qos", "Which quality of service.")] = None
    sbatch: Annotated[
        list[str] | None,
        _text(
            "--sbatch",
            "Another option of sbatch's, without dashes, such as constraint=a100 or exclusive; as often as you like.",
            "KEY[=VALUE]",
        ),
    ] = None
    logs: Annotated[
        Path,
        typer.Option(
            "--logs",
            parser=opt.path,
            metavar="DIR",
            rich_help_panel=PANEL,
            help="Where scripts and logs are; all nodes must see it.",
        ),
    ] = Path("results/slurm")
    print_script: Annotated[bool, _switch("--print", "Print the batch script, and submit nothing.")] = False
    detach: Annotated[bool, _switch("--detach", "Submit, and don't follow.")] = False
    local: Annotated[
        bool,
        _switch(
            "--local",
            "Run the job on this machine without Slurm, to try it. Memory, cores, partition, account, --qos and "
            "--sbatch then have no effect.",
        ),
    ] = False

    def allocation(self, spec: RunSpec) -> Allocation:
        """Returns what to request from Slurm. Raises UserError."""
        return Allocation(
            name=f"flamingo-eval-{spec.benchmarks[0] if len(spec.benchmarks) == 1 else 'all'}",
            nodes=self.nodes,
            gpus=self.gpus_per_node,
            tasks=self.tasks_per_node or max(1, self.gpus_per_node),
            minutes=minutes(self.time),
            grace=self.grace,
            requeues=self.requeues,
            cpus=self.cpus_per_task,
            memory=self.memory,
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            more=dict(_options(self.sbatch or ())),
        )


def _with_wishes(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of :class:`Wishes` in place of its parameter ``wishes``."""
    signature, hints = inspect.signature(command, eval_str=True), get_type_hints(Wishes, include_extras=True)
    names = [one.name for one in fields(Wishes)]
    own = [one for one in signature.parameters.values() if one.name != "wishes"]
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(Wishes)
    ]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        wishes = Wishes(**{name: values.pop(name) for name in names})
        command(**values, wishes=wishes)

    called.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return called


def slurm(
    context: typer.Context,
    benchmarks: Annotated[list[str], typer.Argument(help="Names of benchmarks, or all.")],
    *,
    given: opt.Given,
    wishes: Wishes,
) -> None:
    """Submit a run to Slurm, follow it, and put it into the queue again when its time is over.

    Takes the options of run except --fresh, --process and Ray's. The job's processes share the run's folder, which
    all nodes must see. What was submitted is what runs: configuration file and environment are read here. Tested with
    stand-ins of Slurm's programs, not yet on a real cluster.
    """
    jobs.check_installed()
    spec = make_run(context, benchmarks, given)
    if spec.process is not None:
        raise UserError("process is what the job's tasks get; --nodes and --tasks-per-node say how many there are")
    if spec.executor == "ray":
        raise UserError("--executor ray has workers of its own: give it without slurm, on a node of the Ray cluster")
    if wishes.local and wishes.detach:
        raise UserError("--detach is for Slurm: a --local job ends with this command")
    registry.model_source(spec.checkpoint, spec.model_options)  # if it refuses, nothing is submitted
    if "@" in (spec.base_url or ""):  # it would be written into the job's file
        raise UserError("--base-url holds a name or a password: give the key by a file or by the environment")
    allocation, logs = wishes.allocation(spec), wishes.logs.absolute()
    if wishes.print_script:
        words = shlex.join(sys.argv[1:]).replace("\n", "\n# ")
        emit(f"{jobs.script(allocation, logs)}\n# submitted by: flamingo-eval {words}")
        return
    logs /= f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"  # Slurm uses job numbers again some day
    carry = functools.partial(in_job, debug="--debug" in sys.argv[1:])
    job = jobs.submit(jobs.Job(spec, carry, logs), allocation, local=wishes.local)
    note(f"job {job.job_id} submitted; its log is {job.paths.stderr}")
    if wishes.detach:
        emit(job.job_id)
        return
    code = jobs.follow(job, logs, local=wishes.local)
    if code:
        raise typer.Exit(code)


def _options(given: Iterable[str]) -> Iterable[tuple[str, str | bool]]:
    """Yields further options of sbatch, as (key, value). Raises UserError."""
    for text in given:
        key, is_set, value = text.removeprefix("--").partition("=")
        if not key.replace("-", "").isalnum() or "\n" in value:
            raise UserError(f"--sbatch {text!r}: give KEY=VALUE, such as constraint=a100")
        yield key, value if is_set else True


def in_job(spec: RunSpec, sigterm_is_minded: bool, *, debug: bool) -> int:
    """Runs a task's part of a run as a command of its own. Returns its exit code."""

    def part() -> None:
        with jobs.in_time():
            carry_out(spec)

    return exit_code_of(part, debug=debug, own_sigterm=not sigterm_is_minded)
