"""Trials of made-up scores."""

from __future__ import annotations

import numpy as np

from flamingo_eval.analysis.statistics import Array, auc_influence, mean_influence
from flamingo_eval.analysis.uncertainty import Moves


def moves(scores: Array | list[float], names: list[str] | None = None) -> Moves:
    """A trial of these scores."""
    influence = mean_influence(np.asarray(scores, np.float64))
    names = names or [str(i) for i in range(len(influence))]
    return Moves(float(np.mean(scores)), dict(zip(names, influence.tolist(), strict=True)))


def themselves(count: int) -> dict[str, str]:
    """An image a query."""
    return {str(i): str(i) for i in range(count)}


def ranked(values: Array, labels: np.ndarray) -> Moves:
    auc, influence = auc_influence(values, labels)
    names = [str(i) for i in range(len(values))]
    return Moves(
        100 * auc,
        dict(zip(names, (100 * influence).tolist(), strict=True)),
        dict(zip(names, labels.tolist(), strict=True)),
    )
