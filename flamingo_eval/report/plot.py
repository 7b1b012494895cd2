"""Plots of score against shots: as PNG, SVG or PDF by matplotlib, and as small text plots for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from string import ascii_letters
from typing import Any

from flamingo_eval.analysis.published import Published, curves
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.text import one_line
from flamingo_eval.report.shown import Shown
from flamingo_eval.storage.outputs import open_output

FORMATS = ("png", "svg", "pdf")
_QUIET = "#8a8a8a"
"""Colour of published curves, which are behind a run's own; markers and dashes distinguish them."""
_DASHES = ("--", ":", "-.")
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind people can distinguish; markers differ too."""
_MARKERS = "osD^vPX"
_UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_LONGEST = 100
"""Characters of a label; a longer one would leave no room for the plot."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: in the legend.
        shots: numbers of demonstrations.
        means: scores.
        errors: lengths of the error bar below and above each mean; None where they are not known.
        published: drawn dashed.
    """

    label: str
    shots: list[int]
    means: list[float]
    errors: list[tuple[float, float] | None]
    published: bool = False


def curves_of(shown: Sequence[Shown], numbers: Sequence[Published]) -> dict[str, list[Curve]]:
    """Benchmark -> its curves: the runs' with 95% intervals (or standard deviations), then published ones."""
    found: dict[str, list[Curve]] = {}
    titles: dict[str, str] = {}
    for part in shown:
        for benchmark in dict.fromkeys(cell.benchmark for cell in part.cells):
            cells = sorted((c for c in part.cells if c.benchmark == benchmark), key=lambda c: c.shots)
            titles[benchmark] = f"{benchmark} ({cells[0].split}), {cells[0].metric}"
            errors: list[tuple[float, float] | None] = []
            for cell in cells:
                interval = part.intervals.get((benchmark, cell.shots))
                if interval is not None:
                    errors.append((cell.mean - interval[0], interval[1] - cell.mean))
                else:
                    errors.append(None if cell.std is None else (cell.std, cell.std))
            label = part.name or part.run.checkpoint.name
            if not all(cell.complete for cell in cells):
                label += " (partial)"
            if part.run.demo:
                label += " (demo data: generated images)"
            found.setdefault(titles[benchmark], []).append(
                Curve(f"{label}, {cells[0].selector}", [c.shots for c in cells], [c.mean for c in cells], errors)
            )
    for benchmark, title in titles.items():
        for label, points in curves([one for one in numbers if one.benchmark == benchmark]):
            errors = [None if one.std is None else (one.std, one.std) for one in points]
            found[title].append(
                Curve(f"published: {label}", [p.shots for p in points], [p.mean for p in points], errors, True)
            )
    return found


def write_plot(path: Path, panels: dict[str, list[Curve]], errors: str) -> None:
    """Draws a panel per benchmark into a PNG, SVG or PDF file.

    Args:
        path: its ending decides the format.
        panels: what :func:`curves_of` returns.
        errors: what the error bars are, for the caption.

    Raises:
        UserError: the file has another ending.
        StorageError: the file can't be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise UserError(f"--out {path}: the file's ending says the format; known endings: .png, .svg, .pdf")
    figure = _figure(panels, errors)
    with open_output(path) as file, _the_same_each_time():
        figure.savefig(file, format=kind, dpi=150, metadata=_UNDATED.get(kind))


def svg_plot(panels: dict[str, list[Curve]], errors: str) -> str:
    """The same as an ``svg`` element for a page; its texts are drawn as paths, so that it looks the same everywhere."""
    drawn = StringIO()
    with _the_same_each_time():
        _figure(panels, errors).savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _the_same_each_time() -> AbstractContextManager[None]:
    """Makes ids inside an SVG the same each time; otherwise they are random."""
    from matplotlib import rc_context

    context: AbstractContextManager[None] = rc_context({"svg.hashsalt": "flamingo-eval"})
    return context


def _figure(panels: dict[str, list[Curve]], errors: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(panels), 1, squeeze=False)
    for axis, (title, lines) in zip(axes[:, 0], panels.items(), strict=True):
        _draw(axis, title, lines)
    figure.supxlabel(f"shots (in-context demonstrations); bars: {errors}", fontsize=10)
    return figure


def _draw(axis: Any, title: str, lines: Sequence[Curve]) -> None:
    shots = sorted({k for line in lines for k in line.shots})
    places = {k: i for i, k in enumerate(shots)}
    own = [line for line in lines if not line.published]
    for i, line in enumerate(lines):
        # side by side, so that bars at the same number of shots don't hide each other
        x = [places[k] + 0.06 * (i - (len(lines) - 1) / 2) for k in line.shots]
        bars = [[(error or (0.0, 0.0))[side] for error in line.errors] for side in (0, 1)]
        style = _style(line, i - len(own) * line.published)
        marker = _MARKERS[i % len(_MARKERS)]
        axis.errorbar(
            x,
            line.means,
            yerr=bars if any(line.errors) else None,
            label=_plain(line.label),
            marker=marker,
            capsize=3,
            **style,
        )
    axis.set_xticks(range(len(shots)), [str(k) for k in shots])
    benchmark, _, metric = title.rpartition(", ")
    axis.set_title(_plain(benchmark), fontsize=11)
    axis.set_ylabel(_plain(metric), fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    if not any(mean for line in lines for mean in line.means):
        axis.set_ylim(0, 1)  # otherwise matplotlib invents a scale around zero
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)


def _style(line: Curve, number: int) -> dict[str, Any]:
    """The style of the n-th curve of its kind: a run's own in a colour, a published one in grey behind it."""
    if line.published:
        return {"color": _QUIET, "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.0, "markersize": 4,
                "zorder": 1}  # fmt: skip
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": "-", "linewidth": 1.8, "zorder": 3}


def _plain(text: str) -> str:
    """A text that is drawn literally: no formula between dollar signs, no character that SVG can't have."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return one_line(short).replace("$", r"\$")


def terminal_plot(panels: dict[str, list[Curve]], height: int = 14, step: int = 10) -> str:
    """The same as text, a panel per benchmark: letters mark each curve's means, and a legend names the curves."""
    return "\n".join(_panel(title, lines, height, step) for title, lines in panels.items())


def _panel(title: str, lines: Sequence[Curve], height: int, step: int) -> str:
    shots = sorted({k for line in lines for k in line.shots})
    means = [mean for line in lines for mean in line.means]
    low, span = min(means), (max(means) - min(means)) or 1.0
    rows = [[" "] * (step * len(shots)) for _ in range(height)]
    for letter, line in zip(ascii_letters, lines, strict=False):
        for k, mean in zip(line.shots, line.means, strict=True):
            row = rows[round((height - 1) * (1 - (mean - low) / span))]
            start = step * shots.index(k)
            free = [i for i in (*range(start + step // 2, start + step), *range(start, start + step)) if row[i] == " "]
            if free:  # where curves meet, their letters are side by side
                row[free[0]] = letter
    scale = {0: f"{low + span:8.1f}", height - 1: f"{low:8.1f}"}
    body = [f"{scale.get(i, ''):>8} |{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    axis = "".join(f"{k:^{step}}" for k in shots).rstrip()
    legend = [f"  {letter}: {line.label}" for letter, line in zip(ascii_letters, lines, strict=False)]
    return "\n".join([title, *body, f"{'':8} +{'-' * step * len(shots)}", f"{'shots':>8}  {axis}", *legend]) + "\n"
