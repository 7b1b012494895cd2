"""Commands about numbers for others: ``published``, ``plot``, ``card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flamingo_eval.benchmark import canonical_name
from flamingo_eval.cli import options as opt
from flamingo_eval.cli.output import emit
from flamingo_eval.demo.root import data_folder
from flamingo_eval.errors import CheckpointError, UserError
from flamingo_eval.progress import note

_PANEL = "Runs"
RunList = Annotated[
    list[Path], typer.Argument(parser=opt.path, metavar="RUN...", help="Folders of runs, or baseline files.")
]


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (plot, published, reproduce, card):
        app.command(rich_help_panel=_PANEL)(command)


def published(
    checkpoint: Annotated[str | None, typer.Argument(metavar="CHECKPOINT", help="Name of a released one.")] = None,
    benchmarks: Annotated[str | None, typer.Option("--benchmarks", metavar="LIST", help="Only these.")] = None,
    select: Annotated[str | None, typer.Option("--select", metavar="NAME", help="Only these.")] = None,
    format: Annotated[str, typer.Option("--format", metavar="table|markdown", help="How it is printed.")] = "table",
) -> None:
    """Print the numbers that papers and model cards give for the released checkpoints, each with its source."""
    from flamingo_eval.report.published import FORMATS, chosen

    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    names = [canonical_name(name) for name in benchmarks.split(",")] if benchmarks else []
    emit(FORMATS[format](chosen(checkpoint, names, select)), end="")


def reproduce(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Name of a released one, or a TOML file.")],
    data_root: opt.DataRoot = None,
    benchmarks: Annotated[
        str | None, typer.Option("--benchmarks", metavar="LIST", help="Only these. Default: all with numbers.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="NAME", help="Whose numbers. Default: the checkpoint's own.")
    ] = None,
    num_samples: opt.NumSamples = None,
    shots: opt.Shots = "0,4,8,16,32",
    select: Annotated[
        str, typer.Option("--select", metavar="NAME", help="Numbers with these demonstrations.")
    ] = "random",
    weights: opt.Weights = None,
    offline: opt.Offline = False,  # noqa: ARG001  # the option itself does it
    precision: opt.Precision = "auto",
    device: opt.Device = "auto",
    batch_size: opt.BatchSize = "auto",
    format: Annotated[str, typer.Option("--format", metavar="table|markdown|json", help="How to print.")] = "table",
) -> None:  # fmt: skip
    """Run what is missing of a released checkpoint's published numbers, and print ours beside theirs.

    Each number is run under the rules of the harness that made it; what is known to differ all the same is said.
    """
    from flamingo_eval.cli.runs import make_spec
    from flamingo_eval.engine.run import execute
    from flamingo_eval.report import reproduce as reproducing
    from flamingo_eval.report.evidence import Evidence, read_evidence
    from flamingo_eval.report.published import chosen

    if format not in reproducing.FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(reproducing.FORMATS)}")
    if data_root is None:
        raise UserError("name the data with --data-root")
    wanted_shots = opt.parse_numbers(shots, "--shots", most=10_000)
    names = [canonical_name(name) for name in benchmarks.split(",")] if benchmarks else []
    numbers = [one for one in chosen(like or checkpoint, names, select) if one.shots in wanted_shots]
    found: dict[tuple[str, str, str], Evidence] = {}
    problems: dict[tuple[str, str, str], str] = {}
    for (protocol, selector, benchmark), asked in reproducing.plan_of(numbers).items():
        try:
            spec = make_spec(
                context.obj, benchmarks=[benchmark], shots=",".join(map(str, asked)), seeds=None, trials=None,
                checkpoint=checkpoint, data_root=data_root, protocol=protocol, split=None, select=selector,
                selection={},
                num_samples=num_samples, weights=weights, precision=precision, device=device,
                batch_size=opt.parse_batch_size(batch_size),
            )  # fmt: skip
            found[protocol, selector, benchmark] = read_evidence(execute(spec, data_folder, None).folder.path)
        except CheckpointError:
            raise
        except UserError as error:
            note(f"{benchmark} under {protocol}: {error}")
            problems[protocol, selector, benchmark] = str(error).partition("\n")[0][:60]
    emit(reproducing.FORMATS[format](reproducing.beside(numbers, found, problems)), end="")


def plot(
    runs: RunList,
    out: Annotated[
        Path | None, typer.Option("--out", parser=opt.path,
                metavar="FILE", help="A .png or .svg file. Default: small, in the terminal.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--published", metavar="CHECKPOINT", help="Draw its published numbers too.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals/--deviations", help="Bars: 95% intervals, or standard deviations over trials.")
    ] = True,
) -> None:  # fmt: skip
    """Plot score against shots, runs and published numbers together."""
    from flamingo_eval.report.evidence import shown_runs
    from flamingo_eval.report.plot import curves_of, terminal_plot, write_plot
    from flamingo_eval.report.published import chosen

    shown = shown_runs(runs, intervals=intervals)
    if not any(part.cells for part in shown):
        raise UserError("there is nothing to plot: no trial of these runs is complete")
    panels = curves_of(shown, chosen(checkpoint) if checkpoint else [])
    if out is None:
        emit(terminal_plot(panels), end="")
        return
    ours = "95% intervals" if intervals else "standard deviations over trials"
    write_plot(out, panels, f"{ours}{', published: standard deviations' if checkpoint else ''}")
    emit(f"written to {out}")


def card(
    run: opt.Run,
    name: Annotated[str | None, typer.Option("--name", help="The model's name. Default: the checkpoint's.")] = None,
) -> None:  # fmt: skip
    """Print a model card's results: `model-index` for its YAML header, then the Markdown table."""
    from flamingo_eval.report.card import model_card
    from flamingo_eval.report.evidence import shown_runs

    shown = shown_runs([run])[0]
    if not shown.cells:
        raise UserError("there is nothing to show: no trial of this run is complete")
    emit(model_card(shown, name), end="")
