"""Commands that make runs and read them: ``run``, ``plan``, ``score``, ``report``, ``samples``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flamingo_eval.benchmark import benchmark_names, canonical_name, load_benchmark
from flamingo_eval.cli import options as opt
from flamingo_eval.cli.config import Config
from flamingo_eval.cli.output import emit, note
from flamingo_eval.errors import DataError, UserError
from flamingo_eval.runspec import DEMO, RunSpec

_PANEL = "Runs"


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel="Benchmarks")(run)
    for command in (plan, score, report, samples):
        app.command(rich_help_panel=_PANEL)(command)


def make_spec(
    config: Config,
    *,
    benchmarks: Iterable[str],
    shots: str,
    seeds: str | None,
    trials: int | None,
    checkpoint: str | None,
    data_root: str | None,
    protocol: str,
    split: str | None,
    **others: Any,
) -> RunSpec:
    """A RunSpec from options.

    With neither checkpoint nor data named, both are the demo's, and the run says so. With one of them named, the other
    must be named too: nothing falls back to the demo in silence. ``--checkpoint demo`` names both.
    """
    for option, value in (("--checkpoint", checkpoint), ("--data-root", data_root)):
        if value is not None and not value.strip():
            raise UserError(f"{option} is empty")
    if checkpoint is None and data_root not in (None, DEMO):
        raise UserError(f"--data-root {data_root} is given, but no checkpoint: add --checkpoint (or --checkpoint demo)")
    if checkpoint not in (None, DEMO) and data_root is None:
        raise UserError(f"--checkpoint {checkpoint} is given, but no data: add --data-root (or --data-root demo)")
    names = tuple(dict.fromkeys(canonical_name(name) for name in benchmarks))
    default_seeds = load_benchmark(names[0], protocol=protocol).plan.seeds
    return RunSpec(
        benchmarks=names,
        shots=opt.parse_numbers(shots, "--shots", most=10_000),
        seeds=opt.parse_seeds(seeds, trials, default_seeds),
        checkpoint=checkpoint or DEMO,
        data_root=data_root or DEMO,
        protocol=protocol,
        split=split,
        data_overrides={name: config.data[name] for name in names if name in config.data},
        **others,
    )


def data_folder(data_root: str) -> Path:
    """The folder that a data root names; the demo's is written first if need be."""
    if data_root != DEMO:
        return Path(data_root).expanduser()
    from flamingo_eval.demo.data import demo_data_root

    return demo_data_root()


def run_benchmarks(
    context: typer.Context, benchmarks: Sequence[str], *, out: Path | None, format: str, **options: Any
) -> None:
    """Runs benchmarks and prints one table."""
    from flamingo_eval.engine.run import execute
    from flamingo_eval.engine.score import read_scores
    from flamingo_eval.report.table import render

    opt.check_format(format)
    if out is not None and str(out) == ".":
        raise UserError("--out is empty or the current folder; name a folder of its own for the run")
    spec = make_spec(context.obj, benchmarks=benchmarks, **_flags_win(context, options))
    result = execute(spec, data_folder(spec.data_root), out)
    notes = read_scores(result.folder)[1]
    if result.cells:
        emit(render(result.cells, result.folder.read_run(), notes, format), end="")
    else:
        note(f"split {spec.split} has no public answers: predictions, no score")
    print(f"\nrun saved in {result.folder.path}", file=sys.stdout if format == "table" else sys.stderr)


def _flags_win(context: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """``--trials`` on the command line beats ``seeds`` from the environment or a file, and from there the file."""
    strength = {"COMMANDLINE": 3, "ENVIRONMENT": 2, "DEFAULT_MAP": 1}

    def given(name: str) -> int:
        source = context.get_parameter_source(name)
        return strength.get(source.name if source else "", 0)

    return {**options, "seeds": None} if given("trials") > given("seeds") else options


def run(
    context: typer.Context,
    benchmarks: Annotated[list[str], typer.Argument(help="Names of benchmarks, or all.")],
    shots: opt.Shots = "0,4,8,16,32",
    seeds: opt.Seeds = None,
    trials: opt.Trials = None,
    checkpoint: opt.Checkpoint = None,
    data_root: opt.DataRoot = None,
    protocol: opt.Protocol = "openflamingo",
    num_samples: opt.NumSamples = None,
    query_set_size: opt.QuerySetSize = 2048,
    precision: opt.Precision = "auto",
    device: opt.Device = "auto",
    batch_size: opt.BatchSize = 8,
    out: opt.Out = None,
    format: opt.Format = "table",
) -> None:
    """Run several benchmarks into one folder and print one table, a row for each."""
    names = list(benchmark_names()) if benchmarks == ["all"] else benchmarks
    run_benchmarks(
        context, names, shots=shots, seeds=seeds, trials=trials, checkpoint=checkpoint, data_root=data_root,
        protocol=protocol, split=None, num_samples=num_samples, query_set_size=query_set_size, precision=precision,
        device=device, batch_size=batch_size, out=out, format=format,
    )  # fmt: skip


def plan(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    shots: opt.Shots = "0,4,8,16,32",
    seeds: opt.Seeds = None,
    trials: opt.Trials = None,
    data_root: opt.DataRoot = None,
    protocol: opt.Protocol = "openflamingo",
    split: opt.Split = None,
    num_samples: opt.NumSamples = None,
    query_set_size: opt.QuerySetSize = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print every query as a line of JSON.")] = False,
) -> None:
    """Show which queries and demonstrations a run would have, without loading a model."""
    from flamingo_eval.engine.plan import query_row
    from flamingo_eval.engine.run import notices, plan_all, read_sources

    options = {
        "shots": shots, "seeds": seeds, "trials": trials, "data_root": data_root, "protocol": protocol,
        "split": split, "num_samples": num_samples, "query_set_size": query_set_size,
    }  # fmt: skip
    own = context.obj.defaults(canonical_name(benchmark))
    for name in options:  # a benchmark's section of the configuration file is for its plan, too
        source = context.get_parameter_source(name)
        if name in own and source is not None and source.name in ("DEFAULT", "DEFAULT_MAP"):
            options[name] = own[name]
    spec = make_spec(context.obj, benchmarks=[benchmark], checkpoint=DEMO, **_flags_win(context, options))
    sources = read_sources(spec, data_folder(spec.data_root))
    for line in [*(["demo data: generated pictures"] if spec.data_root == DEMO else []), *notices(spec, sources)]:
        note(line)
    for trial in plan_all(spec, sources, spec.cells):
        if as_json:
            for query in trial:
                emit(json.dumps(query_row(query), ensure_ascii=False))
        else:
            images = len({image for query in trial for image in query.prompt.images})
            emit(f"{trial.cell[0]}  {trial.shots} shots  seed {trial.seed}: {len(trial)} queries, {images} pictures")


def score(
    run: opt.Run,
    data_root: opt.MovedData = None,
) -> None:
    """Score a run again from its saved answers; no model and no pictures are needed."""
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.run import rescore
    from flamingo_eval.engine.score import read_scores
    from flamingo_eval.report.table import render

    folder = RunFolder(run)
    cells = rescore(folder, data_folder, data_root)
    if cells:
        emit(render(cells, folder.read_run(), read_scores(folder)[1], "table"), end="")
    _check_nothing_missing(folder)


def report(run: opt.Run, format: opt.Format = "table") -> None:
    """Print the table of a scored run."""
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.score import read_scores
    from flamingo_eval.report.table import render

    opt.check_format(format)
    folder = RunFolder(run)
    cells, notes = read_scores(folder)
    if cells:
        emit(render(cells, folder.read_run(), notes, format), end="")
    _check_nothing_missing(folder)


def samples(
    run: opt.Run,
    format: Annotated[str, typer.Option("--format", metavar="jsonl", help="How samples are printed.")] = "jsonl",
    data_root: opt.MovedData = None,
) -> None:
    """Print every query of a scored run: prompt, demonstrations, raw text, answer, score."""
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.journal import Journal
    from flamingo_eval.engine.run import reopen
    from flamingo_eval.engine.score import samples as rows

    if format != "jsonl":
        raise UserError(f"unknown format {format!r}; known formats: jsonl")
    folder = RunFolder(run)
    _, trials = reopen(folder, data_folder, data_root)
    for row in rows(folder, trials, Journal(folder.journal_file)):
        emit(json.dumps(row, ensure_ascii=False))
    _check_nothing_missing(folder)


def _check_nothing_missing(folder: Any) -> None:
    """A run is complete, or it says what is missing and ends with exit code 2."""
    from flamingo_eval.engine.score import unscored

    missing = unscored(folder)
    if missing:
        cells = "; ".join(f"{benchmark}, {shots} shots, seed {seed}" for benchmark, shots, seed in missing)
        raise DataError(
            f"{folder.path}: answers are missing in {len(missing)} trials ({cells}); they are not shown. "
            "The command that began the run continues it"
        )
