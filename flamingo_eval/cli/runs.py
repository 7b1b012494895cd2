"""Commands that make runs and score them: ``run``, ``plan``, ``score``, ``submit``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flamingo_eval import registry
from flamingo_eval.benchmark import Benchmark, benchmark_names, canonical_name, load_benchmark
from flamingo_eval.cli import options as opt
from flamingo_eval.cli.config import Config
from flamingo_eval.cli.output import emit, wanted
from flamingo_eval.cli.reading import check_nothing_missing, check_nothing_partial
from flamingo_eval.demo.root import data_folder
from flamingo_eval.errors import DataError, UserError, first_few
from flamingo_eval.files import user_path
from flamingo_eval.images import Images, formats_with
from flamingo_eval.progress import note
from flamingo_eval.runspec import DEMO, RunSpec
from flamingo_eval.text import printable

_PANEL = "Runs"


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel="Benchmarks")(opt.with_selection(run))
    for command in (opt.with_selection(plan), score, submit):
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
    select: str,
    selection: Mapping[str, Any],
    image_formats: str | None = None,
    **others: Any,
) -> RunSpec:
    """A RunSpec from options.

    With neither checkpoint nor data named, both are the demo's, and the run says so. With one of them named, the other
    must be named too: nothing falls back to the demo in silence. ``--checkpoint demo`` names both.
    """
    named = {"checkpoint": checkpoint, "data_root": data_root, **selection}
    for name, value in named.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, str) and not value.strip():
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
        selector=select,
        selection=selection,
        image_formats=formats_with((image_formats or "").split(",")),
        data_overrides={name: config.data[name] for name in names if name in config.data},
        **others,
    )


def run_benchmarks(
    context: typer.Context,
    benchmarks: Sequence[str],
    *,
    out: Path | None,
    format: str,
    feature_cache: str | None,
    fresh: bool,
    **options: Any,
) -> None:
    """Runs benchmarks and prints one table."""
    options["batch_size"] = opt.parse_batch_size(str(options["batch_size"]))
    options["feature_cache"] = opt.parse_size(feature_cache, "--feature-cache")
    from flamingo_eval.engine.claims import process_from
    from flamingo_eval.engine.run import execute
    from flamingo_eval.engine.score_files import read_scores
    from flamingo_eval.report.table import render

    opt.check_format(format)
    opt.check_on_error(options["on_error"])
    if out is not None and str(out) == ".":
        raise UserError("--out is empty or the current folder; name a folder of its own for the run")
    options["process"] = who = process_from(os.environ, options["process"])
    if who.count > 1 and options["device"] in ("auto", "cuda"):
        options["device"] = f"local:{who.local_rank}"
    spec = make_spec(context.obj, benchmarks=benchmarks, **flags_win(context, options))
    result = execute(spec, data_folder, out, fresh=fresh)
    if who.rank:
        return  # the first process shows the table
    notes = read_scores(result.folder)[1]
    emit(render(result.cells, result.folder.read_run(), notes, format), end="")
    saved = f"\nrun saved in {result.folder.path}"
    if format == "table":
        emit(saved)
    else:
        print(printable(saved), file=sys.stderr)
    check_nothing_partial(result.folder)


def flags_win(context: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """What is said more directly wins over what stands in the environment or a file.

    ``--trials`` beats ``seeds`` from there; settings of other selectors than the chosen one mean nothing there.

    Returns:
        The options, with the chosen selector's settings as ``selection``.

    Raises:
        UserError: settings of another selector on the command line.
    """
    strength = {"COMMANDLINE": 3, "ENVIRONMENT": 2, "DEFAULT_MAP": 1}

    def given(name: str) -> int:
        source = context.get_parameter_source(name)
        return strength.get(source.name if source else "", 0)

    options = {**options, **options.pop("selection", {})}
    options = {**options, "seeds": None} if given("trials") > given("seeds") else options
    settings = {name: options.pop(name) for name in registry.selector_settings() if name in options}
    own = {setting.name for setting in registry.selector(options["select"]).settings}
    for name in settings.keys() - own:
        if given(name) == strength["COMMANDLINE"]:
            raise UserError(f"{registry.selector_settings()[name].option} goes with --select {_owner(name)}")
    return {**options, "selection": {name: value for name, value in settings.items() if name in own}}


def _owner(setting: str) -> str:
    """The selectors that have a setting."""
    known = registry.selectors().items()
    return " or ".join(name for name, one in known if setting in [own.name for own in one.settings])


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
    on_error: opt.OnError = "stop",
    process: opt.ProcessOf = None,
    executor: opt.ExecutorName = None,
    fresh: opt.Fresh = False,
    out: opt.Out = None,
    format: opt.Format = "table",
) -> None:
    """Run several benchmarks into one folder and print one table, a row for each."""
    names = _all_under(protocol) if benchmarks == ["all"] else benchmarks
    run_benchmarks(
        context, names, shots=shots, seeds=seeds, trials=trials, checkpoint=checkpoint, data_root=data_root,
        protocol=protocol, split=None, num_samples=num_samples, query_set_size=query_set_size, select=select,
        selection=selection, weights=weights, precision=precision, device=device,
        image_formats=image_formats,
        batch_size=batch_size, feature_cache=feature_cache, plain=plain, on_error=on_error, process=process,
        executor=executor, fresh=fresh, out=out, format=format,
    )  # fmt: skip


def with_section(context: typer.Context, benchmark: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a command that takes a benchmark's name, with those of its section in the configuration file."""
    own = context.obj.defaults(canonical_name(benchmark))
    sources = {name: context.get_parameter_source(name) for name in options if name in own}
    weak = {name for name, source in sources.items() if source and source.name in ("DEFAULT", "DEFAULT_MAP")}
    return {**options, **{name: own[name] for name in weak}}


def _all_under(protocol: str) -> list[str]:
    """Every benchmark that the protocol has rules for; says which it leaves out, and why."""
    names = []
    for name in benchmark_names():
        try:
            load_benchmark(name, protocol=protocol)
            names.append(name)
        except UserError as error:
            note(f"left out: {error}")
    return names


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
    ensemble: opt.Ensemble = 1,
    select: str = "random",
    *,
    selection: opt.Selection,
    device: opt.Device = "auto",
    image_formats: opt.ImageFormats = None,
    offline: opt.Offline = False,  # noqa: ARG001
    as_json: Annotated[bool, typer.Option("--json", help="Print every query as a line of JSON.")] = False,
) -> None:
    """Show which queries and demonstrations a run would have, without loading a model."""
    from flamingo_eval.engine.plan import query_row
    from flamingo_eval.engine.prepare import notices, plan_all, rank_all, read_sources, trial_keys_of
    from flamingo_eval.engine.retrieval import Retriever

    options = {
        "shots": shots, "seeds": seeds, "trials": trials, "data_root": data_root, "protocol": protocol,
        "split": split, "num_samples": num_samples, "query_set_size": query_set_size, "ensemble": ensemble,
        "select": select, **selection, "device": device,
        "image_formats": image_formats,
    }  # fmt: skip
    options = with_section(context, benchmark, options)
    spec = make_spec(context.obj, benchmarks=[benchmark], checkpoint=DEMO, **flags_win(context, options))
    sources = read_sources(spec, Images(data_folder(spec.data_root), spec.image_formats))
    for line in [*(["demo data: generated pictures"] if spec.data_root == DEMO else []), *notices(spec, sources)]:
        note(line)
    cells = trial_keys_of(spec, sources)
    nearest = rank_all(spec, sources, cells, Retriever.of(spec))
    planned = plan_all(spec, sources, cells, registry.model_source(spec.checkpoint).renderer, nearest)
    for trial in planned:
        if as_json:
            for query in trial:
                if not wanted():  # `plan ... | head`
                    return
                emit(json.dumps(query_row(trial, query), ensure_ascii=False))
        else:
            images = len({image for query in trial for image in trial.render(query)[0].images})
            emit(f"{trial.key[0]}  {trial.shots} shots  seed {trial.seed}: {len(trial)} queries, {images} pictures")
    reasons = list(dict.fromkeys(reason for trial in planned for reason in trial.failed.values()))
    if reasons:
        count = sum(len(trial.failed) for trial in planned)
        raise DataError(f"{count} queries can't be asked. The reasons:{first_few(reasons)}")


def score(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="RUN|BENCHMARK", help="A run folder; with --predictions a benchmark.")],
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", parser=opt.path, metavar="FILE",
                     help='A JSON list of {"question_id", "answer"}, {"image_id", "caption"} or {"id", "score"}.'),
    ] = None,
    data_root: opt.MovedData = None,
    protocol: opt.Protocol = "openflamingo",
    split: opt.Split = None,
    format: opt.Format = "table",
    per_item: Annotated[
        Path | None, typer.Option("--per-item", parser=opt.path,
                metavar="FILE", help="With --predictions: write a line per item.")
    ] = None,
    on_error: Annotated[
        str, typer.Option("--on-error", metavar="stop|skip", help="skip: score what predictions there are (exit 4).")
    ] = "stop",
) -> None:  # fmt: skip
    """Score a run again from its saved answers, or predictions from elsewhere; no model and no pictures are needed."""
    opt.check_format(format)
    if predictions is not None:
        name = canonical_name(what)
        overrides, data_root = context.obj.data.get(name), data_root or context.obj.defaults(name).get("data_root")
        benchmark = load_benchmark(what, overrides, protocol=protocol, split=split)
        _score_predictions(benchmark, predictions, data_root, format, per_item, on_error)
        return
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.reopen import rescore
    from flamingo_eval.engine.score_files import read_scores
    from flamingo_eval.report.table import render

    for option in ("protocol", "split", "per_item", "on_error"):
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"--{option.replace('_', '-')} goes with --predictions; a run keeps its own rules")
    folder = RunFolder(user_path(what, "RUN"))
    cells = rescore(folder, data_folder, data_root)
    emit(render(cells, folder.read_run(), read_scores(folder)[1], format), end="")
    check_nothing_missing(folder)


def _score_predictions(
    benchmark: Benchmark, predictions: Path, data_root: str | None, format: str, per_item: Path | None, on_error: str
) -> None:
    from flamingo_eval.engine.external import score_predictions
    from flamingo_eval.engine.outputs import write_output

    opt.check_on_error(on_error)
    if format not in ("table", "json"):
        raise UserError(f"unknown format {format!r} for predictions; known formats: table, json")
    if data_root is None:
        raise UserError("name the data with --data-root (or --data-root demo)")
    result = score_predictions(benchmark, data_folder(data_root), predictions)
    if result.missing and on_error == "stop":
        raise DataError(
            f"{predictions} says nothing about {len(result.missing)} queries of "
            f"{len(result.missing) + result.queries}, such as {result.missing[0]}; --on-error skip scores what is there"
        )
    for line in result.notes:
        note(line)
    if per_item is not None:
        if not result.score.per_item:
            raise UserError(f"{result.metric} has no score per item")
        rows = [{"id": id, "score": value} for id, value in result.score.per_item.items()]
        write_output(per_item, "".join(json.dumps(row) + "\n" for row in rows))
    partial = {"partial": True, "missing": len(result.missing)} if result.missing else {}
    row = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "metric": result.metric,
        "protocol": benchmark.protocol,
        "value": result.score.value,
        "queries": result.queries,
        **partial,
    }
    if format == "json":
        noted = {"notes": [*result.notes]} if result.notes else {}
        emit(json.dumps({**row, "also": dict(result.also), "groups": result.score.groups, **noted}))
    else:
        for key, value in [*row.items(), *((f"value under {name}", value) for name, value in result.also.items())]:
            emit(f"{key:<24}{value}")
    if result.missing:
        raise typer.Exit(4)


def submit(
    run: opt.Run,
    out: Annotated[Path, typer.Option("--out", parser=opt.path, metavar="FILE", help="Where to write the submission.")],
    shots: Annotated[int | None, typer.Option("--shots", help="Which number of shots, if the run has several.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which trial, if the run has several.")] = None,
    data_root: opt.MovedData = None,
) -> None:
    """Write the file that EvalAI takes for VQAv2 or VizWiz from one trial of a run."""
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.outputs import write_output
    from flamingo_eval.engine.reopen import reopen_answered
    from flamingo_eval.engine.submit import submission

    folder = RunFolder(run)
    _, trials, journal = reopen_answered(folder, data_folder, data_root)
    chosen = [t for t in trials if shots in (None, t.shots) and seed in (None, t.seed)]
    rows = submission(chosen, journal)
    write_output(out, json.dumps(rows) + "\n")
    emit(f"{len(rows)} answers written to {out}")
