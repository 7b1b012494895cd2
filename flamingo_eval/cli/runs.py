"""Commands that make runs and score them: ``run``, ``plan``, ``score``, ``submit``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.config import Config
from flamingo_eval.cli.manifests import write_plan_manifest
from flamingo_eval.cli.output import emit, wanted
from flamingo_eval.cli.reading import check_nothing_missing, check_nothing_partial
from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import Benchmark, benchmark_names, canonical_name, load_benchmark
from flamingo_eval.core.errors import DataError, UserError, first_few
from flamingo_eval.core.images import Images
from flamingo_eval.core.paths import user_path
from flamingo_eval.core.progress import note
from flamingo_eval.core.run_settings import DEMO, SHOWN_TO_MODEL, RunSettings, RunSpec
from flamingo_eval.core.text import printable
from flamingo_eval.demo.root import data_folder


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel="Benchmarks")(opt.with_settings(specs.RUN)(run))
    app.command(rich_help_panel=opt.PANEL)(opt.with_settings(specs.PLAN)(plan))
    defaults = {"shots": "0", "seeds": "the protocol's first", "out": "none, nothing is kept",
                "data_root": "a run's own; with --predictions name it"}  # fmt: skip
    app.command(rich_help_panel=opt.PANEL)(opt.with_settings(specs.GIVEN, defaults)(score))
    app.command(rich_help_panel=opt.PANEL)(submit)


def make_run(context: typer.Context, benchmarks: Sequence[str], given: opt.Given) -> RunSpec:
    """Builds the run that the user asked for; ``all`` is every benchmark that the protocol has. Raises UserError."""
    benchmarks = [name for listed in benchmarks for name in listed.split(",") if name]
    if benchmarks == ["all"]:
        benchmarks = _all_under(specs.settings_for(context.obj, (), given, {"protocol"}).protocol)
    spec = specs.make_spec(context.obj, benchmarks, given, specs.RUN)
    if spec.out is not None and str(spec.out) == ".":
        raise UserError("--out is empty or the current folder; name a folder of its own for the run")
    return spec


def carry_out(spec: RunSpec, *, fresh: bool = False) -> None:
    """Runs benchmarks as one of the processes that share the run; the first process prints one table."""
    from flamingo_eval.engine.run import execute
    from flamingo_eval.report.table import render
    from flamingo_eval.storage.scores import read_scores

    spec = among_processes(spec)
    result = execute(spec, data_folder, spec.out, fresh=fresh)
    if spec.worker.rank:
        return  # the first process shows the table
    known, notes = read_scores(result.folder)
    asked = {cell.benchmark for cell in result.cells}
    cells = [*result.cells, *(cell for cell in known if cell.benchmark not in asked)]  # and earlier commands'
    cells.sort(key=lambda cell: (cell.benchmark, cell.shots))
    emit(render(cells, result.folder.read_run(), notes, spec.format, with_notes=spec.notes), end="")
    saved = f"\nrun saved in {result.folder.path}"
    if spec.format == "table":
        emit(saved)
    else:
        print(printable(saved), file=sys.stderr)
    check_nothing_partial(result.folder)


def among_processes(spec: RunSpec) -> RunSpec:
    """Returns the run for this process, one of those that share it, with a GPU of its own. Raises UserError."""
    from flamingo_eval.storage.claims import process_from

    worker = process_from(os.environ, spec.process)
    own_gpu = worker.count > 1 and spec.device in ("auto", "cuda")
    return replace(spec, worker=worker, device=f"local:{worker.local_rank}" if own_gpu else spec.device)


def run(
    context: typer.Context,
    benchmarks: Annotated[list[str], typer.Argument(help="Names of benchmarks, also joined by commas, or all.")],
    *,
    given: opt.Given,
    fresh: opt.Fresh = False,
) -> None:
    """Run several benchmarks into one folder and print one table, a row for each."""
    carry_out(make_run(context, benchmarks, given), fresh=fresh)


def _all_under(protocol: str) -> list[str]:
    """Returns every benchmark that the protocol has rules for; prints which are left out, and why."""
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
    *,
    given: opt.Given,
    as_json: Annotated[bool, typer.Option("--json", help="Print every query as a line of JSON.")] = False,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Show how many tokens the checkpoint's prompts have, and its limit; no weights."),
    ] = False,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", parser=opt.path, metavar="FILE", help="Write the files that the plan needs, with "
                     "sizes and digests: `data prepare --from-manifest` copies just these."),
    ] = None,
) -> None:  # fmt: skip
    """Show which queries and demonstrations a run would have, without loading a model."""
    from flamingo_eval.engine.plan import query_row
    from flamingo_eval.engine.prepare import notices, plan_all, rank_all, read_sources, trial_keys_of
    from flamingo_eval.engine.retrieval import Retriever
    from flamingo_eval.engine.token_counts import tokens_line

    if as_json + tokens + (manifest is not None) > 1:
        raise UserError("--json, --tokens and --manifest exclude each other: give one of them")
    spec = specs.make_spec(context.obj, [benchmark], given, specs.PLAN, model=False)
    source = registry.model_source(spec.checkpoint, spec.model_options)
    sources = read_sources(spec, Images(data_folder(spec.data_root), spec.formats), source.renderer)
    for line in [*(["demo data: generated images"] if spec.data_root == DEMO else []), *notices(spec, sources)]:
        note(line)
    keys = trial_keys_of(spec, sources)
    nearest = rank_all(spec, sources, keys, Retriever.of(spec))
    planned = plan_all(spec, sources, keys, source.renderer, nearest)
    if manifest is not None:
        write_plan_manifest(manifest, spec, sources, planned)
        return
    counter = registry.token_counter(source) if tokens else None
    presentation = {name: value for name in SHOWN_TO_MODEL if (value := getattr(spec, name)) is not None}
    for trial in planned:
        if counter is not None:
            emit(tokens_line(trial, counter))
        elif as_json:
            for query in trial:
                if not wanted():  # `plan ... | head`
                    return
                emit(json.dumps(query_row(trial, query) | presentation, ensure_ascii=False))
        else:
            images = len({image for query in trial for image in trial.render(query)[0].images})
            emit(f"{trial.key[0]}  {trial.shots} shots  seed {trial.seed}: {len(trial)} queries, {images} images")
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
                     help='{"question_id", "answer"}, {"image_id", "caption"} or {"id", "score"} each: a JSON list, '
                     "an object a line, or CSV.")
    ] = None,
    per_item: Annotated[
        Path | None, typer.Option("--per-item", parser=opt.path,
                metavar="FILE", help="With --predictions: write a line per item.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--name", metavar="SYSTEM", help="Whose predictions --out keeps.")
    ] = None,
    *,
    given: opt.Given,
) -> None:  # fmt: skip
    """Score a run again from its saved answers, or predictions from elsewhere; no model and no images are needed.

    With --out, predictions become a run folder: report, compare, check, plot take it like any other.
    """
    if system is not None and (predictions is None or "out" not in given):
        raise UserError("--name goes with --predictions and --out")
    if predictions is not None and "out" in given:
        opt.refuse(context, ("per_item",), "has no effect with --out: samples writes a run's")
        _keep_predictions(context.obj, canonical_name(what), predictions, system or predictions.stem, given)
        return
    if predictions is not None:
        opt.refuse(context, ("shots", "seeds", "num_samples", "notes"), "needs --out, which makes a run of them")
        name = canonical_name(what)
        settings = specs.settings_for(context.obj, [name], given, specs.SCORE)
        overrides = None if settings.data_root == DEMO else context.obj.data.get(name)
        benchmark = load_benchmark(what, overrides, protocol=settings.protocol, split=settings.split)
        if "data_root" not in specs.resolve(context.obj, name, given, specs.SCORE):
            raise UserError("name the data with --data-root (or --data-root demo)")
        _score_predictions(benchmark, predictions, settings, per_item)
        return
    from flamingo_eval.engine.reopen import rescore
    from flamingo_eval.report.table import render
    from flamingo_eval.storage.run_folder import RunFolder
    from flamingo_eval.storage.scores import read_scores

    for option in ("protocol", "split", "on_error", "shots", "seeds", "num_samples", "out"):
        if option in given and given[option].strength == opt.ON_COMMAND_LINE:
            raise UserError(
                f"{given[option].where} needs --predictions; a saved run is always scored by its own protocol and split"
            )
    if per_item is not None:
        raise UserError("--per-item needs --predictions; samples writes a run's")
    folder = RunFolder(user_path(what, "RUN"))
    moved = given.get("data_root")
    cells = rescore(folder, data_folder, moved.value if moved and moved.strength == opt.ON_COMMAND_LINE else None)
    settings = specs.settings_for(context.obj, folder.read_run().identity.benchmarks, given, specs.REPORT)
    table = render(cells, folder.read_run(), read_scores(folder)[1], settings.format, with_notes=settings.notes)
    emit(table, end="")
    check_nothing_missing(folder)


def _keep_predictions(config: Config, benchmark: str, file: Path, name: str, given: opt.Given) -> None:
    from flamingo_eval.engine.elsewhere import run_given
    from flamingo_eval.report.table import render
    from flamingo_eval.storage.scores import read_scores

    spec = specs.make_spec(config, [benchmark], given, specs.GIVEN, model=False)
    if "data_root" not in specs.resolve(config, benchmark, given, specs.GIVEN):
        raise UserError("name the data with --data-root (or --data-root demo)")
    for option, values in (("shots", spec.shots), ("seeds", spec.seeds or ())):
        if option in given and len(values) != 1:
            raise UserError(f"--{option}: one number, for rows that do not say; those that do have shots and seed")
    trial = (
        spec.shots[0] if "shots" in given else 0,
        spec.seeds[0] if spec.seeds else load_benchmark(benchmark, protocol=spec.protocol).plan.seeds[0],
    )
    assert spec.out is not None
    result = run_given(spec, data_folder, spec.out, file, name, trial)
    record, notes = result.folder.read_run(), read_scores(result.folder)[1]
    emit(render(result.cells, record, notes, spec.format, with_notes=spec.notes), end="")
    check_nothing_missing(result.folder)


def _score_predictions(benchmark: Benchmark, predictions: Path, settings: RunSettings, per_item: Path | None) -> None:
    from flamingo_eval.engine.external import score_predictions
    from flamingo_eval.storage.outputs import write_output

    format, on_error = settings.format, settings.on_error
    opt.check_format(format, ("table", "json"))
    result = score_predictions(benchmark, data_folder(settings.data_root), predictions)
    if result.missing and on_error == "stop":
        raise DataError(
            f"{predictions} says nothing about {len(result.missing)} queries of "
            f"{len(result.missing) + result.queries}, such as {result.missing[0]}; --on-error skip scores what is there"
        )
    for line in result.notes:
        note(line)
    if per_item is not None:
        rows = [{"id": id, "score": value} for id, value in result.score.per_item.items()] or [
            {"id": id, "score": value, "label": label} for id, (value, label) in result.score.decisions.items()
        ]
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
        emit(json.dumps({**row, "also": dict(result.alternatives), "groups": result.score.groups, **noted}))
    else:
        for key, value in [
            *row.items(),
            *((f"value under {name}", value) for name, value in result.alternatives.items()),
        ]:
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
    """Write the file that EvalAI takes for VQAv2 or VizWiz from one trial of a run.

    The run must be of a split without public answers: test-dev or test of VQAv2, all of test of VizWiz.
    """
    from flamingo_eval.engine.plan import select_trials
    from flamingo_eval.engine.reopen import reopen_answered
    from flamingo_eval.engine.submission import submission
    from flamingo_eval.storage.outputs import write_output
    from flamingo_eval.storage.run_folder import RunFolder

    folder = RunFolder(run)
    _, trials, journal = reopen_answered(folder, data_folder, data_root)
    rows = submission(select_trials(trials, shots, seed), journal)
    write_output(out, json.dumps(rows) + "\n")
    emit(f"{len(rows)} answers written to {out}")
