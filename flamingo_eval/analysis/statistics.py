"""Influence values, standard errors, permutations; pure functions over arrays.

Every metric here is, to first order, a mean over queries. It is a mean of their scores (VQA accuracy, top-1 accuracy,
CIDEr with its document frequencies held fixed) or, for ROC AUC, of the structural components of DeLong et al.
(Biometrics 44, 1988). So each query has an *influence value*: how far it moves the metric. Variances, differences
between runs and averages over trials are then computed from influence values, summed over the queries of an image.
They are summed because questions about one image are not independent (cluster-robust variance, Liang and Zeger,
Biometrika 73, 1986).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
FLIPS = 10_000
_MANY_CLUSTERS = 5000
"""Above this number of clusters the permutation distribution is taken as normal."""
_BLOCK = 1 << 22
"""Numbers in memory at once while resampling, 32 MiB."""


def mean_influence(scores: Array) -> Array:
    """Influence values of a mean: how far each query's score lies from it.

    >>> mean_influence(np.array([1.0, 0.0])).tolist()
    [0.5, -0.5]
    """
    influence: Array = scores - scores.mean()
    return influence


def auc_influence(values: Array, labels: NDArray[np.bool_]) -> tuple[float, Array]:
    """ROC AUC (in [0, 1]) and the influence value of each query, by DeLong's structural components.

    Args:
        values: decision values, the higher the likelier positive; ties count half.
        labels: which are positive; both classes must occur.

    >>> auc_influence(np.array([0.9, 0.2, 0.4, 0.1]), np.array([True, True, False, False]))[0]
    0.75
    """
    from scipy.stats import rankdata

    positive, negative = values[labels], values[~labels]
    if not len(positive) or not len(negative):
        raise ValueError("ROC AUC is undefined: all labels are of one class")
    ranks = rankdata(values)
    above = (ranks[labels] - rankdata(positive)) / len(negative)  # share of negatives below each positive
    below = 1 - (ranks[~labels] - rankdata(negative)) / len(positive)  # share of positives above each negative
    auc = float(above.mean())
    influence = np.empty(len(values))
    influence[labels] = (above - auc) * len(values) / len(positive)
    influence[~labels] = (below - auc) * len(values) / len(negative)
    return auc, influence


def cluster_sums(influence: Array, clusters: Sequence[str]) -> Array:
    """Influence values summed by cluster (image), in order of first occurrence."""
    places: dict[str, int] = {}
    index = np.fromiter((places.setdefault(name, len(places)) for name in clusters), np.int64, len(clusters))
    sums: Array = np.bincount(index, influence, len(places)).astype(np.float64)
    return sums


def standard_error(sums: Array, queries: int) -> float:
    """Standard error of a metric from its influence values' cluster sums; NaN for one cluster."""
    count = len(sums)
    if count < 2:
        return float("nan")
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / queries)


def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t.

    >>> round(t_quantile(1e9), 3)
    1.96
    """
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, max(degrees, 1.0)))


def sign_flip_p(sums: Array, seed: int = 0) -> tuple[float, float]:
    """(two-sided, one-sided) p-values of no difference, by flipping the signs of clusters' paired differences.

    The one-sided p-value is that of a drop as large as this. The sums are those of differences, *not* of their
    deviations from the mean.
    Above 5,000 clusters the distribution is taken as normal.
    """
    from scipy.stats import norm

    total, count = float(sums.sum()), len(sums)
    if not np.any(sums):
        return 1.0, 1.0
    if count > _MANY_CLUSTERS:
        z = total / float(np.sqrt(np.square(sums).sum()))
        return float(2 * norm.sf(abs(z))), float(norm.cdf(z))
    draw = np.random.default_rng(seed)
    rows = max(1, _BLOCK // count)
    two = one = 1  # the observed signs are one of the choices
    slack = 1e-12 * float(np.abs(sums).sum())
    for start in range(0, FLIPS, rows):
        signs = draw.integers(0, 2, (min(rows, FLIPS - start), count), dtype=np.int8)
        totals = 2 * (signs @ sums) - total
        two += int((np.abs(totals) >= abs(total) - slack).sum())
        one += int((totals <= total + slack).sum())
    return two / (FLIPS + 1), one / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = round(highest, 12)
    return corrected
