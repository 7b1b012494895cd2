"""The ``flamingo-eval`` command."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import click
import typer

from flamingo_eval import __version__
from flamingo_eval.benchmark import benchmark_names, canonical_name, load_benchmark
from flamingo_eval.cli import options as opt
from flamingo_eval.cli.config import Config, read_config
from flamingo_eval.errors import FlamingoEvalError, UserError
from flamingo_eval.runspec import DEMO, RunSpec

app = typer.Typer(
    name="flamingo-eval",
    help="Few-shot evaluation of OpenFlamingo-style vision-language checkpoints.\n\n"
    "Try it: [bold]flamingo-eval coco --shots 0,4,8,16,32[/bold] runs the embedded demo. "
    "Then name --checkpoint and --data-root.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="About a benchmark's data on disk.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_INTERRUPTED = 130
RUN_PANEL, AFTER_PANEL = "Benchmarks", "Runs"


def _print_version(value: bool) -> None:
    if value:
        print(f"flamingo-eval {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", envvar="FLAMINGO_EVAL_CONFIG",
                     help="Defaults for all options. Without it: flamingo-eval.toml of the current folder."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:  # fmt: skip
    """Few-shot evaluation of OpenFlamingo-style vision-language checkpoints."""
    context.obj = read_config(config)
    context.default_map = {
        **{name: context.obj.defaults(None) for name in ("plan", "run")},
        **{name.replace("_", "-"): context.obj.defaults(name) for name in benchmark_names()},
    }


def make_spec(
    config: Config,
    *,
    benchmarks: Iterable[str],
    shots: str,
    seeds: str | None,
    trials: int,
    checkpoint: str | None,
    data_root: str | None,
    num_samples: int | None,
    query_set_size: int,
    **how: Any,
) -> RunSpec:
    """A RunSpec from options.

    With neither checkpoint nor data named, both are the demo's, and the run says so. With one of them named, the other
    must be named too: nothing falls back to the demo in silence. ``--checkpoint demo`` names both.
    """
    if checkpoint is None and data_root not in (None, DEMO):
        raise UserError(f"--data-root {data_root} is given, but no checkpoint: add --checkpoint (or --checkpoint demo)")
    if checkpoint not in (None, DEMO) and data_root is None:
        raise UserError(f"--checkpoint {checkpoint} is given, but no data: add --data-root (or --data-root demo)")
    return RunSpec(
        benchmarks=tuple(dict.fromkeys(canonical_name(name) for name in benchmarks)),
        shots=opt.parse_numbers(shots, "--shots"),
        seeds=opt.parse_seeds(seeds, trials),
        checkpoint=checkpoint or DEMO,
        data_root=data_root or DEMO,
        num_samples=num_samples,
        query_set_size=query_set_size,
        data_overrides=config.data,
        **how,
    )


def data_folder(data_root: str) -> Path:
    """The folder that a data root names; the demo's is written first if need be."""
    if data_root != DEMO:
        return Path(data_root).expanduser()
    from flamingo_eval.demo.data import demo_data_root

    return demo_data_root()


def _benchmark_command(name: str) -> Callable[..., None]:
    def command(
        context: typer.Context,
        shots: opt.Shots = "0,4,8,16,32",
        seeds: opt.Seeds = None,
        trials: opt.Trials = 3,
        checkpoint: opt.Checkpoint = None,
        data_root: opt.DataRoot = None,
        num_samples: opt.NumSamples = None,
        query_set_size: opt.QuerySetSize = 2048,
        precision: opt.Precision = "auto",
        device: opt.Device = "auto",
        batch_size: opt.BatchSize = 8,
        out: opt.Out = None,
        format: opt.Format = "table",
    ) -> None:
        from flamingo_eval.engine.run import execute
        from flamingo_eval.engine.score import read_scores
        from flamingo_eval.report.table import FORMATS, render

        if format not in FORMATS:
            raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
        spec = make_spec(
            context.obj, benchmarks=[name], shots=shots, seeds=seeds, trials=trials, checkpoint=checkpoint,
            data_root=data_root, num_samples=num_samples, query_set_size=query_set_size, precision=precision,
            device=device, batch_size=batch_size,
        )  # fmt: skip
        result = execute(spec, data_folder(spec.data_root), out)
        notes = read_scores(result.folder)[1]
        print(render(result.cells, result.folder.read_run(), notes, format), end="")
        print(f"\nrun saved in {result.folder.path}", file=sys.stdout if format == "table" else sys.stderr)

    command.__doc__ = (
        f"Run {load_benchmark(name).title}.\n\nGiven again, the same command continues where it stopped; "
        "more shots or seeds extend the run. Answers are kept in the run folder."
    )
    return command


for _name in benchmark_names():
    app.command(_name.replace("_", "-"), rich_help_panel=RUN_PANEL)(_benchmark_command(_name))


@app.command(rich_help_panel=AFTER_PANEL)
def plan(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    shots: opt.Shots = "0,4,8,16,32",
    seeds: opt.Seeds = None,
    trials: opt.Trials = 3,
    data_root: opt.DataRoot = None,
    num_samples: opt.NumSamples = None,
    query_set_size: opt.QuerySetSize = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print every query as a line of JSON.")] = False,
) -> None:
    """Show which queries and demonstrations a run would have, without loading a model."""
    from flamingo_eval.engine.plan import query_row
    from flamingo_eval.engine.run import notices, plan_all, read_sources

    spec = make_spec(
        context.obj, benchmarks=[benchmark], shots=shots, seeds=seeds, trials=trials, checkpoint=DEMO,
        data_root=data_root, num_samples=num_samples, query_set_size=query_set_size,
    )  # fmt: skip
    sources = read_sources(spec, data_folder(spec.data_root))
    if spec.data_root == DEMO:
        print("note: demo data: generated pictures; no real benchmark", file=sys.stderr)
    for line in notices(spec, sources):
        if "demo" not in line:
            print(f"note: {line}", file=sys.stderr)
    for trial in plan_all(spec, sources, spec.cells):
        if as_json:
            for query in trial:
                print(json.dumps(query_row(query), ensure_ascii=False))
        else:
            images = len({image for query in trial for image in query.prompt.images})
            print(f"{trial.cell[0]}  {trial.shots} shots  seed {trial.seed}: {len(trial)} queries, {images} pictures")


@app.command(rich_help_panel=AFTER_PANEL)
def score(
    run: opt.Run,
    data_root: Annotated[
        str | None, typer.Option("--data-root", metavar="DIR", help="Where the data is now, if it has moved.")
    ] = None,
) -> None:
    """Score a run again from its saved answers; no model and no pictures are needed."""
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.run import rescore
    from flamingo_eval.engine.score import read_scores
    from flamingo_eval.report.table import render

    folder = RunFolder(run)
    cells = rescore(folder, data_folder, data_root)
    print(render(cells, folder.read_run(), read_scores(folder)[1], "table"), end="")


@app.command(rich_help_panel=AFTER_PANEL)
def report(run: opt.Run, format: opt.Format = "table") -> None:
    """Print the table of a scored run."""
    from flamingo_eval.engine.folder import RunFolder
    from flamingo_eval.engine.score import read_scores
    from flamingo_eval.report.table import render

    folder = RunFolder(run)
    cells, notes = read_scores(folder)
    record = folder.read_run()
    print(render(cells, record, notes, format), end="")
    unscored = len(record["cells"]) - sum(len(cell.trials) for cell in cells)
    if unscored:
        print(f"note: {unscored} trials of this run are not complete and not shown", file=sys.stderr)


@app.command(rich_help_panel=AFTER_PANEL)
def samples(
    run: opt.Run,
    format: Annotated[str, typer.Option("--format", metavar="jsonl", help="How samples are printed.")] = "jsonl",
    data_root: Annotated[
        str | None, typer.Option("--data-root", metavar="DIR", help="Where the data is now, if it has moved.")
    ] = None,
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
        print(json.dumps(row, ensure_ascii=False))


@app.command("list", rich_help_panel=AFTER_PANEL)
def list_names(
    what: Annotated[str, typer.Argument(help="benchmarks, checkpoints, or all.")] = "all",
) -> None:
    """List the benchmarks and the checkpoints that are known by name."""
    from flamingo_eval.registry import known_checkpoints

    tables = {
        "benchmarks": {name.replace("_", "-"): load_benchmark(name).title for name in benchmark_names()},
        "checkpoints": known_checkpoints(),
    }
    if what != "all" and what not in tables:
        raise UserError(f"nothing to list under {what!r}; known: {', '.join(tables)}")
    for title, table in tables.items():
        if what in (title, "all"):
            print(f"{title}:")
            width = max(len(name) for name in table)
            for name, about in table.items():
                print(f"  {name:<{width}}  {about}")


@data_app.command("where")
def data_where(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    data_root: opt.DataRoot = None,
) -> None:
    """Show where a benchmark's files are looked for, and which are there."""
    name = canonical_name(benchmark)
    rules = load_benchmark(name, context.obj.data.get(name)).data
    root = None if data_root in (None, DEMO) else Path(str(data_root)).expanduser()
    folder = (root or Path("<data root>")) / rules.folder
    print(f"{folder}/")
    for line in rules.layout:
        first = line.split()[0]
        mark = "" if root is None else ("found    " if any(folder.glob(first)) else "missing  ")
        print(f"  {mark}{line}")
    print("Other file names: section [" + name + ".data] of flamingo-eval.toml, with these settings:")
    for key, value in {"folder": rules.folder, "train": rules.train, **rules.options}.items():
        print(f"  {key} = {json.dumps(value)}")


def main() -> None:
    """Runs the command line and ends the process with the exit code that design and README state."""
    debug = "--debug" in sys.argv[1:]
    argv = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(args=argv, prog_name="flamingo-eval", standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # typer turns Ctrl-C into this
            _interrupted()
        sys.exit(code if isinstance(code, int) else 0)
    except FlamingoEvalError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _interrupted()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # the reader of a pipe (head, less) went away: nothing to complain about
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _interrupted() -> NoReturn:
    print("\ninterrupted; all finished batches are saved, and the same command continues from there", file=sys.stderr)
    sys.exit(_INTERRUPTED)
