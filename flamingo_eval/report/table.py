"""Tables of cells: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flamingo_eval.engine.score import cell_row
from flamingo_eval.errors import UserError
from flamingo_eval.nouns import Cell

if TYPE_CHECKING:
    import pandas

Run = Mapping[str, Any]
"""The content of ``run.json``."""


def format_value(cell: Cell) -> str:
    """``mean (std)``; the mean alone for one trial; a star marks a cell with answers missing."""
    spread = "" if cell.std is None else f" ({cell.std:.1f})"
    return f"{cell.mean:.1f}{spread}{'' if cell.complete else ' *'}"


def _grid(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row per benchmark, split, protocol and selector, a column per number of shots."""
    shots = sorted({cell.shots for cell in cells})
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for cell in cells:
        key = (cell.benchmark, cell.split, cell.metric, cell.protocol, cell.selector)
        rows.setdefault(key, {})[cell.shots] = format_value(cell)
    head = ["benchmark", "split", "metric", *(f"{k} shots" for k in shots)]
    body = [[*key[:3], *(values.get(k, "") for k in shots)] for key, values in rows.items()]
    return head, body


def caption_lines(cells: Sequence[Cell], run: Run, notes: Sequence[str]) -> list[str]:
    """What has to stand under a table of these cells."""
    trials = {tuple(t.seed for t in cell.trials) for cell in cells}
    queries = sorted({t.queries for cell in cells for t in cell.trials})
    words = []
    for seeds in sorted(trials):
        if len(seeds) > 1:
            listed = ", ".join(map(str, seeds))
            words.append(f"mean (standard deviation, ddof 0) over {len(seeds)} trials, seeds {listed}")
        else:
            words.append(f"one trial, seed {seeds[0]}")
    lines = [
        f"{'; '.join(words)}; {' or '.join(map(str, queries))} queries a trial",
        f"protocol {_join(cell.protocol for cell in cells)}; {_join(cell.selector for cell in cells)} demonstrations"
        f"{_pools(run)}{_orders(run)}; checkpoint {run['checkpoint']['name']} ({run['checkpoint']['digest'][:10]})",
        *_retrieval(cells, run),
        *run["checkpoint"].get("notes", ()),
        *notes,
    ]
    lines += _other_scores(cells)
    if run["demo"]:
        lines.append(run["demo"])
    if not all(cell.complete for cell in cells):
        lines.append("* answers are missing: a partial number, not comparable with others")
    return lines


def _other_scores(cells: Sequence[Cell]) -> list[str]:
    """A line for each benchmark whose same answers score otherwise under other rules."""
    lines = []
    for cell in cells:
        for protocol in cell.trials[0].also:
            mean = sum(trial.also[protocol] for trial in cell.trials) / len(cell.trials)
            if f"{mean:.2f}" != f"{cell.mean:.2f}":
                lines.append(f"{cell.benchmark}, {cell.shots} shots: {mean:.1f} by the rules of protocol {protocol}")
    return lines


def _join(words: Any) -> str:
    return ", ".join(sorted(set(words)))


def _pools(run: Run) -> str:
    sizes = sorted({part["pool"] for part in run["settings"]["benchmarks"].values()})
    return f" from a pool of {' or '.join(map(str, sizes))}" if run["identity"]["selector"] == "random" else ""


def _retrieval(cells: Sequence[Cell], run: Run) -> list[str]:
    """How RICES picked, and why its table has no standard deviation."""
    identity = run["identity"]
    rices = identity.get("rices")
    if rices is None:
        return []
    variants = [name.replace("_", " ") for name in ("unique_images", "exclude_same_image") if rices[name]]
    lines = [
        f"rices: the most similar of all training examples by {rices['encoder']} ({rices['encoder_digest'][:10]})"
        + "".join(f", {variant}" for variant in variants)
    ]
    if identity["num_samples"] is None and identity["ensemble"] == 1 and all(len(c.trials) == 1 for c in cells):
        lines.append("RICES over all queries picks the same with every seed: one trial, so no standard deviation")
    return lines


def _orders(run: Run) -> str:
    orders = run["identity"]["ensemble"]
    return f" in up to {orders} orders" if orders > 1 else ""


def as_text(cells: Sequence[Cell], run: Run, notes: Sequence[str]) -> str:
    """A table for the terminal."""
    return text_grid(*_grid(cells)) + "\n" + "\n".join(caption_lines(cells, run, notes)) + "\n"


def text_grid(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 3) -> str:
    """Columns for the terminal, the first ``left`` of them words, the others numbers."""
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        words = [f"{cell:<{width}}" for cell, width in zip(row[:left], widths[:left], strict=True)]
        numbers = [f"{cell:>{width}}" for cell, width in zip(row[left:], widths[left:], strict=True)]
        return "  ".join([*words, *numbers]).rstrip()

    return "\n".join([line(head), "-" * len(line(head)), *map(line, body)]) + "\n"


def as_markdown(cells: Sequence[Cell], run: Run, notes: Sequence[str]) -> str:
    """A GitHub-flavoured Markdown table with its caption."""
    caption = "  \n".join(_escape_markdown(line) for line in caption_lines(cells, run, notes))
    return markdown_grid(*_grid(cells)) + "\n" + caption + "\n"


def markdown_grid(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 3) -> str:
    """A GitHub-flavoured Markdown table, the first ``left`` columns words, the others numbers."""
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ruler, *body))


def _escape_markdown(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def cells_frame(cells: Sequence[Cell], run: Run) -> pandas.DataFrame:
    """One row per cell, full precision; ``std`` is empty for one trial."""
    import pandas

    columns = ["benchmark", "split", "shots", "selector", "protocol", "metric", "mean", "std", "ddof", "complete"]
    rows = []
    for cell in cells:
        row = cell_row(cell)
        rows.append(
            {column: row[column] for column in columns}
            | {"trials": len(cell.trials), "queries": cell.trials[0].queries}
            | {"checkpoint": run["checkpoint"]["name"], "checkpoint_digest": run["checkpoint"]["digest"]}
            | {"demo": run["demo"]}
        )
    return pandas.DataFrame(rows)


def as_csv(cells: Sequence[Cell], run: Run, notes: Sequence[str]) -> str:  # noqa: ARG001
    """One line per cell, full precision."""
    return cells_frame(cells, run).to_csv(index=False)


def as_json(cells: Sequence[Cell], run: Run, notes: Sequence[str]) -> str:
    """``{"cells": [...], "run": {...}}``, full precision; ``run`` is ``run.json``."""
    return json.dumps({"cells": [cell_row(c) for c in cells], "run": dict(run), "notes": list(notes)}, indent=1) + "\n"


FORMATS: dict[str, Callable[[Sequence[Cell], Run, Sequence[str]], str]] = {
    "table": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def render(cells: Sequence[Cell], run: Run, notes: Sequence[str], format: str) -> str:
    """Cells in one of ``FORMATS``.

    Raises:
        UserError: unknown format, or nothing to show.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    if not cells:
        raise UserError("there is nothing to show: no trial of this run is complete")
    return FORMATS[format](cells, run, notes)
