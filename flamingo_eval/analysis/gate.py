"""The gate for CI: fails when a run is significantly worse than its baseline, or, with a margin, not surely as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flamingo_eval.analysis.compare import CellDifference, Comparison

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """One cell's.

    Attributes:
        row: what was compared.
        reason: why it fails; None where it passes.
    """

    row: CellDifference
    reason: str | None


def judge(comparison: Comparison, *, max_drop: float, margin: float | None) -> list[Verdict]:
    """Whether each cell passes.

    Args:
        comparison: the run beside its baseline.
        max_drop: a cell fails if its paired drop is larger and significant at 5%, corrected for the number of cells.
        margin: if given, a cell also fails unless it is no worse than this with 95% confidence.
    """
    return [Verdict(row, _reason(row, max_drop, margin)) for row in comparison.rows]


def _reason(row: CellDifference, max_drop: float, margin: float | None) -> str | None:
    drop = -row.difference.value
    if drop > max_drop and row.p_drop < SIGNIFICANCE:
        return f"dropped by {drop:.2f}, more than {max_drop:g} (p {row.p_drop:.4f})"
    if margin is not None and not (bound := row.difference.lower_bound(row.clusters)) >= -margin:
        return f"may be worse by {-bound:.2f}, more than the margin {margin:g}, with these queries"
    return None


def failed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that don't pass."""
    return [verdict for verdict in verdicts if verdict.reason is not None]
