"""Commands that read runs: ``report``, ``samples``, ``show``, ``runs``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.output import binary_output, emit
from flamingo_eval.core.benchmark import canonical_name
from flamingo_eval.core.errors import DataError, PartialError, UserError, first_few
from flamingo_eval.core.paths import is_folder
from flamingo_eval.core.progress import note
from flamingo_eval.demo.root import data_folder


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (opt.with_settings(specs.REPORT)(report), samples, show, runs):
        app.command(rich_help_panel=opt.PANEL)(command)


def report(
    context: typer.Context,
    runs: opt.RunList,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Show 95% intervals instead of standard deviations.")
    ] = False,
    escape_formulas: opt.EscapeFormulas = False,
    *,
    given: opt.Given,
) -> None:
    """Print the table of a scored run, or of several side by side."""
    from flamingo_eval.report.load_runs import shown_runs
    from flamingo_eval.report.table import render_runs, without_scores

    settings = specs.settings_for(context.obj, (), given, specs.REPORT)
    format = settings.format
    opt.check_escape(escape_formulas, format)
    shown = shown_runs(runs, intervals=intervals)
    emit(render_runs(shown, format, escape_formulas=escape_formulas, with_notes=settings.notes), end="")
    for part in shown:
        if not part.cells and (format == "csv" or any(other.cells for other in shown)):
            note(f"no scores of {part.name}: {'; '.join(without_scores(part))}")
    check_all_answered(runs)


def samples(
    run: opt.Run,
    format: Annotated[
        str, typer.Option("--format", metavar="jsonl|csv|parquet", help="How they are written.")
    ] = "jsonl",
    out: Annotated[Path | None, typer.Option("--out", parser=opt.path,
            metavar="FILE", help="Where to. Default: stdout.")] = None,
    escape_formulas: opt.EscapeFormulas = False,
    data_root: opt.MovedData = None,
) -> None:  # fmt: skip
    """Write every query of a scored run, a row each: prompt, demonstrations, raw text, answer, score.

    For pandas: pandas.read_parquet(FILE).
    """
    from flamingo_eval.engine.reopen import reopen_answered
    from flamingo_eval.engine.samples import samples as rows
    from flamingo_eval.report.samples import FORMATS, write_csv
    from flamingo_eval.storage.outputs import open_output
    from flamingo_eval.storage.run_folder import RunFolder

    opt.check_format(format, FORMATS)
    opt.check_escape(escape_formulas, format)
    if out is None and format == "parquet" and sys.stdout.isatty():
        raise UserError("Parquet is binary: name a file with --out")
    write = partial(write_csv, escape_formulas=True) if escape_formulas else FORMATS[format]
    folder = RunFolder(run)
    _, trials, journal = reopen_answered(folder, data_folder, data_root)
    found = rows(folder, trials, journal)
    with open_output(out) if out is not None else binary_output() as file:
        write(found, file)
    check_nothing_missing(folder)


def show(
    context: typer.Context,
    run: opt.Run,
    query: Annotated[str | None, typer.Option("--query", metavar="ID", help="Show all about this query.")] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", metavar="NAME", help="With --query: only of this benchmark.")
    ] = None,
    shots: Annotated[int | None, typer.Option("--shots", help="With --query: only at this number of shots.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="With --query: only in this trial.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="With --query: of every trial that asks it, not only the first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_root: opt.MovedData = None,
) -> None:  # fmt: skip
    """Show where a run's numbers come from, or everything about one query: prompt, demonstrations, answer, score."""
    from flamingo_eval.report.show import query_text, run_text
    from flamingo_eval.storage.files import json_text
    from flamingo_eval.storage.run_folder import RunFolder

    folder = RunFolder(run)
    if query is None:
        opt.refuse(context, ("benchmark", "shots", "seed", "every", "data_root"), "needs --query")
        record = folder.read_run()
        emit(json_text(record.table()) if as_json else run_text(record.table()), end="")
        return
    from flamingo_eval.engine.query_details import query_details

    name = None if benchmark is None else canonical_name(benchmark)
    rows = query_details(folder, data_folder, query, benchmark=name, shots=shots, seed=seed, data_root=data_root)
    if len(rows) > 1 and not every:
        note(f"{len(rows) - 1} more trials ask query {query}: --all shows them, --benchmark, --shots, --seed choose")
        rows = rows[:1]
    if as_json:
        for row in rows:
            emit(json.dumps(row, ensure_ascii=False))
    else:
        emit(query_text(rows), end="")


def runs(
    folder: Annotated[Path, typer.Argument(parser=opt.path, metavar="DIR", help="Folder of runs.")] = Path(
        "results/runs"
    ),
    format: Annotated[str, typer.Option("--format", metavar="table|json", help="How they are printed.")] = "table",
) -> None:
    """List the runs in a folder: how far they have come, how old they are, and who is at work on them."""
    from flamingo_eval.report.show import runs_json, runs_text
    from flamingo_eval.storage.runs import list_runs

    formats = {"table": runs_text, "json": runs_json}
    opt.check_format(format, formats)
    emit(formats[format](list_runs(folder)), end="")


def check_all_answered(runs: Sequence[Path]) -> None:
    """:func:`check_nothing_missing` for each run folder; files of scores are passed over."""
    from flamingo_eval.storage.run_folder import RunFolder

    for run in runs:
        if is_folder(run):
            check_nothing_missing(RunFolder(run))


def check_nothing_missing(folder: Any) -> None:
    """Raises DataError (exit code 2) if answers are missing, and lists the trials; then checks for skipped queries."""
    from flamingo_eval.storage.scores import unscored

    missing = unscored(folder)
    if missing:
        listed = "; ".join(f"{benchmark}, {shots} shots, seed {seed}" for benchmark, shots, seed in missing)
        noun = "trial" if len(missing) == 1 else "trials"
        raise DataError(
            f"{folder.path}: answers are missing in {len(missing)} {noun} ({listed}); they are not shown. "
            "The command that began the run continues it"
        )
    check_nothing_partial(folder)


def check_nothing_partial(folder: Any) -> None:
    """Raises PartialError (exit code 4) if queries were left out by the user's choice (``--on-error skip``)."""
    failures = folder.read_failures()
    if folder.skipped():
        reasons = list(dict.fromkeys(row.reason for row in failures))
        raise PartialError(
            f"{folder.path}: {len(failures)} queries could not be answered and were left out; numbers with a star are "
            f"partial. The reasons:{first_few(reasons)}"
        )
