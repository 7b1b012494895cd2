"""Intervals, paired differences and the gate: by hand, against other implementations, and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_eval.analysis import statistics
from flamingo_eval.analysis.differences import paired_difference
from flamingo_eval.analysis.statistics import (
    auc_influence,
    cluster_sums,
    holm,
    mean_influence,
    sign_flip_p,
    standard_error,
)
from flamingo_eval.analysis.uncertainty import AUC, OPEN, PERCENT, Moves, Part, Parts, mean_uncertainty
from tests.support.trials import moves, ranked, themselves


def test_a_mean_by_hand() -> None:
    """1, 0, 0, 1 about images a, a, b, c: mean 0.5, cluster sums 0, -0.5, 0.5."""
    sums = cluster_sums(mean_influence(np.array([1.0, 0, 0, 1])), ["a", "a", "b", "c"])
    assert sums.tolist() == [0, -0.5, 0.5]
    assert standard_error(sums, 4) == pytest.approx(math.sqrt(3 / 2 * 0.5) / 4)
    plain = cluster_sums(mean_influence(np.array([1.0, 0, 0, 1])), ["a", "b", "c", "d"])
    assert standard_error(plain, 4) == pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2), "the usual standard error"


@pytest.mark.slow
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


def shifted(trial: Moves, by: float) -> Moves:
    return Moves(trial.value + by, trial.influence)


def test_the_parts_of_a_means_uncertainty() -> None:
    """Trials that agree leave the queries; trials that differ add demonstrations; trials of their own queries are not split."""
    scores = 100 * np.random.default_rng(1).random(100)
    one, clusters = moves(scores), themselves(100)
    same = mean_uncertainty([one] * 3, clusters)
    assert same.demonstrations == pytest.approx(0, abs=1e-9)
    assert same.queries == pytest.approx(np.std(scores, ddof=1) / 10)
    apart = mean_uncertainty([shifted(one, by) for by in (-10, 0, 10)], clusters)
    assert apart.demonstrations == pytest.approx(10 / math.sqrt(3))
    assert apart.high - apart.low > same.high - same.low
    assert (apart.low + apart.high) / 2 == pytest.approx(one.value)
    assert mean_uncertainty([one], clusters).demonstrations is None
    own = [moves(scores, [f"t{t}-{i}" for i in range(100)]) for t in range(3)]
    every = {query: query for trial in own for query in trial.influence}
    split = mean_uncertainty([shifted(trial, by) for trial, by in zip(own, (-10, 0, 10), strict=True)], every)
    assert split.queries == pytest.approx(same.queries / math.sqrt(3), rel=0.01)
    assert split.error == pytest.approx(10 / math.sqrt(3), rel=0.1), "the trials' spread holds both"
    assert mean_uncertainty([moves([50.0])], {"0": "a"}).high == math.inf, "one query says nothing"


def test_the_reach_by_hand() -> None:
    """Two parts: t of 2 degrees is 4.303, of 99 it is 1.984."""
    parts = Parts((Part(4.0, 99), Part(9.0, 2)), 2.0, 3.0, 100)
    assert parts.reach() == pytest.approx(math.hypot(1.984 * 2, 4.303 * 3), rel=1e-3)
    assert parts.p(parts.reach()) == pytest.approx(0.05)
    assert parts.p(0) == 1


@pytest.mark.parametrize(
    ("right", "of", "low", "high"), [(0, 100, 0, 3.79), (100, 100, 96.21, 100), (1, 100, 0.17, 5.57)]
)
def test_accuracies_near_the_ends(right: int, of: int, low: float, high: float) -> None:
    """Wilson's interval, here with t for z: inside the scale, and never a point."""
    found = mean_uncertainty([moves([100.0] * right + [0.0] * (of - right))], themselves(of), PERCENT)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.02)


def test_scales_are_kept() -> None:
    for scale, scores in ((PERCENT, [0.0, 0, 0, 0, 100]), (OPEN, [0.0, 0, 0, 0, 12]), (PERCENT, [30.0] * 5)):
        found = mean_uncertainty([moves(scores)], themselves(5), scale)
        assert 0 <= found.low < np.mean(scores) < found.high <= scale.high
    lost = mean_uncertainty([moves([50.0])], themselves(1), PERCENT)
    assert (lost.low, lost.high) == (0, 100), "one query says nothing"


def test_a_perfect_auc_is_no_point() -> None:
    labels = np.array([True] * 12 + [False] * 88)
    found = mean_uncertainty([ranked(labels + 0.0, labels)], themselves(100), AUC)
    assert 60 < found.low < 90
    assert found.high == 100
    assert not found.rare
    few = np.array([True] * 9 + [False] * 91)
    assert mean_uncertainty([ranked(few + 0.0, few)], themselves(100), AUC).rare, "fewer than ten of the rarer kind"


def test_what_could_not_have_been_seen() -> None:
    """Not one of n answers differs: up to 1 - 0.05^(1/n) of all may still do (the rule of three)."""
    for count, bound in ((3, 63.2), (20, 13.9), (300, 0.994)):
        one = moves([100.0] * count)
        found = paired_difference([one], [one], themselves(count), 100.0)
        assert found.lower_bound() == pytest.approx(-bound, rel=0.01)
        assert found.detectable() >= bound - 0.01
        assert found.low < 0 < found.high
        assert (found.p, found.value) == (1, 0)


@pytest.mark.slow
def test_a_promised_drop_is_found() -> None:
    """Identical runs of 300 images: of so many falls as promised, four of five draws are significant by flipped signs."""
    one = moves([100.0] * 300)
    promised = paired_difference([one], [one], themselves(300), 100.0).detectable()
    found = 0
    for i in range(200):
        fell = np.random.default_rng(i).random(300) < promised / 100
        found += paired_difference([moves([*(100.0 * ~fell)])], [one], themselves(300), 100.0).p_drop < 0.05
    assert found / 200 >= 0.74
    assert paired_difference([moves([1.0])], [moves([1.0])], themselves(1), 100.0).detectable() == 100, "one image"


def test_auc_differences_rest_on_the_rarer_kind() -> None:
    labels = np.arange(500) < 10
    one = ranked(np.random.default_rng(0).normal(0, 1, 500) + labels, labels)
    same = paired_difference([one], [one], themselves(500), 100.0)
    assert same.lower_bound() == pytest.approx(-25.9, abs=0.1), "ten positives, not 500 queries"


def test_few_differing_images() -> None:
    """One of twelve is worse: what was not drawn may be too; by hand, Clopper and Pearson's bound of 1 in 12."""
    found = paired_difference([moves([100.0] * 11 + [0.0])], [moves([100.0] * 12)], themselves(12), 100.0)
    assert found.lower_bound() == pytest.approx(-33.9, abs=0.1)
    assert paired_difference([moves([1.0])], [moves([2.0])], themselves(1), 2.0).lower_bound() == -2, "one image"


def test_one_trial_holds_for_its_demonstrations() -> None:
    one, other = moves([100.0, 0, 0, 100]), moves([100.0, 100, 0, 100])
    assert paired_difference([one], [other], themselves(4), 100.0).of_these_demonstrations
    assert not paired_difference([one, one], [other, other], themselves(4), 100.0).of_these_demonstrations


def test_a_rare_large_change_is_warned_of() -> None:
    """Fifty queries all better by two: significant, and two of a hundred at -98 would undo it."""
    rng = np.random.default_rng(0)
    better = paired_difference([moves(52 + rng.random(50))], [moves(50 + rng.random(50))], themselves(50), 100.0)
    assert better.p < 0.05
    assert better.fragile
    many = paired_difference([moves(52 + rng.random(500))], [moves(50 + rng.random(500))], themselves(500), 100.0)
    assert not many.fragile
