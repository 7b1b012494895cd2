"""Commands about published numbers, and about numbers to publish: ``published``, ``reproduce``, ``plot``, ``card``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.config import Config
from flamingo_eval.cli.output import emit
from flamingo_eval.cli.reading import check_all_answered, check_nothing_partial
from flamingo_eval.core.benchmark import benchmark_names, canonical_name
from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.core.progress import note
from flamingo_eval.demo.root import data_folder

if TYPE_CHECKING:
    from flamingo_eval.analysis.evidence import Evidence
    from flamingo_eval.analysis.published import Published
    from flamingo_eval.analysis.reproduce import Setup
    from flamingo_eval.core.run_settings import RunSettings


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    setup = "as each number was made"
    defaults = {**dict.fromkeys(("protocol", "split", "num_samples", "ensemble"), setup), "data_root": "none: name it"}
    for command in (plot, published, opt.with_settings(specs.REPRODUCE, defaults)(reproduce), card):
        app.command(rich_help_panel=opt.PANEL)(command)


def published(
    checkpoint: Annotated[str | None, typer.Argument(metavar="CHECKPOINT", help="One whose numbers are known.")] = None,
    benchmarks: Annotated[
        str | None, typer.Option("--benchmarks", metavar="LIST", help="Only these benchmarks.")
    ] = None,
    select: Annotated[
        str | None, typer.Option("--select", metavar="NAME", help="Only demonstrations picked by this selector.")
    ] = None,
    how: Annotated[
        bool, typer.Option("--how", help="What each was measured on, what is known and inferred of how, and the "
                           "command that comes nearest.")
    ] = False,
    format: Annotated[
        str, typer.Option("--format", metavar="table|markdown|csv|json", help="How it is printed.")
    ] = "table",
) -> None:  # fmt: skip
    """Print the numbers that papers and model cards give for the released checkpoints, each with its source."""
    from flamingo_eval.analysis.published import chosen
    from flamingo_eval.report.published import FORMATS, HOW

    opt.check_format(format, FORMATS)
    names = [canonical_name(name) for name in benchmarks.split(",")] if benchmarks else []
    emit((HOW if how else FORMATS)[format](chosen(checkpoint, names, select)), end="")


def reproduce(
    context: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="One whose numbers are known, or any with --like.")
    ],
    benchmarks: Annotated[
        str | None, typer.Option("--benchmarks", metavar="LIST", help="Only these. Default: all with numbers.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="NAME", help="Whose numbers to compare with. Default: its own.")
    ] = None,
    *,
    given: opt.Given,
) -> None:
    """Run what is missing of a released checkpoint's published numbers, and print ours beside theirs.

    Each number is run once, under the rules that likeliest made it; --protocol all runs it under all that are possible.
    Known differences are listed. With --select only numbers with such demonstrations. Exit code 2: one was not run.
    """
    from flamingo_eval.analysis.published import chosen
    from flamingo_eval.analysis.reproduce import beside
    from flamingo_eval.report import reproduce as reproducing
    from flamingo_eval.storage.run_folder import RunFolder

    format = specs.settings_for(context.obj, (), given, specs.REPORT).format
    opt.check_format(format, reproducing.FORMATS)
    names = [canonical_name(name) for name in benchmarks.split(",")] if benchmarks else []
    if not any(
        "data_root" in specs.resolve(context.obj, name, given, specs.REPRODUCE) for name in names or benchmark_names()
    ):
        raise UserError("name the data with --data-root")
    every = chosen(like or checkpoint, names)
    own = {
        name: specs.settings_for(context.obj, [name], given, specs.REPRODUCE) for name in {n.benchmark for n in every}
    }
    wanted = _wanted(_published(every, own), context.obj, given)
    found: dict[Setup, Evidence] = {}
    errors: dict[Setup, UserError] = {}
    for setup, asked in wanted.shots.items():
        try:
            evidence = _reproduced(context.obj, given, checkpoint, setup, asked)
        except CheckpointError:
            raise
        except UserError as error:
            note(f"{setup.benchmark} under {setup.protocol}: {error}")
            errors[setup] = error
            continue
        if evidence is None:
            return  # the first of several processes shows the table
        found[setup] = evidence
    if errors and not found:
        raise UserError(f"nothing could be run: {next(iter(errors.values()))}")
    problems = {one: shorten(str(error).partition("\n")[0], 90, placeholder=" ...") for one, error in errors.items()}
    emit(reproducing.FORMATS[format](beside(wanted.setups, found, problems)), end="")
    if problems:
        raise UserError(f"{len(problems)} of {len(wanted.shots)} runs were not possible; the reasons are above")
    for evidence in found.values():
        check_nothing_partial(RunFolder(Path(evidence.name)))


def _published(every: Sequence[Published], own: Mapping[str, RunSettings]) -> list[tuple[Published, ...]]:
    """Returns the published numbers that fit the settings, grouped if equal. Raises UserError."""
    from flamingo_eval.analysis.reproduce import distinct

    numbers = [n for n in every if n.shots in own[n.benchmark].shots and n.selector == own[n.benchmark].select]
    if not numbers:
        raise UserError("there are no published numbers at these shots, with these demonstrations")
    return distinct(numbers)


@dataclass(frozen=True)
class _Wanted:
    """What is to be run: the setups of each published number, and the shots of each setup."""

    setups: list[tuple[tuple[Published, ...], list[Setup]]]
    shots: dict[Setup, list[int]]


def _wanted(groups: Sequence[tuple[Published, ...]], config: Config, given: opt.Given) -> _Wanted:
    """Returns the setups of published numbers; settings that the user gave replace theirs."""
    from flamingo_eval.analysis.reproduce import setups_of

    setups: list[tuple[tuple[Published, ...], list[Setup]]] = []
    shots: dict[Setup, list[int]] = {}
    for group in groups:
        resolved = specs.resolve(config, group[0].benchmark, given, specs.REPRODUCE)
        protocol = resolved["protocol"].value if "protocol" in resolved else None
        own = {name: resolved[name].value for name in ("split", "num_samples", "ensemble") if name in resolved}
        possible = [one._replace(**own) for one in setups_of(group, every=protocol is not None)]
        if protocol not in (None, "all"):
            possible = list(dict.fromkeys(one._replace(protocol=protocol) for one in possible))
        setups.append((group, possible))
        for one in possible:
            asked = shots.setdefault(one, [])
            if group[0].shots not in asked:
                asked.append(group[0].shots)
    return _Wanted(setups, shots)


def _reproduced(
    config: Config, given: opt.Given, checkpoint: str, setup: Setup, shots: Sequence[int]
) -> Evidence | None:
    """Runs one benchmark as the harness that made the numbers did.

    Returns:
        The evidence; None in every process but the first.

    Raises:
        UserError, CheckpointError: it can't be run.
    """
    from flamingo_eval.analysis.evidence import read_evidence
    from flamingo_eval.cli.runs import among_processes
    from flamingo_eval.engine.run import execute

    if "data_root" not in specs.resolve(config, setup.benchmark, given, specs.REPRODUCE):
        raise UserError("name the data with --data-root")
    fixed = {
        "checkpoint": checkpoint, "protocol": setup.protocol, "select": setup.selector, "shots": tuple(shots),
        "split": setup.split, "ensemble": setup.ensemble,
        **({"num_samples": setup.num_samples} if setup.num_samples else {}),
        **({"seeds": setup.seeds} if setup.seeds else {}),
    }  # fmt: skip
    fixed_values = {name: opt.GivenValue(value, opt.ON_COMMAND_LINE, f"--{name}") for name, value in fixed.items()}
    spec = among_processes(
        specs.make_spec(config, [setup.benchmark], {**given, **fixed_values}, specs.REPRODUCE | fixed.keys())
    )
    run = execute(spec, data_folder, None)
    return None if spec.worker.rank else read_evidence(run.folder.path)


def plot(
    context: typer.Context,
    runs: opt.RunList,
    out: Annotated[
        Path | None, typer.Option("--out", parser=opt.path,
                metavar="FILE", help="A .png, .svg or .pdf file. Default: small, in the terminal.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--published", metavar="CHECKPOINT", help="Draw its published numbers too.")
    ] = None,
    intervals: Annotated[
        bool,
        typer.Option("--intervals/--deviations", help="With --out: bars are 95% intervals, or standard deviations."),
    ] = True,
) -> None:  # fmt: skip
    """Plot score against shots, runs and published numbers together."""
    from flamingo_eval.analysis.published import chosen
    from flamingo_eval.report.load_runs import shown_runs
    from flamingo_eval.report.plot import curves_of, terminal_plot, write_plot

    if out is None:
        opt.refuse(context, ("intervals",), "needs --out: the terminal's plot has no bars")
    shown = shown_runs(runs, intervals=intervals)
    if not any(part.cells for part in shown):
        raise UserError("there is nothing to plot: no trial of these runs is complete")
    panels = curves_of(shown, chosen(checkpoint) if checkpoint else [])
    if out is None:
        emit(terminal_plot(panels), end="")
    else:
        ours = "95% intervals" if intervals else "standard deviations over trials"
        write_plot(out, panels, f"{ours}{', published: standard deviations' if checkpoint else ''}")
        emit(f"written to {out}")
    check_all_answered(runs)


def card(
    run: opt.Run,
    name: Annotated[str | None, typer.Option("--name", help="The model's name. Default: the checkpoint's.")] = None,
) -> None:  # fmt: skip
    """Print a model card's results: `model-index` for its YAML header, then the Markdown table."""
    from flamingo_eval.report.card import model_card
    from flamingo_eval.report.load_runs import shown_runs

    shown = shown_runs([run])[0]
    if not shown.cells:
        raise UserError("there is nothing to show: no trial of this run is complete")
    emit(model_card(shown, name), end="")
    check_all_answered([run])
