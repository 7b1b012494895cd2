"""Runs as tables, plots and pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flamingo_eval.core.records import Cell, Notes
from flamingo_eval.storage.run_records import RunRecord


class Interval(NamedTuple):
    """How certain a cell's mean is.

    Attributes:
        low: lower end of its 95% interval.
        high: upper end.
        queries: standard error that comes from the queries.
        demonstrations: standard error that comes from the demonstrations; None for one trial.
        trials: each trial's own 95% interval, over its queries.
        rare: whether the score is a ROC AUC with too few images of the rarer class.
    """

    low: float
    high: float
    queries: float | None = None
    demonstrations: float | None = None
    trials: tuple[tuple[float, float], ...] = ()
    rare: bool = False


@dataclass(frozen=True)
class Shown:
    """A run in a table, alone or beside others.

    Attributes:
        name: what to call it beside others.
        cells: its cells.
        run: the content of ``run.json``.
        notes: the notes under its numbers.
        intervals: (benchmark, shots) -> 95% interval of the mean, shown instead of the standard deviation.
    """

    name: str
    cells: Sequence[Cell]
    run: RunRecord
    notes: Notes = Notes()  # noqa: RUF009  # frozen
    intervals: Mapping[tuple[str, int], Interval] = field(default_factory=dict)


def format_value(cell: Cell, interval: Interval | None = None) -> str:
    """``mean (std)`` or ``mean [low, high]``; the mean alone for one trial; a star where answers are missing."""
    spread = "" if cell.std is None else f" ({cell.std:.1f})"
    if interval is not None:
        spread = f" [{interval.low:.1f}, {interval.high:.1f}]"
    return f"{cell.mean:.1f}{spread}{'' if cell.complete else ' *'}"


@dataclass(frozen=True)
class Grid:
    """A table's texts: words in the first ``left`` columns, numbers in the others."""

    head: list[str]
    body: list[list[str]]
    left: int


def grid_of(shown: Sequence[Shown]) -> Grid:
    """A row per run, benchmark, split, protocol and selector, a column per number of shots."""
    shots = sorted({cell.shots for part in shown for cell in part.cells})
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for part in shown:
        for cell in part.cells:
            key = (part.name, cell.benchmark, cell.split, cell.metric, cell.protocol, cell.selector)
            value = format_value(cell, part.intervals.get((cell.benchmark, cell.shots)))
            rows.setdefault(key, {})[cell.shots] = value
    several = len(shown) > 1
    head = [*(["run"] if several else []), "benchmark", "split", "metric", *(f"{k} shots" for k in shots)]
    ordered = sorted(rows.items(), key=lambda row: row[0][1]) if several else rows.items()
    body = [[*key[0 if several else 1 : 4], *(values.get(k, "") for k in shots)] for key, values in ordered]
    return Grid(head, body, 4 if several else 3)
