"""The gate for CI: fails if a run is significantly worse than its baseline or, with a margin, not surely as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flamingo_eval.analysis.compare import CellDifference, Comparison

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """The verdict on one cell.

    Attributes:
        row: what was compared.
        reason: why it fails; None if it passes.
        finds: the drop that this gate would find with probability ``power``.
        power: that probability.
        blind: whether ``finds`` is more than the drop that the gate guards against.
    """

    row: CellDifference
    reason: str | None
    finds: float
    power: float
    blind: bool

    @property
    def seen(self) -> str:
        """Which drop the gate could have found, in words."""
        found = f"a drop of {self.finds:.2f} would be found with {100 * self.power:g}% probability"
        return f"{found}, more than the drop it guards against" if self.blind else found


def judge(
    comparison: Comparison, *, max_drop: float, margin: float | None, require_power: float | None = None
) -> list[Verdict]:
    """Judges whether each cell passes.

    Args:
        comparison: the run beside its baseline.
        max_drop: a cell fails if its paired drop is larger and significant at 5%, corrected for the number of cells.
        margin: if given, a cell also fails unless it is worse by no more than this with 95% confidence.
        require_power: if given, a cell also fails if a drop of ``max_drop`` would not be found with this probability.
    """
    power, cells = require_power or 0.8, len(comparison.rows)
    verdicts = []
    for row in comparison.rows:
        finds = row.difference.detectable(cells, power)
        one = Verdict(row, _reason(row, max_drop, margin), finds, power, not finds <= max_drop)
        if one.reason is None and require_power is not None and one.blind:
            one = replace(one, reason=f"can't see a drop of {max_drop:g}, only of {finds:.2f}")
        verdicts.append(one)
    return verdicts


def _reason(row: CellDifference, max_drop: float, margin: float | None) -> str | None:
    drop = -row.difference.value
    if drop > max_drop and row.p_drop < SIGNIFICANCE:
        return f"dropped by {drop:.2f}, more than {max_drop:g} (p {row.p_drop:.4f})"
    if margin is not None and not (bound := row.difference.lower_bound()) >= -margin:
        return f"may be worse by {-bound:.2f}, more than the margin {margin:g}, with these queries"
    return None


def failed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts on cells that don't pass."""
    return [verdict for verdict in verdicts if verdict.reason is not None]
