"""Our numbers beside published ones: what to run under which harness's rules, and what is known to differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flamingo_eval.report.evidence import Evidence
from flamingo_eval.report.published import Published, knowledge
from flamingo_eval.report.table import markdown_grid, text_grid

_PUBLISHED_TRIALS = 3
"""The paper and the cards of June 2023 give mean and (population) standard deviation over three (arXiv 2308.01390)."""


@dataclass(frozen=True)
class Reproduced:
    """One published number and ours.

    Attributes:
        number: theirs.
        ours: our mean; None where it could not be run.
        error: our standard error, of queries and demonstrations.
        why_not: why it could not be run.
    """

    number: Published
    ours: float | None
    error: float | None
    why_not: str | None = None

    @property
    def combined(self) -> float | None:
        """Standard error of the difference; their part is missing where they give no deviation."""
        if self.error is None:
            return None
        std = self.number.std or 0.0
        theirs = std / math.sqrt(_PUBLISHED_TRIALS - 1)  # ddof 0 -> 1, then of the mean
        return math.hypot(self.error, theirs)

    @property
    def verdict(self) -> str:
        """Whether the difference lies within two combined standard errors."""
        if self.ours is None or self.combined is None:
            return f"not run: {self.why_not}"
        if not math.isfinite(self.combined):
            return "too few queries to tell"
        within = abs(self.ours - self.number.mean) <= 2 * self.combined
        return ("within" if within else "OUTSIDE") + (" (theirs gives no deviation)" if self.number.std is None else "")


def plan_of(numbers: Sequence[Published]) -> dict[tuple[str, str, str], list[int]]:
    """(protocol, selector, benchmark) -> numbers of shots to run."""
    wanted: dict[tuple[str, str, str], list[int]] = {}
    for one in numbers:
        if one.protocol is not None:
            shots = wanted.setdefault((one.protocol, one.selector, one.benchmark), [])
            if one.shots not in shots:
                shots.append(one.shots)
    return wanted


def beside(
    numbers: Sequence[Published],
    found: Mapping[tuple[str, str, str], Evidence],
    problems: Mapping[tuple[str, str, str], str],
) -> list[Reproduced]:
    """Every published number with ours, where there is one."""
    rows = []
    for one in numbers:
        key = (one.protocol or "", one.selector, one.benchmark)
        cell = found[key].cells.get((one.benchmark, one.shots)) if key in found else None
        if cell is None:
            rows.append(Reproduced(one, None, None, problems.get(key, "no such trial")))
            continue
        sure = found[key].uncertainty(cell)
        rows.append(Reproduced(one, cell.mean, sure.error))
    return rows


def known_differences(rows: Sequence[Reproduced]) -> list[str]:
    """What is known to differ between ours and theirs, for the benchmarks shown."""
    shown = {(row.number.protocol, row.number.benchmark) for row in rows}
    protocols = {protocol for protocol, _ in shown}
    lines = [
        f"{known.get('benchmark', 'all')} ({known['protocol']}): {known['text']}"
        for known in knowledge()["difference"]
        if (
            known["protocol"] in protocols
            if "benchmark" not in known
            else (known["protocol"], known["benchmark"]) in shown
        )
    ]
    sources: dict[tuple[str, int, str], set[str]] = {}
    for row in rows:
        sources.setdefault((row.number.benchmark, row.number.shots, row.number.selector), set()).add(row.number.source)
    if any(len(found) > 1 for found in sources.values()):
        lines.append("where sources differ both are shown, each beside a run under its own harness's rules")
    return lines


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
