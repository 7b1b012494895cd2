"""How sure a number is: influence values, intervals, paired differences; pure functions over arrays.

Every metric here is, to first order, a mean over queries: of their scores (VQA accuracy, top-1 accuracy, CIDEr with its
document frequencies held fixed), or for ROC AUC of the structural components of DeLong et al. (Biometrics 44, 1988).
So each query has an *influence value*: how far it moves the metric. Variances, differences between runs and averages
over trials are then sums of influence values over the queries of an image, since questions about one image are not
independent (cluster-robust variance, Liang and Zeger, Biometrika 73, 1986).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES, FLIPS = 2000, 10_000
FEWEST_CLUSTERS = 10
"""Fewer images can't show that a run is no worse."""
_MANY_CLUSTERS = 5000
"""From here on the permutation distribution is normal for all purposes."""
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
        labels: which are positive; both kinds must occur.

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


def bootstrap_interval(value: float, sums: Array, queries: int, seed: int = 0) -> tuple[float, float]:
    """95% interval of a metric by resampling clusters, in first order (the basic bootstrap of its influence values).

    Args:
        value: the metric.
        sums: its influence values' sums by cluster.
        queries: how many queries there are.
        seed: of the resampling.
    """
    moves = _resampled(sums, RESAMPLES, seed) / queries * np.sqrt(len(sums) / max(1, len(sums) - 1))
    low, high = np.quantile(moves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value - float(high), value - float(low)


def _resampled(sums: Array, times: int, seed: int) -> Array:
    """Sums over clusters drawn with replacement, as often as there are clusters, ``times`` times."""
    draw, count = np.random.default_rng(seed), len(sums)
    rows = max(1, _BLOCK // count)
    parts = []
    for start in range(0, times, rows):
        picked = draw.integers(0, count, (min(rows, times - start), count))
        parts.append(sums[picked].sum(axis=1))
    return np.concatenate(parts)


def sign_flip_p(sums: Array, seed: int = 0) -> tuple[float, float]:
    """(two-sided, one-sided) p-values of no difference, by flipping the signs of clusters' paired differences.

    One-sided: of a drop as large as this. The sums are those of differences, *not* of their deviations from the mean.
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
    two = one = 1  # the observed order is one of the orders
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


@dataclass(frozen=True)
class Uncertainty:
    """How sure a mean over trials is, in the metric's unit.

    Attributes:
        low: lower end of the 95% interval.
        high: upper end.
        queries: standard error that comes from which queries were asked (and from each query's own draws).
        demonstrations: standard error that comes from what a trial's queries have in common, such as its pool of
            demonstrations; None for one trial, which can't tell.
    """

    low: float
    high: float
    queries: float
    demonstrations: float | None

    @property
    def error(self) -> float:
        """Standard error of both together."""
        return float(np.hypot(self.queries, self.demonstrations or 0.0))


def mean_uncertainty(
    values: Sequence[float], influences: Sequence[Mapping[str, float]], clusters: Mapping[str, str]
) -> Uncertainty:
    """Of the mean over trials: queries and demonstrations apart.

    Args:
        values: each trial's metric.
        influences: for each trial, query -> influence value.
        clusters: query -> image.

    A two-way model: a query's score is its own level, its trial's, and a rest of its own. The query part is the
    variance of the queries' means over trials, and holds the rest; the variance among trials holds the rest too (and
    where trials draw their own queries, these), so that share is taken off before the two are added. Degrees of freedom
    by Satterthwaite (Biometrics Bulletin 2, 1946).
    """
    trials, mean = len(values), float(np.mean(values))
    same = all(part.keys() == influences[0].keys() for part in influences)
    asked = list(dict.fromkeys(query for part in influences for query in part))
    names = [clusters[query] for query in asked]
    # (trials, clusters): how far each image's queries move each trial's metric, and so the mean
    moves = np.array(
        [cluster_sums(np.array([part.get(q, 0.0) for q in asked]), names) / (len(part) * trials) for part in influences]
    )
    sums = moves.sum(axis=0)
    queries = standard_error(sums, 1)
    degrees, excess, demonstrations = float(len(sums) - 1), 0.0, None
    if trials > 1:
        rest = trials * float(np.square(moves - moves.mean(axis=0)).sum()) / (trials - 1) if same else queries**2
        excess = max(0.0, float(np.var(values, ddof=1)) / trials - rest)
        demonstrations = float(np.sqrt(excess))
        degrees = _satterthwaite(queries**2, len(sums) - 1, excess, trials - 1)
    if not np.isfinite(queries):
        return Uncertainty(-np.inf, np.inf, queries, demonstrations)
    reach = t_quantile(degrees) * float(np.sqrt(queries**2 + excess))
    return Uncertainty(mean - reach, mean + reach, queries, demonstrations)


def _satterthwaite(a: float, a_degrees: int, b: float, b_degrees: int) -> float:
    denominator = a**2 / max(1, a_degrees) + b**2 / max(1, b_degrees)
    return (a + b) ** 2 / denominator if denominator > 0 else float(max(1, a_degrees))


@dataclass(frozen=True)
class Difference:
    """A paired difference, run minus baseline, over the same queries and demonstrations.

    Attributes:
        value: in the metric's unit.
        low: lower end of its 95% interval.
        high: upper end.
        error: its standard error.
        p: two-sided.
        p_drop: one-sided, of a drop.
        queries: how many queries both answered in each trial.
    """

    value: float
    low: float
    high: float
    error: float
    p: float
    p_drop: float
    queries: int

    def lower_bound(self, clusters: int) -> float:
        """With 95% confidence the difference is above this (one-sided); too few images tell nothing."""
        if self.low == self.high == 0:
            return 0.0  # not one query differs
        if clusters < FEWEST_CLUSTERS or not np.isfinite(self.error):
            return -np.inf
        return self.value - t_quantile(clusters - 1, 0.9) * self.error


def paired_difference(
    ours: Sequence[tuple[float, Mapping[str, float]]],
    theirs: Sequence[tuple[float, Mapping[str, float]]],
    clusters: Mapping[str, str],
) -> tuple[Difference, int]:
    """The difference of two means over the same trials, and how many clusters it rests on.

    Args:
        ours: for each trial the metric and its influence values, query -> value.
        theirs: the same for the baseline, over the same queries.
        clusters: query -> image.
    """
    trials = len(ours)
    value = float(np.mean([a[0] - b[0] for a, b in zip(ours, theirs, strict=True)]))
    asked = list(dict.fromkeys(query for _, part in ours for query in part))
    moved, differing = np.zeros(len(asked)), np.zeros(len(asked))
    place = {query: i for i, query in enumerate(asked)}
    for (a, moves), (b, others) in zip(ours, theirs, strict=True):
        for query, influence in moves.items():
            deviation = influence - others[query]
            moved[place[query]] += deviation / (len(moves) * trials)
            differing[place[query]] += (deviation + a - b) / (len(moves) * trials)
    names = [clusters[query] for query in asked]
    sums = cluster_sums(moved, names)
    error = standard_error(sums, 1)
    p, p_drop = sign_flip_p(cluster_sums(differing, names))
    same = not np.any(np.abs(differing) > 1e-12)
    reach = 0.0 if same else t_quantile(len(sums) - 1) * error if np.isfinite(error) else np.inf
    queries = sum(len(part) for _, part in ours) // trials
    return Difference(value, value - reach, value + reach, error, p, p_drop, queries), len(sums)


def detectable_drop(error: float, clusters: int, cells: int = 1, power: float = 0.8) -> float:
    """The drop that a gate finds with this probability, given a paired difference's standard error.

    >>> round(detectable_drop(1.0, 10**6), 2)
    2.49
    """
    from scipy.stats import t

    degrees = max(1, clusters - 1)
    return float((t.ppf(1 - 0.05 / cells, degrees) + t.ppf(power, degrees)) * error)
