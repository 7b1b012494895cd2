"""Tables of cells: for the terminal, Markdown, CSV, JSON, LaTeX and HTML; one run or several side by side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from flamingo_eval.analysis.evidence import kept_defects
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import ELSEWHERE, Chat
from flamingo_eval.core.records import Cell
from flamingo_eval.core.run_settings import SHOWN_TO_MODEL
from flamingo_eval.core.text import neutralised, one_line
from flamingo_eval.engine.score import NO_ANSWERS
from flamingo_eval.report.grid import markdown_grid, text_grid
from flamingo_eval.storage.run_records import FIRST_RENDERING, RunRecord
from flamingo_eval.storage.scores import cell_row

if TYPE_CHECKING:
    import pandas


class Interval(NamedTuple):
    """How sure a cell's mean is.

    Attributes:
        low: lower end of its 95% interval.
        high: upper end.
        queries: standard error that comes from the queries.
        demonstrations: ... from the demonstrations; None for one trial.
        trials: each trial's own 95% interval, over its queries.
        rare: whether it is of a ROC AUC with too few of the rarer kind.
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
        notes: what has to stand under its numbers.
        intervals: (benchmark, shots) -> 95% interval of the mean, shown instead of the standard deviation.
    """

    name: str
    cells: Sequence[Cell]
    run: RunRecord
    notes: Sequence[str] = ()
    intervals: Mapping[tuple[str, int], Interval] = field(default_factory=dict)


def format_value(cell: Cell, interval: Interval | None = None) -> str:
    """``mean (std)`` or ``mean [low, high]``; the mean alone for one trial; a star where answers are missing."""
    spread = "" if cell.std is None else f" ({cell.std:.1f})"
    if interval is not None:
        spread = f" [{interval.low:.1f}, {interval.high:.1f}]"
    return f"{cell.mean:.1f}{spread}{'' if cell.complete else ' *'}"


@dataclass(frozen=True)
class Grid:
    """A table's texts: the first ``left`` columns words, the others numbers."""

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


def legend(shown: Sequence[Shown]) -> list[str]:
    """What has to stand under a table of these runs."""
    if len(shown) == 1:
        return [*map(one_line, _legend(shown[0]))]
    return [one_line(f"{part.name}: {line}") for part in shown for line in _legend(part)]


def _legend(part: Shown) -> list[str]:
    lines = caption_lines(part.cells, part.run, part.notes)
    if not part.intervals:
        return lines
    interval = "[95% interval]: queries, clustered by image, and, where there are several trials, demonstrations"
    if any(len(cell.trials) == 1 for cell in part.cells):
        interval += "; of one trial it does not cover demonstrations: others may give another number"
    rare = [f"{name} at {shots} shots" for (name, shots), one in part.intervals.items() if one.rare]
    few = [f"{', '.join(rare)}: fewer than ten of the rarer kind, too few for an interval of a ROC AUC"] if rare else []
    return [lines[0].replace("mean (standard deviation, ddof 0)", "mean"), interval, *few, *lines[1:]]


def caption_lines(cells: Sequence[Cell], run: RunRecord, notes: Sequence[str]) -> list[str]:
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
        f"{'; '.join(words)}; {' or '.join(map(str, queries))} queries per trial",
        f"protocol {_join(cell.protocol for cell in cells)}; {_shown(cells, run)}"
        f"checkpoint {run.checkpoint.name} ({run.checkpoint.digest[:10]})",
        *_rendering(cells, run),
        *_retrieval(cells, run),
        *(run.checkpoint.notes or ()),
        *kept_defects(cells, run.identity.rendering),
        *notes,
    ]
    lines += _alternative_scores(cells)
    if run.demo:
        lines.append(run.demo)
    if not all(cell.complete for cell in cells):
        lines.append("* answers are missing: a partial number, not comparable with others")
    return lines


def _shown(cells: Sequence[Cell], run: RunRecord) -> str:
    """Which demonstrations a model was shown; nobody here knows that of answers that were given elsewhere."""
    if run.identity.rendering == ELSEWHERE.name:
        return ""
    return f"{_join(cell.selector for cell in cells)} demonstrations{_pools(run)}{_orders(run)}; "


def _alternative_scores(cells: Sequence[Cell]) -> list[str]:
    """A line for each benchmark whose same answers score otherwise under other rules."""
    lines = []
    for cell in cells:
        for protocol in cell.trials[0].alternatives:
            mean = sum(trial.alternatives[protocol] for trial in cell.trials) / len(cell.trials)
            if f"{mean:.2f}" != f"{cell.mean:.2f}":
                lines.append(f"{cell.benchmark}, {cell.shots} shots: {mean:.1f} by the rules of protocol {protocol}")
    return lines


def _join(words: Any) -> str:
    return ", ".join(sorted(set(words)))


def _pools(run: RunRecord) -> str:
    sizes = sorted({part.pool for part in run.settings.benchmarks.values()})
    return f" from a pool of {' or '.join(map(str, sizes))}" if run.identity.retrieval is None else ""


def _rendering(cells: Sequence[Cell], run: RunRecord) -> list[str]:
    """How the model was shown prompts, for one that can be shown them in several ways."""
    identity = run.identity
    if identity.rendering in (FIRST_RENDERING, ELSEWHERE.name):
        return []
    words = [f"rendering {identity.rendering}"]
    if any(cell.shots == 0 for cell in cells):
        zero = "no demonstrations" if identity.rendering == Chat.name else "text-only demonstrations"
        words.append(f"{zero} at 0 shots")
    for name in SHOWN_TO_MODEL:
        if name in identity.named:
            value = identity.named[name]
            words.append(f"{name.replace('_', ' ')} {value if isinstance(value, str | int) else json.dumps(value)}")
    return ["; ".join(words)]


def _retrieval(cells: Sequence[Cell], run: RunRecord) -> list[str]:
    """By what demonstrations were retrieved, and why such a table has no standard deviation."""
    identity = run.identity
    selector, part = identity.selector, identity.retrieval
    if part is None:
        return []
    variants = [name.replace("_", " ") for name in ("unique_images", "exclude_same_image") if getattr(part, name)]
    lines = [
        f"{selector}: the most similar of all training examples by {part.encoder} ({part.encoder_digest[:10]})"
        + "".join(f", {variant}" for variant in variants)
    ]
    lines += [f"{selector}: {note}" for note in (run.encoder.notes or () if run.encoder else ())]
    if identity.num_samples is None and identity.ensemble == 1 and all(len(c.trials) == 1 for c in cells):
        lines.append(f"{selector} over all queries picks the same with every seed: one trial, so no standard deviation")
    return lines


def _orders(run: RunRecord) -> str:
    orders = run.identity.ensemble
    return f" in up to {orders} orders" if orders > 1 else ""


def as_text(shown: Sequence[Shown]) -> str:
    """A table for the terminal."""
    grid = grid_of(shown)
    return text_grid(grid.head, grid.body, grid.left) + "\n" + "\n".join(legend(shown)) + "\n"


def as_markdown(shown: Sequence[Shown]) -> str:
    """A GitHub-flavoured Markdown table with its caption."""
    grid = grid_of(shown)
    body = [[_escape_markdown(word) for word in row] for row in grid.body]
    caption = "  \n".join(_escape_markdown(line) for line in legend(shown))
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
    """``{"cells": [...], "run": {...}}``, full precision, ``run`` is ``run.json``; of several ``{"runs": [...]}``."""
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


def as_latex(shown: Sequence[Shown]) -> str:
    """A LaTeX table environment, for the package booktabs."""
    grid = grid_of(shown)
    lines = [" & ".join(_escape_latex(word) for word in row) + r" \\" for row in (grid.head, *grid.body)]
    columns = "l" * grid.left + "r" * (len(grid.head) - grid.left)
    caption = ". ".join(_escape_latex(line) for line in legend(shown))
    return "\n".join(
        ["% \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
         lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}.}}",
         rf"\label{{tab:{_label(shown)}}}", r"\end{table}", ""]
    )  # fmt: skip


def _label(shown: Sequence[Shown]) -> str:
    """Letters, digits and dashes: the benchmarks, or how many runs."""
    names = dict.fromkeys(cell.benchmark for part in shown for cell in part.cells)
    words = [*names] if len(names) <= 3 else [f"{len(names)} benchmarks"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(["flamingo-eval", *words]).lower()).strip("-")


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", "|": r"\textbar{}", **{mark: "\\" + mark for mark in "&%$#_{}"}}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def as_html(shown: Sequence[Shown]) -> str:
    """An HTML table; every text is escaped."""
    grid = grid_of(shown)
    caption = "<br>\n".join(escape(line) for line in legend(shown))

    def cells(row: Sequence[str], tag: str) -> str:
        style = ' style="text-align: right"'
        return "".join(
            f"<{tag}{style if i >= grid.left else ''}>{escape(one_line(w))}</{tag}>" for i, w in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in grid.body)
    return (
        f"<table>\n<caption>{caption}</caption>\n<thead>\n<tr>{cells(grid.head, 'th')}</tr>\n</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n"
    )


FORMATS: dict[str, Callable[[Sequence[Shown]], str]] = {
    "table": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
    "latex": as_latex,
    "html": as_html,
}


def render(cells: Sequence[Cell], run: RunRecord, notes: Sequence[str], format: str) -> str:
    """A run's cells in one of ``FORMATS``; see :func:`render_runs`."""
    return render_runs([Shown("", cells, run, notes)], format)


def render_runs(shown: Sequence[Shown], format: str, *, escape_formulas: bool = False) -> str:
    """Runs side by side in one of ``FORMATS``.

    Args:
        shown: the runs.
        format: one of ``FORMATS``.
        escape_formulas: in CSV, put an apostrophe before texts that a spreadsheet would take for formulas.

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
        return FORMATS[format](with_cells)
    return "no scores: " + "; ".join(dict.fromkeys(line for part in shown for line in without_scores(part))) + "\n"


def without_scores(part: Shown) -> list[str]:
    """Why a run has no cells."""
    return [note for note in part.notes if NO_ANSWERS in note] or ["no trial of this run is complete"]
