"""The table of published numbers."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_eval.analysis.published import Published
from flamingo_eval.report.grid import markdown_grid, text_grid


def _grid(rows: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    shots = sorted({one.shots for one in rows})
    table: dict[tuple[str, ...], dict[int, str]] = {}
    for one in rows:
        spread = "" if one.std is None else f" ({one.std:.1f})"
        table.setdefault((one.checkpoint, one.row, one.selector, one.source), {})[one.shots] = f"{one.mean:.1f}{spread}"
    head = ["checkpoint", "benchmark", "demonstrations", "source", *(f"{k} shots" for k in shots)]
    return head, [[*key, *(values.get(k, "") for k in shots)] for key, values in table.items()]


def as_text(rows: Sequence[Published]) -> str:
    """A table for the terminal."""
    return text_grid(*_grid(rows), left=4)


def as_markdown(rows: Sequence[Published]) -> str:
    """A GitHub-flavoured Markdown table."""
    return markdown_grid(*_grid(rows), left=4)


FORMATS = {"table": as_text, "markdown": as_markdown}
