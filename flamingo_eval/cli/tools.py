"""The command that looks names up: ``list``."""

from __future__ import annotations

from typing import Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli.output import emit
from flamingo_eval.core.benchmark import benchmark_names, load_benchmark
from flamingo_eval.core.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("list", rich_help_panel=opt.PANEL)(list_names)


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
