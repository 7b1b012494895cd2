"""Our numbers beside published ones: what to run under which harness's rules, and what is known to differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flamingo_eval.analysis.evidence import Evidence
from flamingo_eval.analysis.published import Published, knowledge
from flamingo_eval.storage.run_records import FIRST_RENDERING

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
    rendering: str | None = None

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
        return ("within" if within else "OUTSIDE") + (
            " (no standard deviation published)" if self.number.std is None else ""
        )


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
        uncertainty = found[key].uncertainty(cell)
        rows.append(Reproduced(one, cell.mean, uncertainty.error, rendering=found[key].about.identity.rendering))
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
    for name in sorted({row.rendering for row in rows if row.rendering} - {FIRST_RENDERING}):
        lines.append(f"ours: rendering {name}; theirs: OpenFlamingo's prompts, where the source names no other")
    sources: dict[tuple[str, int, str], set[str]] = {}
    for row in rows:
        sources.setdefault((row.number.benchmark, row.number.shots, row.number.selector), set()).add(row.number.source)
    if any(len(found) > 1 for found in sources.values()):
        lines.append("where sources differ both are shown, each beside a run under its own harness's rules")
    return lines
