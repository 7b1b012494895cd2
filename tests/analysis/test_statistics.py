"""Intervals, paired differences and the gate: by hand, against other implementations, and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_eval.analysis import statistics
from flamingo_eval.analysis.statistics import (
    Array,
    auc_influence,
    bootstrap_interval,
    cluster_sums,
    detectable_drop,
    holm,
    mean_influence,
    mean_uncertainty,
    paired_difference,
    sign_flip_p,
    standard_error,
)


def test_a_mean_by_hand() -> None:
    """1, 0, 0, 1 about images a, a, b, c: mean 0.5, cluster sums 0, -0.5, 0.5."""
    sums = cluster_sums(mean_influence(np.array([1.0, 0, 0, 1])), ["a", "a", "b", "c"])
    assert sums.tolist() == [0, -0.5, 0.5]
    assert standard_error(sums, 4) == pytest.approx(math.sqrt(3 / 2 * 0.5) / 4)
    plain = cluster_sums(mean_influence(np.array([1.0, 0, 0, 1])), ["a", "b", "c", "d"])
    assert standard_error(plain, 4) == pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2), "the usual standard error"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=40))
def test_auc_and_delongs_variance(rows: list[tuple[int, bool]]) -> None:
    """AUC as scikit-learn has it; variance as DeLong's formula has it, written out."""
    from sklearn.metrics import roc_auc_score

    values, labels = np.array([float(v) for v, _ in rows]), np.array([label for _, label in rows])
    if labels.sum() < 2 or (~labels).sum() < 2:
        return
    auc, influence = auc_influence(values, labels)
    assert auc == pytest.approx(roc_auc_score(labels, values))
    psi = (np.sign(values[labels][:, None] - values[~labels][None, :]) + 1) / 2
    m, n = psi.shape
    delong = psi.mean(1).var(ddof=1) / m + psi.mean(0).var(ddof=1) / n
    ours = np.square(influence[labels]).sum() / len(rows) ** 2 * m / (m - 1)
    ours += np.square(influence[~labels]).sum() / len(rows) ** 2 * n / (n - 1)
    assert ours == pytest.approx(delong)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_sign_flips_of_four_clusters() -> None:
    """All sixteen orders are equally likely: as large as 1 + 1 + 1 + 1 in two of them, as small as -4 in one."""
    two, one = sign_flip_p(np.array([-1.0, -1, -1, -1]))
    assert two == pytest.approx(2 / 16, abs=0.01)
    assert one == pytest.approx(1 / 16, abs=0.01)
    assert sign_flip_p(np.zeros(5)) == (1.0, 1.0)


def test_many_clusters_are_taken_as_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As flipping their signs would have it."""
    sums = np.random.default_rng(0).normal(-0.02, 1, 5001)
    normal = sign_flip_p(sums)
    monkeypatch.setattr(statistics, "_MANY_CLUSTERS", 10_000)
    assert sign_flip_p(sums) == pytest.approx(normal, abs=0.02)
    assert 0.01 < normal[1] < 0.5


def test_the_parts_of_a_means_uncertainty() -> None:
    """Trials that agree leave the queries; trials that differ add demonstrations; trials of their own queries are not split."""
    names = [f"q{i}" for i in range(100)]
    clusters = {name: name for name in names}
    scores = np.random.default_rng(1).random(100)
    moves = dict(zip(names, mean_influence(scores).tolist(), strict=True))
    same = mean_uncertainty([50.0, 50.0, 50.0], [moves] * 3, clusters)
    assert same.demonstrations == 0
    assert same.queries == pytest.approx(np.std(scores, ddof=1) / 10)
    apart = mean_uncertainty([49.0, 50.0, 51.0], [moves] * 3, clusters)
    assert apart.demonstrations == pytest.approx(1 / math.sqrt(3))
    assert apart.high - apart.low > same.high - same.low
    assert (apart.low + apart.high) / 2 == pytest.approx(50)
    one = mean_uncertainty([50.0], [moves], clusters)
    assert one.demonstrations is None
    own = [{f"t{t}{name}": value for name, value in moves.items()} for t in range(3)]
    every = {query: query for part in own for query in part}
    split = mean_uncertainty([49.0, 50.0, 51.0], own, every)
    assert split.queries == pytest.approx(same.queries / math.sqrt(3), rel=0.01)
    assert split.error == pytest.approx(1 / math.sqrt(3)), "the trials' spread holds both"
    assert mean_uncertainty([50.0], [{"a": 0.0}], {"a": "a"}).high == math.inf, "one query says nothing"


def test_too_few_queries_pass_no_margin() -> None:
    """Nothing that is known of three images shows that a run is no worse, unless not one answer differs."""

    def trial(*scores: float) -> tuple[float, dict[str, float]]:
        moves = mean_influence(np.array(scores))
        return float(np.mean(scores)), {str(i): float(x) for i, x in enumerate(moves)}

    clusters = {str(i): str(i) for i in range(12)}
    for ours, theirs, bound in (((1.0, 1, 1), (1.0, 1, 1), 0.0), ((1.0, 1, 1), (2.0, 2, 2), -math.inf),
                                ((1.0,), (2.0,), -math.inf), ((1.0, 0, 1), (1.0, 1, 1), -math.inf)):  # fmt: skip
        difference, count = paired_difference([trial(*ours)], [trial(*theirs)], clusters)
        assert difference.lower_bound(count) == bound
    difference, count = paired_difference([trial(*[1.0] * 11, 0.9)], [trial(*[1.0] * 12)], clusters)
    assert -0.05 < difference.lower_bound(count) < 0


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


def covers(value: float, influence: Array, clusters: list[str], truth: float, seed: int) -> tuple[bool, bool]:
    """Whether the bootstrap's interval and that of the standard error hold the truth."""
    sums = cluster_sums(influence, clusters)
    low, high = bootstrap_interval(value, sums, len(influence), seed)
    moves = {str(i): float(x) for i, x in enumerate(influence)}
    uncertainty = mean_uncertainty([value], [moves], {str(i): name for i, name in enumerate(clusters)})
    return low <= truth <= high, uncertainty.low <= truth <= uncertainty.high


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vqa", "cider", "auc", "auc near one"])
def test_intervals_cover_the_truth(kind: str) -> None:
    """95% intervals, by bootstrap and by standard error, in 93 to 97% of 1,000 draws."""
    hits = np.zeros(2)
    reference = np.random.default_rng(77)
    if kind == "vqa":
        truth = float(np.mean([clustered_scores(reference, 0.4)[0].mean() for _ in range(4000)]))
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        if kind == "vqa":
            scores, clusters = clustered_scores(draw, 0.4)
            hits += covers(float(scores.mean()), mean_influence(scores), clusters, truth, i)
        elif kind == "cider":
            scores, clusters = cider_like(draw)
            hits += covers(float(scores.mean()), mean_influence(scores), clusters, 1.2 * 70, i)
        else:
            shift = 0.6 if kind == "auc" else 1.6
            labels = draw.random(500) < 0.4
            auc, influence = auc_influence(draw.normal(0, 1, 500) + shift * labels, labels)
            truth = 0.5 * (1 + math.erf(shift / 2))
            hits += covers(auc, influence, [str(j) for j in range(500)], truth, i)
    assert all(0.93 <= share <= 0.97 for share in hits / DRAWS), hits / DRAWS


def trials_of(
    draw: np.random.Generator, base: Array, noise: float, drop: float
) -> list[tuple[float, dict[str, float]]]:
    """Three trials of a model over the same 600 queries, by how hard these are and by chance."""
    trials = []
    for _ in range(3):
        scores = np.clip(base + draw.normal(0, noise, len(base)) - drop, 0, None)
        moves = mean_influence(scores)
        trials.append((float(scores.mean()), {str(i): float(x) for i, x in enumerate(moves)}))
    return trials


@pytest.mark.slow
def test_the_gate_seldom_raises_a_false_alarm_and_finds_what_it_says() -> None:
    """Of 1,000 pairs of equal models over five cells at most 6.5% fail; a drop as large as promised is found by 80%."""
    clusters = {str(i): str(i // 2) for i in range(600)}
    alarms = found = 0
    promised = []
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        cells, errors = [], []
        for _ in range(5):
            base = draw.gamma(2, 35, 600)
            difference, count = paired_difference(trials_of(draw, base, 30, 0), trials_of(draw, base, 30, 0), clusters)
            cells.append(difference.p_drop)
            errors.append(detectable_drop(difference.error, count, cells=5))
        alarms += min(holm(cells)) < 0.05
        promised.append(max(errors))
    assert alarms / DRAWS <= 0.065, alarms
    drop = float(np.mean(promised))
    for i in range(300):
        draw = np.random.default_rng(10_000 + i)
        base = 150 + draw.gamma(2, 35, 600)
        difference, _ = paired_difference(trials_of(draw, base, 30, drop), trials_of(draw, base, 30, 0), clusters)
        found += min(1.0, 5 * difference.p_drop) < 0.05
    assert found / 300 >= 0.75, (found, drop)


@pytest.mark.slow
@pytest.mark.parametrize(("trial_sd", "same"), [(0.0, True), (0.02, True), (0.0, False)])
def test_means_over_trials_cover_the_truth(trial_sd: float, same: bool) -> None:
    """Two-way: queries of their own level, trials of theirs, and noise, which is in both variances and counts once."""
    hits = 0
    for i in range(DRAWS):
        draw = np.random.default_rng(i)
        level = draw.normal(0.5, 0.2, 300)
        values, influences = [], []
        for t in range(3):
            own = level if same else draw.normal(0.5, 0.2, 300)
            scores = own + draw.normal(0, trial_sd) + draw.normal(0, 0.4, 300)
            values.append(float(scores.mean()))
            names = [f"{'' if same else t}q{j}" for j in range(300)]
            influences.append(dict(zip(names, mean_influence(scores).tolist(), strict=True)))
        clusters = {name: name for part in influences for name in part}
        uncertainty = mean_uncertainty(values, influences, clusters)
        hits += uncertainty.low <= 0.5 <= uncertainty.high
    assert 0.93 <= hits / DRAWS <= 0.98, hits
