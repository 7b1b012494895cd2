"""Commands that look things up: ``list``, ``data where``, ``data check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.output import emit
from flamingo_eval.core.benchmark import benchmark_names, canonical_name, load_benchmark
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.paths import user_path
from flamingo_eval.core.run_settings import DEMO
from flamingo_eval.demo.root import data_folder

data_app = typer.Typer(help="About a benchmark's data on disk.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("list", rich_help_panel=opt.PANEL)(list_names)
    data_app.command("where")(opt.with_settings(specs.DATA_CHECK - {"image_formats", "split"})(data_where))
    data_app.command("check")(opt.with_settings(specs.DATA_CHECK)(data_check))
    app.add_typer(data_app, name="data")


def list_names(
    what: Annotated[str, typer.Argument(help="benchmarks, checkpoints, or all.")] = "all",
) -> None:
    """List the benchmarks and the checkpoints that are known by name."""
    from flamingo_eval.core.registry import known_checkpoints

    tables = {
        "benchmarks": {name.replace("_", "-"): load_benchmark(name).title for name in benchmark_names()},
        "checkpoints": known_checkpoints(),
    }
    if what != "all" and what not in tables:
        raise UserError(f"nothing to list under {what!r}; known: {', '.join(tables)}")
    for title, table in tables.items():
        if what in (title, "all"):
            emit(f"{title}:")
            width = max(len(name) for name in table)
            for name, about in table.items():
                emit(f"  {name:<{width}}  {about}")


def data_where(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    *,
    given: opt.Given,
) -> None:
    """Show where a benchmark's files are looked for, and which are there."""
    name = canonical_name(benchmark)
    settings = specs.settings_for(context.obj, [name], given, specs.DATA_CHECK)
    rules = load_benchmark(name, context.obj.data.get(name), protocol=settings.protocol).data
    root = None if settings.data_root == DEMO else user_path(settings.data_root, "--data-root")
    folder = (root or Path("<data root>")) / rules.folder
    emit(f"{folder}/")
    for line in rules.layout:
        first = line.split()[0]
        mark = "" if root is None else ("found    " if any(folder.glob(first)) else "missing  ")
        emit(f"  {mark}{line}")
    emit(f"Other file names: section [{name}.data] of flamingo-eval.toml, with these settings:")
    for key, value in {"folder": rules.folder, "train": rules.train, **rules.options}.items():
        emit(f"  {key} = {json.dumps(value)}")


def data_check(
    context: typer.Context,
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    images: Annotated[bool, typer.Option("--images", help="Open every image; takes minutes.")] = False,
    *,
    given: opt.Given,
) -> None:
    """Read all of a benchmark's files, count what is there, and say what is missing."""
    from flamingo_eval.core.source import read_source
    from flamingo_eval.data.check import count_lines, image_problems, raise_problems

    name = canonical_name(benchmark)
    settings = specs.settings_for(context.obj, [name], given, specs.DATA_CHECK)
    overrides = None if settings.data_root == DEMO else context.obj.data.get(name)
    protocol, split = settings.protocol, settings.split
    root = Images(data_folder(settings.data_root), settings.formats)
    rules = load_benchmark(name, overrides, protocol=protocol, split=split)
    lines: list[tuple[str, bool]] = []
    problems: list[str] = []
    for wanted in [split] if split else rules.splits:
        try:
            source = read_source(name, root, overrides, protocol=protocol, split=wanted)
        except DataError as error:
            if wanted == rules.split:
                raise
            emit(f"-      {wanted}: {error}")  # a split that one need not have
            continue
        for line in source.data.notes:
            emit(f"       {line}")
        found = list(count_lines(source, compare=settings.data_root != DEMO))
        problems += image_problems(source, open_them=images)
        for text, right in found:
            if (text, right) not in lines:
                emit(f"{'ok   ' if right else 'WRONG'}  {text}")
                lines.append((text, right))
    emit(f"{'WRONG' if problems else 'ok   '}  {'images opened' if images else 'image files exist'}")
    raise_problems(lines, list(dict.fromkeys(problems)))
