"""Paired differences between two runs over the same trials: interval, p-value, and what could not be detected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_eval.analysis.statistics import cluster_sums, sign_flip_p
from flamingo_eval.analysis.uncertainty import Moves, Parts, parts_of

FEW = 40
"""If fewer images than this differ, Student's t says too little about those that were not drawn."""

_SAME = 1e-12


@dataclass(frozen=True)
class Difference:
    """A paired difference, run minus baseline, over the same queries and demonstrations.

    Attributes:
        value: in the metric's unit.
        low: lower end of its 95% interval.
        high: upper end.
        p: two-sided p-value.
        p_drop: one-sided p-value of a drop.
        queries: how many queries both answered in each trial.
        clusters: number of images that these queries are about.
        fell: number of images that the run does worse on.
        rose: number of images that the run does better on.
        span: the most that one query's score can change.
        parts: its variance, in parts.
    """

    value: float
    low: float
    high: float
    p: float
    p_drop: float
    queries: int
    clusters: int
    fell: int
    rose: int
    span: float
    parts: Parts

    @property
    def error(self) -> float:
        """Its standard error."""
        return self.parts.error

    @property
    def of_these_demonstrations(self) -> bool:
        """Whether it holds for these demonstrations only: one trial says nothing about others."""
        return self.parts.demonstrations is None

    @property
    def unseen(self) -> float:
        """The largest change that could exist though none of these images shows it (95% confidence, rule of three)."""
        return self.span * _most(0, self.parts.count, 0.05)

    @property
    def fragile(self) -> bool:
        """Whether it is significant (5%), but a rare large change that these images do not show could undo it."""
        return self.p < 0.05 and abs(self.value) <= self.unseen

    def lower_bound(self) -> float:
        """With 95% confidence the difference is above this (one-sided)."""
        reach = self.parts.reach(0.9)
        return _widened(self, -1, reach, 0.05)

    def detectable(self, cells: int = 1, power: float = 0.8) -> float:
        """The drop that would be found with probability ``power`` among ``cells`` cells (5%, one-sided, corrected).

        It is at least the drop at which enough images fall: so many that flipping their signs, the test of one trial,
        is significant. If nothing is known, it is the full scale (``span``).
        """
        from scipy.stats import beta

        falls = math.ceil(math.log2(cells / 0.05)) + 1
        if falls > self.parts.count or not math.isfinite(self.error):
            return self.span
        least = self.span * float(beta.ppf(power, falls, self.parts.count - falls + 1))
        return max(least, self._by_t(1 - 0.1 / cells, power))

    def _by_t(self, level: float, power: float) -> float:
        """The same drop by noncentral t, with the degrees of freedom of the part that has the fewest."""
        from scipy.optimize import brentq
        from scipy.stats import nct

        if self.error == 0:
            return 0.0
        needed = self.parts.reach(level) / self.error
        degrees = min(part.degrees for part in self.parts.parts if part.variance > 0)
        return float(self.error * brentq(lambda drop: nct.sf(needed, degrees, drop) - power, 0, 10 * needed + 10))


def _most(count: int, of: int, alpha: float) -> float:
    """The largest share of images that could change, if ``count`` of these did (Clopper and Pearson, one-sided).

    >>> round(_most(0, 100, 0.05), 4)
    0.0295
    """
    from scipy.stats import beta

    return 1.0 if count >= of else float(beta.ppf(1 - alpha, count + 1, of - count))


def _widened(one: Difference, sign: int, reach: float, alpha: float) -> float:
    """An end of an interval. If few images differ, it is as far out as images that were not drawn could bring it."""
    end = one.value + sign * reach
    if one.fell + one.rose < FEW:
        count, images = one.fell if sign < 0 else one.rose, one.parts.count
        far = one.value + sign * one.span * (_most(count, images, alpha) - count / images)
        end = min(end, far) if sign < 0 else max(end, far)
    return max(-one.span, min(one.span, end))


def paired_difference(
    ours: Sequence[Moves], theirs: Sequence[Moves], clusters: Mapping[str, str], span: float
) -> Difference:
    """The difference of two means over the same trials.

    Args:
        ours: each trial of the run.
        theirs: each trial of the baseline, over the same queries.
        clusters: query -> image.
        span: the most that one query's score can change.

    For one trial, the p-value is that of flipped signs, and holds for its demonstrations. For several, the effect of
    their demonstrations on the difference is a part of its variance: two models that are equal on average over
    demonstrations still differ for any three sets of them.
    """
    apart = [
        Moves(a.value - b.value, {query: moved - b.influence[query] for query, moved in a.influence.items()}, a.labels)
        for a, b in zip(ours, theirs, strict=True)
    ]
    value = float(np.mean([trial.value for trial in apart]))
    parts = parts_of(apart, clusters)
    sums = _image_sums(apart, clusters)
    least = _SAME * max(1.0, span)
    fell, rose = int((sums < -least).sum()), int((sums > least).sum())
    if ours[0].labels is not None and fell + rose:  # if one query moves, all do a little: counts say nothing
        fell = rose = len(sums)
    p, p_drop = sign_flip_p(sums)
    if len(apart) > 1:
        by_t = parts.p(value)
        few = fell + rose < FEW  # then t is too confident
        p_drop = max(by_t / 2 if value < 0 else 1 - by_t / 2, p_drop if few else 0.0)
        p = max(by_t, p if few else 0.0)
    queries = sum(len(trial.influence) for trial in apart) // len(apart)
    one = Difference(value, value, value, p, p_drop, queries, len(sums), fell, rose, span, parts)
    reach = parts.reach()
    low, high = (_widened(one, sign, reach, 0.025) for sign in (-1, 1))
    return Difference(value, low, high, p, p_drop, queries, one.clusters, one.fell, one.rose, span, parts)


def _image_sums(apart: Sequence[Moves], clusters: Mapping[str, str]) -> np.ndarray:
    """Each image's share of the difference."""
    shares: dict[str, float] = {}
    for trial in apart:
        for query, moved in trial.influence.items():
            share = (moved + trial.value) / (len(trial.influence) * len(apart))
            shares[query] = shares.get(query, 0.0) + share
    return cluster_sums(np.array([*shares.values()]), [clusters[query] for query in shares])
