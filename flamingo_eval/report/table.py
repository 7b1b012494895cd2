"""Tables of cells: for the terminal, Markdown, CSV, JSON, LaTeX and HTML; one run or several side by side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.records import Cell, Notes
from flamingo_eval.core.text import neutralised, one_line
from flamingo_eval.engine.score import NO_ANSWERS
from flamingo_eval.report.caption import legend
from flamingo_eval.report.grid import markdown_grid, text_grid
from flamingo_eval.report.page import as_page
from flamingo_eval.report.shown import Interval, Shown, grid_of
from flamingo_eval.storage.run_records import RunRecord
from flamingo_eval.storage.scores import cell_row

if TYPE_CHECKING:
    import pandas


def as_text(shown: Sequence[Shown], *, notes: bool = True) -> str:
    """A table for the terminal."""
    grid = grid_of(shown)
    return text_grid(grid.head, grid.body, grid.left) + "\n" + "\n".join(legend(shown, notes=notes)) + "\n"


def as_markdown(shown: Sequence[Shown], *, notes: bool = True) -> str:
    """A GitHub-flavoured Markdown table with its caption."""
    grid = grid_of(shown)
    body = [[_escape_markdown(word) for word in row] for row in grid.body]
    caption = "  \n".join(_escape_markdown(line) for line in legend(shown, notes=notes))
    return markdown_grid(grid.head, body, grid.left) + "\n" + caption + "\n"


def _escape_markdown(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;").replace("|", "\\|")


_COLUMNS = ("benchmark", "split", "shots", "selector", "protocol", "metric", "mean", "std", "ddof", "complete",
            "trials", "queries", "checkpoint", "checkpoint_digest", "demo")  # fmt: skip


def cells_frame(cells: Sequence[Cell], run: RunRecord) -> pandas.DataFrame:
    """One row per cell, full precision; ``std`` is empty for one trial."""
    import pandas

    about = {"checkpoint": run.checkpoint.name, "checkpoint_digest": run.checkpoint.digest, "demo": run.demo}
    rows = [
        {**cell_row(cell).table(), "trials": len(cell.trials), "queries": cell.trials[0].queries, **about}
        for cell in cells
    ]
    return pandas.DataFrame(rows, columns=[*_COLUMNS])


def as_csv(shown: Sequence[Shown], *, escape_formulas: bool = False) -> str:
    """One line per cell, full precision."""
    import pandas

    frames = []
    for part in shown:
        frame = cells_frame(part.cells, part.run)
        if len(shown) > 1:
            frame.insert(0, "run", part.name)
        if part.intervals:
            keys = zip(frame["benchmark"], frame["shots"], strict=True)
            columns = ["low", "high", "error_queries", "error_demonstrations"]
            frame[columns] = [part.intervals[key][:4] for key in keys]
        frames.append(frame)
    table = pandas.concat(frames).map(lambda value: one_line(value) if isinstance(value, str) else value)
    if escape_formulas:
        table = table.map(lambda value: neutralised(value) if isinstance(value, str) else value)
    return table.to_csv(index=False)


def as_json(shown: Sequence[Shown]) -> str:
    """``{"cells": [...], "run": {...}, "notes": [...]}``, full precision, ``run`` is ``run.json``.

    Several runs are a list of these: ``{"runs": [...]}``.
    """
    tables = []
    for part in shown:
        rows = [cell_row(cell).table() for cell in part.cells]
        if part.intervals:
            rows = [_with_intervals(row, part.intervals[row["benchmark"], row["shots"]]) for row in rows]
        tables.append({"cells": rows, "run": part.run.table(), "notes": list(part.notes)})
    table = tables[0] if len(tables) == 1 else {"runs": tables}
    return json.dumps(table, indent=1) + "\n"


def _with_intervals(row: dict[str, Any], uncertainty: Interval) -> dict[str, Any]:
    trials = [trial | {"interval": list(own)} for trial, own in zip(row["trials"], uncertainty.trials, strict=False)]
    ends = [value if math.isfinite(value) else None for value in (uncertainty.low, uncertainty.high)]
    errors = [None if value is None or not math.isfinite(value) else value
              for value in (uncertainty.queries, uncertainty.demonstrations)]  # fmt: skip
    return row | {"interval": ends, "error_queries": errors[0], "error_demonstrations": errors[1],
                  "rare": uncertainty.rare, "trials": trials or row["trials"]}  # fmt: skip


def as_latex(shown: Sequence[Shown], *, notes: bool = True) -> str:
    """A LaTeX table environment, for the package booktabs."""
    grid = grid_of(shown)
    lines = [" & ".join(_escape_latex(word) for word in row) + r" \\" for row in (grid.head, *grid.body)]
    columns = "l" * grid.left + "r" * (len(grid.head) - grid.left)
    legend_lines = legend(shown, notes=notes)
    caption = ". ".join(_escape_latex(line) for line in legend_lines if not line.endswith(": --notes"))
    return "\n".join(
        ["% \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
         lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}.}}",
         rf"\label{{tab:{_label(shown)}}}", r"\end{table}", ""]
    )  # fmt: skip


def _label(shown: Sequence[Shown]) -> str:
    """Letters, digits and dashes: the benchmarks, or how many there are if they are more than three."""
    names = dict.fromkeys(cell.benchmark for part in shown for cell in part.cells)
    words = [*names] if len(names) <= 3 else [f"{len(names)} benchmarks"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(["flamingo-eval", *words]).lower()).strip("-")


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", "|": r"\textbar{}", **{mark: "\\" + mark for mark in "&%$#_{}"}}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))


_WITH_CAPTION: dict[str, Callable[..., str]] = {
    "table": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "html": as_page,
}
FORMATS = ("table", "markdown", "csv", "json", "latex", "html")


def render(cells: Sequence[Cell], run: RunRecord, notes: Notes, format: str, *, with_notes: bool = True) -> str:
    """A run's cells in one of ``FORMATS``; see :func:`render_runs`."""
    return render_runs([Shown("", cells, run, notes)], format, with_notes=with_notes)


def render_runs(shown: Sequence[Shown], format: str, *, escape_formulas: bool = False, with_notes: bool = True) -> str:
    """Runs side by side in one of ``FORMATS``.

    Args:
        shown: the runs.
        format: one of ``FORMATS``.
        escape_formulas: in CSV, put an apostrophe before texts that a spreadsheet would take for formulas.
        with_notes: print all notes under a table; a page always has them, and without this they are folded.

    Raises:
        UserError: unknown format, or nothing to show.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    with_cells = [part for part in shown if part.cells]
    if format == "csv":
        return as_csv(with_cells or shown, escape_formulas=escape_formulas)
    if format == "json":
        return as_json(shown)
    if with_cells:
        return _WITH_CAPTION[format](with_cells, notes=with_notes)
    return "no scores: " + "; ".join(dict.fromkeys(line for part in shown for line in without_scores(part))) + "\n"


def without_scores(part: Shown) -> list[str]:
    """Why a run has no cells."""
    return [note for note in part.notes if NO_ANSWERS in note] or ["no trial of this run is complete"]
