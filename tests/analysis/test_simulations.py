"""Simulations that decide what intervals, p-values and verdicts claim; each with generators of its own.

All of them: ``pytest -m simulation`` (five minutes). A small sample runs with the other tests.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from flamingo_eval.analysis.differences import paired_difference
from flamingo_eval.analysis.published import Published
from flamingo_eval.analysis.reproduce import Ours, judge
from flamingo_eval.analysis.statistics import Array, holm
from flamingo_eval.analysis.uncertainty import AUC, OPEN, PERCENT, Moves, mean_uncertainty
from tests.support.trials import moves, ranked, themselves

pytestmark = pytest.mark.slow

DRAWS = 1000
ASKED, IMAGES = 900, 300


def clustered_scores(draw: np.random.Generator, truth: float) -> tuple[Array, list[str]]:
    """VQA accuracies (0, 1/3, 2/3, 1) of 900 questions about 300 images; those of an image go together."""
    image = draw.normal(0, 0.8, IMAGES)
    owner = draw.integers(0, IMAGES, ASKED)
    noise = image[owner] * 0.6 + draw.normal(0, 1, ASKED)
    cuts = np.quantile(
        np.random.default_rng(9).normal(0, math.hypot(0.48, 1), 200_000), [1 - truth - 0.2, 1 - truth, 1 - truth + 0.2]
    )
    scores: Array = np.digitize(noise, cuts) / 3.0
    return scores, [str(i) for i in owner]


def cider_like(draw: np.random.Generator) -> tuple[Array, list[str]]:
    """Skewed scores from 0 to some hundred, one an image."""
    return draw.gamma(1.2, 70, 500), [str(i) for i in range(500)]


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


@pytest.mark.simulation
@pytest.mark.parametrize("kind", ["vqa", "cider"])
def test_intervals_of_one_trial_cover_the_truth(kind: str) -> None:
    """95% intervals hold it in 93 to 97% of 1,000 draws: questions about shared images, skewed scores."""
    reference, hits = np.random.default_rng(77), list[bool]()
    truth = (
        84.0
        if kind == "cider"
        else 100 * float(np.mean([clustered_scores(reference, 0.4)[0].mean() for _ in range(4000)]))
    )
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        scores, images = cider_like(draw) if kind == "cider" else clustered_scores(draw, 0.4)
        clusters = {str(n): image for n, image in enumerate(images)}
        factor, scale = (1, OPEN) if kind == "cider" else (100, PERCENT)
        found = mean_uncertainty([moves(factor * scores)], clusters, scale)
        hits.append(found.low <= truth <= found.high)
    assert 0.93 <= share(hits) <= 0.97, share(hits)


@pytest.mark.simulation
@pytest.mark.parametrize(
    ("accuracy", "asked"), [(0.01, 100), (0.01, 300), (0.02, 100), (0.05, 50), (0.95, 100), (0.99, 100), (0.99, 1000)]
)
def test_extreme_accuracies(accuracy: float, asked: int) -> None:
    """Of one trial exactly: over every number of right answers, by its probability."""
    from scipy.stats import binom

    covered = 0.0
    for right in range(asked + 1):
        probability = binom.pmf(right, asked, accuracy)
        if probability > 1e-9:
            found = mean_uncertainty([moves([100.0] * right + [0.0] * (asked - right))], themselves(asked), PERCENT)
            covered += probability * (found.low <= 100 * accuracy <= found.high)
    assert 0.92 <= covered <= 0.98, covered


@pytest.mark.simulation
@pytest.mark.parametrize(("asked", "positive", "auc"), [(200, 10, 0.55), (200, 10, 0.7), (200, 10, 0.85), (400, 20, 0.7), (400, 20, 0.85), (400, 20, 0.95), (500, 200, 0.85), (500, 200, 0.99)])  # fmt: skip
def test_auc_with_rare_positives(asked: int, positive: int, auc: float) -> None:
    """Two normal distributions; 5% positives."""
    from scipy.stats import norm

    hits, apart = [], math.sqrt(2) * norm.ppf(auc)
    labels = np.arange(asked) < positive
    for i in range(DRAWS):
        values = np.random.default_rng(i).normal(0, 1, asked) + apart * labels
        found = mean_uncertainty([ranked(values, labels)], themselves(asked), AUC)
        hits.append(found.low <= 100 * auc <= found.high)
    assert 92 <= round(100 * share(hits)) <= 98, share(hits)


def trials_of(draw: np.random.Generator, level: Array, trials: int, spread: float, noise: float) -> list[Moves]:
    """Trials of a model: queries of their own level, trials with better or worse demonstrations, and chance."""
    return [moves(level + draw.normal(0, spread) + draw.normal(0, noise, len(level))) for _ in range(trials)]


@pytest.mark.simulation
@pytest.mark.parametrize("trials", [3, 5])
@pytest.mark.parametrize(("spread", "own"), [(0.5, 10.0), (1.0, 10.0), (2.0, 10.0), (5.0, 10.0), (1.0, 2.0)])
def test_differences_over_demonstrations(trials: int, spread: float, own: float) -> None:
    """Two models that are equal on average over demonstrations: the interval of their difference holds 0.

    ``spread`` is what demonstrations do to the difference, ``own`` what queries do to it.
    """
    hits, clusters = [], themselves(300)
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        base, apart = draw.normal(50, 20, 300), draw.normal(0, own, 300)
        theirs = trials_of(draw, base, trials, 0, 7)
        ours = trials_of(draw, base + apart, trials, spread, 7)
        found = paired_difference(ours, theirs, clusters, 100.0)
        hits.append(found.low <= 0 <= found.high)
        assert (found.p < 0.05) == (not hits[-1]) or found.fell + found.rose < 40
    assert 93 <= round(100 * share(hits)) <= 97, share(hits)


@pytest.mark.simulation
@pytest.mark.parametrize("trials", [1, 3])
def test_equal_runs_relabelled(trials: int) -> None:
    """One pair of runs, whose answers are exchanged at random, query by query, a thousand times: 5% are called different."""
    draw, clusters, alarms = np.random.default_rng(3), themselves(250), 0
    base = draw.normal(50, 20, 250)
    pair = [[base + draw.normal(0, 15, 250) for _ in range(trials)] for _ in range(2)]
    for _ in range(DRAWS):
        swap = draw.random(250) < 0.5
        ours, theirs = (
            [moves([*np.where(swap, pair[1 - side][t], pair[side][t])]) for t in range(trials)] for side in (0, 1)
        )
        alarms += paired_difference(ours, theirs, clusters, 100.0).p < 0.05
    assert 0.02 <= alarms / DRAWS <= 0.065, alarms


@pytest.mark.simulation
@pytest.mark.parametrize(("asked", "margin"), [(100, 2.0), (500, 2.0), (500, 5.0), (2000, 1.0)])
def test_a_margin_at_its_boundary(asked: int, margin: float) -> None:
    """A run that is worse by exactly the margin: seldom does it pass. Answers are right or wrong, and some turn."""
    passed = 0
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        right = draw.random(asked) < 0.6
        worse, better = draw.random(asked) < (margin / 100 + 0.01) / 0.6, draw.random(asked) < 0.01 / 0.4
        now: Array = np.where(right, ~worse, better).astype(np.float64)
        found = paired_difference([moves(100.0 * now)], [moves([*(100.0 * right)])], themselves(asked), 100.0)
        passed += found.lower_bound() >= -margin
    assert passed / DRAWS <= 0.065, passed


@pytest.mark.simulation
def test_the_gate_seldom_raises_a_false_alarm_and_finds_what_it_says() -> None:
    """Of 1,000 pairs of equal models over five cells at most 6.5% fail; a drop as large as promised is found by 80%."""
    clusters = {str(i): str(i // 2) for i in range(600)}

    def model(draw: np.random.Generator, base: Array, drop: float) -> list[Moves]:
        return [moves(np.clip(base + draw.normal(0, 30, len(base)) - drop, 0, None)) for _ in range(3)]

    alarms = found = 0
    promised = []
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        cells = []
        for _ in range(5):
            base = draw.gamma(2, 35, 600)
            cells.append(paired_difference(model(draw, base, 0), model(draw, base, 0), clusters, 400.0))
        alarms += min(holm([one.p_drop for one in cells])) < 0.05
        promised.append(max(one.detectable(5) for one in cells))
    assert alarms / DRAWS <= 0.065, alarms
    drop = float(np.mean(promised))
    for i in range(300):
        draw = np.random.default_rng(10_000 + i)
        base = 150 + draw.gamma(2, 35, 600)
        one = paired_difference(model(draw, base, drop), model(draw, base, 0), clusters, 400.0)
        found += min(1.0, 5 * one.p_drop) < 0.05
    assert found / 300 >= 0.75, (found, drop)


@pytest.mark.simulation
@pytest.mark.parametrize("trials", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("asked", ["the same", "their own", "overlapping"])
def test_means_over_trials_cover_the_truth(trials: int, spread: float, asked: str) -> None:
    """Queries that all trials ask, queries of their own, and subsets that overlap by half."""
    hits = []
    for i in range(DRAWS):
        draw, of = np.random.default_rng(i), []
        level = draw.normal(50, 20, 600)
        for t in range(trials):
            pool = {"the same": 300, "their own": 0, "overlapping": 600}[asked]
            chosen = draw.permutation(pool)[:300] if pool else np.arange(300)
            base = level[chosen] if pool else draw.normal(50, 20, 300)
            names = [str(n) for n in chosen] if pool else [f"{t}-{n}" for n in chosen]
            of.append(moves(base + draw.normal(0, spread) + draw.normal(0, 20, 300), names))
        found = mean_uncertainty(of, {name: name for trial in of for name in trial.influence})
        hits.append(found.low <= 50 <= found.high)
    assert 0.925 <= share(hits) <= 0.98, share(hits)


@pytest.mark.simulation
@pytest.mark.parametrize(("gap", "least", "most"), [(0.0, 0.0, 0.065), (3.0, 0.75, 1.0)])
def test_verdicts_on_published_numbers(gap: float, least: float, most: float) -> None:
    """Two sets of three trials, theirs printed as tables are: a gap of three deviations is found 8 times of 10, and
    equal runs are called different in at most 6.5 of 100. (By theory 78.3: noncentral t, 4 degrees, 3 * sqrt(3 / 2).)
    """
    different = 0
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        theirs, ours = draw.normal(80, 1, 3), draw.normal(80 + gap, 1, 3)
        number = Published("x", "coco", "coco", 4, f"{theirs.mean():.1f}", f"{theirs.std():.1f}", "random", "arXiv:2308.01390v2 Table 11")  # fmt: skip
        different += judge(number, Ours(tuple(ours.tolist()), 3.0, 5000, (42, 43, 44))).verdict == "differs"
    assert least <= different / DRAWS <= most, different


def test_a_sample_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws, and bounds so wide that chance alone does not cross them."""
    monkeypatch.setattr("tests.analysis.test_simulations.DRAWS", 200)
    test_a_margin_at_its_boundary(500, 2.0)
    hits, clusters = [], themselves(300)
    for i in range(200):
        draw = np.random.default_rng(i)
        base, apart = draw.normal(50, 20, 300), draw.normal(0, 10, 300)
        ours, theirs = trials_of(draw, base + apart, 3, 2.0, 7), trials_of(draw, base, 3, 0, 7)
        found = paired_difference(ours, theirs, clusters, 100.0)
        hits.append(found.low <= 0 <= found.high)
    assert 0.9 <= share(hits) <= 0.995, share(hits)
