"""The command ``bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.output import emit
from flamingo_eval.demo.root import data_folder


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command(rich_help_panel=opt.PANEL)(opt.with_settings(specs.BENCH)(bench))


def bench(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    queries: Annotated[int, typer.Option("--queries", min=1, metavar="N",
                                         help="How many to ask at each number of shots.")] = 32,
    stability: Annotated[bool, typer.Option(
        "--stability", help="Ask them again in batches of other sizes, and count the answers that change.")] = False,
    *,
    given: opt.Given,
) -> None:  # fmt: skip
    """Measure a small sample of a configuration, and estimate the complete run.

    Prints queries per second by number of shots, where the time goes, how much of the machine's matrix-product peak
    prefill and decoding reach, memory, and how long the complete run would take.
    """
    from flamingo_eval.analysis.bench import run_bench
    from flamingo_eval.report.bench import FORMATS

    spec = specs.make_spec(context.obj, [benchmark], given, specs.BENCH)
    opt.check_format(spec.format, FORMATS)
    emit(FORMATS[spec.format](run_bench(spec, data_folder, queries, stability=stability)), end="")
