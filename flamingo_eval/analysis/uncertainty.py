"""The uncertainty of a mean over trials: from its queries and from its trials' demonstrations, within its scale.

The model is two-way: a query's score is the sum of the query's level, the trial's level and a residual. The variance of
a mean has a part from queries and a part from trials, each with its degrees of freedom. An interval reaches

    reach = sqrt(sum of (t quantile of the part's degrees)^2 * the part's variance)

to both sides. (This joins the parts' own intervals as in Howe, Journal of the American Statistical Association 69,
1974, and Zou and Donner, Statistics in Medicine 27, 2008.) With one t quantile and Satterthwaite's degrees of freedom,
an interval is too narrow if three trials differ. The interval is then bent to the scale: Wilson's for accuracies, on
logits for ROC AUC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flamingo_eval.analysis.statistics import LEVEL, Array, cluster_sums, standard_error, t_quantile

_PRIOR = 0.4
"""The part of an observation that is added to each class's placements in the variance of a ROC AUC. Ten images of the
rarer class can all be placed alike, and then say too little about those that were not drawn. (The value was found by
simulation, tests/analysis.)"""

_APART = 0.9
"""If the variance among trials is more than this share of what the residual gives, the trials' demonstrations may
matter, and the few trials set the degrees of freedom. (By simulation: at 1 three trials cover too little, at 0.5 too
much.)"""

RARE = 10
"""With fewer images of the rarer class than this, the interval of a ROC AUC covers less, or more, than it says."""


@dataclass(frozen=True)
class Scale:
    """The range of a metric's values.

    Attributes:
        high: the highest value; the lowest is 0.
        ranks: whether it is a ROC AUC: a mean over pairs, not over queries.
    """

    high: float
    ranks: bool = False


PERCENT, AUC, OPEN = Scale(100.0), Scale(100.0, ranks=True), Scale(math.inf)


@dataclass(frozen=True)
class Moves:
    """One trial's metric, and how far each query moves it.

    Attributes:
        value: the metric.
        influence: query -> influence value, in the metric's unit.
        labels: query -> whether it is positive; None except for ROC AUC.
    """

    value: float
    influence: Mapping[str, float]
    labels: Mapping[str, bool] | None = None


@dataclass(frozen=True)
class Part:
    """A part of a mean's variance, and the degrees of freedom of its estimate."""

    variance: float
    degrees: float


@dataclass(frozen=True)
class Parts:
    """A mean's variance in parts.

    Attributes:
        parts: the parts.
        queries: standard error that comes from which queries were asked (and from each query's own draws).
        demonstrations: standard error that comes from what a trial's queries have in common; None for one trial.
        count: number of images; for ROC AUC of those of the rarer class.
    """

    parts: tuple[Part, ...]
    queries: float
    demonstrations: float | None
    count: int

    @property
    def error(self) -> float:
        """Standard error of all parts together."""
        return math.sqrt(sum(part.variance for part in self.parts))

    def reach(self, level: float = LEVEL) -> float:
        """Half the length of the interval at a level; infinite where nothing is known."""
        if not math.isfinite(self.queries):
            return math.inf
        return math.sqrt(sum(t_quantile(part.degrees, level) ** 2 * part.variance for part in self.parts))

    def p(self, value: float) -> float:
        """Two-sided p-value of no difference from 0: that of the interval which just reaches 0."""
        from scipy.optimize import brentq

        least = 1e-12
        if not math.isfinite(self.queries) or value == 0:
            return 1.0
        if self.reach(1 - least) <= abs(value):
            return least
        return float(brentq(lambda p: self.reach(1 - p) - abs(value), least, 1.0))


def parts_of(trials: Sequence[Moves], clusters: Mapping[str, str], prior: float = 0.0) -> Parts:
    """The variance of a mean over trials.

    Args:
        trials: each trial.
        clusters: query -> image.
        prior: see ``_PRIOR``.

    The query part is the variance of how far images move the mean, and includes the residual. The variance among trials
    includes it too. The residual's share (``rest``) follows from the queries that trials have in common: all, some or
    none. So the query part is taken without it, and the part among trials is at least as large as it.
    """
    count = len(trials)
    asked = list(dict.fromkeys(query for trial in trials for query in trial.influence))
    # (trials, queries): how far each query moves the mean through each trial
    moves = np.array(
        [[trial.influence.get(q, 0.0) / (len(trial.influence) * count) for q in asked] for trial in trials]
    )
    names = [clusters[query] for query in asked]
    by_image = np.array([cluster_sums(row, names) for row in moves])
    own, fewest = _query_parts(trials, asked, moves.sum(axis=0), names, prior)
    queries = sum(part.variance for part in own)
    if count == 1 or not math.isfinite(queries):
        return Parts(own, math.sqrt(queries), None if count == 1 else math.nan, fewest)
    rest = count * float(np.square(by_image - by_image.mean(axis=0)).sum()) / (count - 1)
    among = float(np.var([trial.value for trial in trials], ddof=1)) / count
    alone = max(0.0, queries - rest) / queries if queries else 0.0
    beyond = Part(max(among, rest), count - 1 if among > _APART * rest else own[-1].degrees)
    parts = (*(Part(part.variance * alone, part.degrees) for part in own), beyond)
    return Parts(parts, math.sqrt(queries), math.sqrt(max(0.0, among - rest)), fewest)


def _query_parts(
    trials: Sequence[Moves], asked: Sequence[str], sums: Array, images: Sequence[str], prior: float
) -> tuple[tuple[Part, ...], int]:
    """The part that comes from queries (one for each class of a ROC AUC), and how many images the rarer class has."""
    labels = {query: label for trial in trials for query, label in (trial.labels or {}).items()}
    if not labels:
        found = cluster_sums(sums, images)
        return (Part(standard_error(found, 1) ** 2, len(found) - 1),), len(found)
    positive = np.array([labels[query] for query in asked])
    value = float(np.mean([trial.value for trial in trials]))
    kinds = sorted((_kind(sums, images, positive == kind) for kind in (True, False)), key=len, reverse=True)
    return tuple(_ranked_part(kind, value, prior) for kind in kinds), len(kinds[-1])


def _kind(sums: Array, images: Sequence[str], chosen: NDArray[np.bool_]) -> Array:
    return cluster_sums(sums[chosen], [image for image, one in zip(images, chosen, strict=True) if one])


def _ranked_part(sums: Array, value: float, prior: float) -> Part:
    """DeLong's component of one class, with part of an observation added that varies as much as the AUC allows."""
    count = len(sums)
    if count < 2:
        return Part(math.nan, 1)
    uneven = value * (AUC.high - value)
    of_one = float(np.square(sums).sum()) * count * count / (count - 1)  # variance of one placement
    return Part((count * of_one + prior * uneven) / (count + prior) / count, count - 1)


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of a mean over trials, in the metric's unit.

    Attributes:
        low: lower end of the 95% interval.
        high: upper end.
        queries: standard error that comes from queries.
        demonstrations: standard error that comes from demonstrations; None for one trial, which can't show it.
        rare: whether a ROC AUC rests on too few images of the rarer class.
    """

    low: float
    high: float
    queries: float
    demonstrations: float | None
    rare: bool = False

    @property
    def error(self) -> float:
        """Standard error of both together."""
        return float(np.hypot(self.queries, self.demonstrations or 0.0))


def mean_uncertainty(trials: Sequence[Moves], clusters: Mapping[str, str], scale: Scale = OPEN) -> Uncertainty:
    """The uncertainty of the mean over trials, for queries and demonstrations apart.

    Args:
        trials: each trial.
        clusters: query -> image.
        scale: of the metric.
    """
    parts = parts_of(trials, clusters, _PRIOR if scale.ranks else 0.0)
    value = float(np.mean([trial.value for trial in trials]))
    low, high = interval(value, parts, scale)
    return Uncertainty(low, high, parts.queries, parts.demonstrations, scale.ranks and parts.count < RARE)


def interval(value: float, parts: Parts, scale: Scale) -> tuple[float, float]:
    """The 95% interval of a value, within its scale."""
    reach = parts.reach()
    if not math.isfinite(reach):
        return 0.0, scale.high
    if not math.isfinite(scale.high):
        return max(0.0, value - reach), value + reach
    share, part = value / scale.high, reach / scale.high
    spread = share * (1 - share)
    if scale.ranks and part > 0 and spread > 0:
        middle = math.log(share / (1 - share))
        low, high = (1 / (1 + math.exp(-(middle + sign * part / spread))) for sign in (-1, 1))
    else:  # if all are right, or wrong, or alike, their number says how far the truth may be
        enough = part > 0 and spread > 0
        low, high = _wilson(share, part**2 / spread if enough else t_quantile(parts.count - 1) ** 2 / parts.count)
    return scale.high * low, scale.high * high


def _wilson(share: float, k: float) -> tuple[float, float]:
    """All p for which ``(share - p)^2 <= k p (1 - p)`` (Wilson, J. of the American Statistical Association 22, 1927).

    >>> [round(end, 4) for end in _wilson(0.0, 1.96**2 / 100)]
    [0.0, 0.037]
    """
    middle, half = (share + k / 2) / (1 + k), math.sqrt(k * share * (1 - share) + k * k / 4) / (1 + k)
    return max(0.0, middle - half), min(1.0, middle + half)
