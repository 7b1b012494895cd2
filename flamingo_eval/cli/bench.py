"""The command ``bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli.output import emit
from flamingo_eval.demo.root import data_folder
from flamingo_eval.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command(rich_help_panel="Runs")(opt.with_selection(bench))


def bench(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    queries: Annotated[int, typer.Option("--queries", min=1, help="How many to ask at each number of shots.")] = 32,
    shots: opt.Shots = "0,4,8,16,32",
    seeds: opt.Seeds = None,
    trials: opt.Trials = None,
    checkpoint: opt.Checkpoint = None,
    data_root: opt.DataRoot = None,
    protocol: opt.Protocol = "openflamingo",
    num_samples: opt.NumSamples = None,
    query_set_size: opt.QuerySetSize = 2048,
    select: str = "random",
    *,
    selection: opt.Selection,
    weights: opt.Weights = None,
    offline: opt.Offline = False,  # noqa: ARG001  # the option itself does it
    precision: opt.Precision = "auto",
    device: opt.Device = "auto",
    image_formats: opt.ImageFormats = None,
    batch_size: opt.BatchSize = "auto",
    feature_cache: opt.FeatureCache = None,
    plain: opt.Plain = False,
    format: Annotated[
        str, typer.Option("--format", metavar="table|markdown|json", help="How the table is printed.")
    ] = "table",
) -> None:
    """Measure a small sample of a configuration, and estimate the whole.

    Prints queries a second by number of shots, where the time goes, how much of the machine's matrix-product peak
    prefill and decoding reach, memory, and how long the whole run would take.
    """
    from flamingo_eval.cli.runs import flags_win, make_spec, with_section
    from flamingo_eval.engine.bench import run_bench
    from flamingo_eval.report.bench import FORMATS

    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    given = {
        "shots": shots, "seeds": seeds, "trials": trials, "checkpoint": checkpoint, "data_root": data_root,
        "protocol": protocol, "num_samples": num_samples, "query_set_size": query_set_size, "select": select,
        **selection, "weights": weights, "precision": precision,
        "device": device, "image_formats": image_formats, "batch_size": batch_size, "feature_cache": feature_cache,
    }  # fmt: skip
    options = flags_win(context, with_section(context, benchmark, given))
    options["batch_size"] = opt.parse_batch_size(str(options["batch_size"]))
    options["feature_cache"] = opt.parse_size(options["feature_cache"], "--feature-cache")
    spec = make_spec(context.obj, benchmarks=[benchmark], split=None, plain=plain, **options)
    emit(FORMATS[format](run_bench(spec, data_folder, queries)), end="")
