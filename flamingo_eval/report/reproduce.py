"""The table of our numbers beside published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flamingo_eval.analysis.reproduce import Reproduced, known_differences
from flamingo_eval.report.grid import markdown_grid, text_grid

_HEAD = ["benchmark", "demonstrations", "protocol", "source", "shots", "ours", "theirs", "difference", "2 x error",
         "verdict"]  # fmt: skip


def _body(rows: Sequence[Reproduced]) -> list[list[str]]:
    body = []
    for row in rows:
        one = row.number
        theirs = f"{one.mean:.1f}" + ("" if one.std is None else f" ({one.std:.1f})")
        head = [one.row, one.selector, one.protocol or "", one.source, str(one.shots)]
        if row.ours is None or row.combined is None:
            body.append([*head, "-", theirs, "-", "-", row.verdict])
        else:
            difference, error = f"{row.ours - one.mean:+.1f}", f"{2 * row.combined:.1f}"
            body.append([*head, f"{row.ours:.1f}", theirs, difference, error, row.verdict])
    return body


def as_text(rows: Sequence[Reproduced]) -> str:
    """A table for the terminal."""
    return text_grid(_HEAD, _body(rows), left=4) + "".join(f"note: {line}\n" for line in known_differences(rows))


def as_markdown(rows: Sequence[Reproduced]) -> str:
    """A GitHub-flavoured Markdown table."""
    return markdown_grid(_HEAD, _body(rows), left=4) + "\n" + "".join(f"- {line}\n" for line in known_differences(rows))


def as_json(rows: Sequence[Reproduced]) -> str:
    """Full precision."""
    table = []
    for row in rows:
        one = row.number
        ours = {"ours": row.ours, "standard_error": row.error, "verdict": row.verdict}
        about = {"benchmark": one.benchmark, "evaluated": one.row, "shots": one.shots, "selector": one.selector}
        theirs = {"protocol": one.protocol, "source": one.source, "theirs": one.mean, "theirs_std": one.std}
        table.append({**about, **theirs, **ours})
    return json.dumps({"rows": table, "known_differences": known_differences(rows)}, indent=1) + "\n"


FORMATS = {"table": as_text, "markdown": as_markdown, "json": as_json}
