"""The table of a run beside its controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from flamingo_eval.analysis.controls import CONTROLS
from flamingo_eval.core.records import Cell, Notes
from flamingo_eval.report.caption import caption_lines
from flamingo_eval.report.grid import markdown_grid, text_grid
from flamingo_eval.report.shown import format_value
from flamingo_eval.storage.run_records import RunRecord
from flamingo_eval.storage.scores import cell_row

Rows = Mapping[str, Sequence[Cell]]
"""Name of the run or of a control -> its cells; the run itself comes first."""

AS_RUN = "as run"


def _grid(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """A row per benchmark and control, a column per number of shots."""
    shots = sorted({cell.shots for cells in rows.values() for cell in cells})
    benchmarks = dict.fromkeys(cell.benchmark for cells in rows.values() for cell in cells)
    body = []
    for benchmark in benchmarks:
        for name, cells in rows.items():
            own = {cell.shots: cell for cell in cells if cell.benchmark == benchmark}
            if own:
                metric = next(iter(own.values())).metric
                body.append([benchmark, metric, name, *(format_value(own[k]) if k in own else "-" for k in shots)])
    return ["benchmark", "metric", "control", *(f"{k} shots" for k in shots)], body


def _legend(rows: Rows, run: RunRecord, notes: Notes) -> list[str]:
    lines = [f"{name}: {CONTROLS[name]}" for name in rows if name in CONTROLS]
    lines.append("-: this control changes nothing there, or the trial is incomplete")
    return [*lines, *caption_lines(next(cells for cells in rows.values() if cells), run, notes)]


def as_text(rows: Rows, run: RunRecord, notes: Notes) -> str:
    """For the terminal."""
    return text_grid(*_grid(rows)) + "\n" + "\n".join(_legend(rows, run, notes)) + "\n"


def as_markdown(rows: Rows, run: RunRecord, notes: Notes) -> str:
    """A GitHub-flavoured table with a list under it."""
    return markdown_grid(*_grid(rows)) + "\n" + "".join(f"- {line}\n" for line in _legend(rows, run, notes))


def as_json(rows: Rows, run: RunRecord, notes: Notes) -> str:
    """``{"controls": {name: [cell, ...]}, "run": {...}}``, full precision."""
    cells = {name: [cell_row(cell).table() for cell in members] for name, members in rows.items()}
    return json.dumps({"controls": cells, "run": run.table(), "notes": list(notes)}, indent=1) + "\n"


FORMATS: dict[str, Callable[[Rows, RunRecord, Notes], str]] = {
    "table": as_text,
    "markdown": as_markdown,
    "json": as_json,
}
