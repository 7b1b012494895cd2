"""The plan equals the reference's and depends on nothing it should not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.batches import batches_of
from flamingo_eval.engine.plan import query_row
from flamingo_eval.engine.requests import Pending
from tests.support.plans import plan_of, source_of


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_plan_equals_the_references(golden: Path, shots: int) -> None:
    expected = json.loads((golden / "plans" / f"coco_random_shots{shots}_seed42.json").read_text())["queries"]
    plan = plan_of(read_source("coco", golden), shots, pool=48)
    rows = [query_row(plan, query) for query in plan]
    assert [row["query_id"] for row in rows] == [query["query_id"] for query in expected]
    for row, query in zip(rows, expected, strict=True):
        assert row["demonstration_ids"] == query["demonstration_ids"]
        assert row["images"] == query["model_images"]
        assert row["prompt"] == query["prompt"]


def test_a_plan_worked_out_by_hand() -> None:
    """Six training rows, four queries, a pool of three, two shots, seed 42; each number can be checked in a shell.

    NumPy, seeded with 42: choice(4, 4, replace=False) is [1, 3, 0, 2], then choice(6, 3, replace=False) is [3, 1, 5].
    torch.randperm(4, generator seeded 0) is [0, 1, 3, 2], so the rows drawn are visited as 1, 3, 2, 0.
    Python's random, seeded with 42: sample(three things, 2) picks positions (2, 0), (0, 1), (0, 2), (0, 2).
    """
    plan = plan_of(source_of(6, 4), shots=2, pool=3)
    assert [query.id for query in plan] == [1001, 1003, 1002, 1000]
    assert [query.demonstration_ids for query in plan] == [(5, 3), (3, 1), (3, 5), (3, 5)]


def test_subsampled_queries_are_drawn_before_the_pool() -> None:
    full, part = plan_of(source_of(50, 20), 4), plan_of(source_of(50, 20), 4, num_samples=5)
    generator = np.random.RandomState(42)
    drawn = generator.choice(20, 5, replace=False)
    pool = generator.choice(50, 50, replace=False)
    assert {query.id - 1000 for query in part if isinstance(query.id, int)} == set(drawn.tolist())
    assert part.demonstrations[0][0] == tuple(random.Random(42).sample(pool.tolist(), 4))
    assert full.demonstrations != part.demonstrations, "another draw of queries leaves another pool"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 8), st.integers(0, 10_000), st.integers(1, 17))
def test_a_plan_depends_on_neither_batches_nor_repetition(
    test: int, train: int, shots: int, seed: int, batch_size: int
) -> None:
    source = source_of(max(train, shots, 2), test)
    plan = plan_of(source, shots, seed)
    queries = list(plan)
    assert queries == list(plan_of(source, shots, seed)), "made again it is the same"
    assert sorted(plan.queries) == list(range(test)), "every query once"
    assert all(len(set(q.demonstration_ids)) == (shots or 2) for q in queries), "no demonstration twice in a prompt"
    batches = list(
        batches_of(
            [Pending(plan, i, "", "") for i in range(len(plan))], lambda *_: batch_size, lambda prompt, _: prompt.length
        )
    )
    asked = [(item.position, request.prompts) for batch in batches for item, request in batch]
    assert sorted(position for position, _ in asked) == list(range(len(plan))), "batches only cut it into pieces"
    assert all(prompts == queries[position].prompts for position, prompts in asked)
    assert all(len(batch) <= batch_size for batch in batches)


def test_too_few_demonstrations() -> None:
    with pytest.raises(UserError, match="8 demonstrations asked for, but the pool holds 6"):
        plan_of(source_of(6, 4), shots=8)
    with pytest.raises(UserError, match="4 demonstrations asked for, but the pool holds 3"):
        plan_of(source_of(6, 4), shots=4, pool=3)


def test_more_queries_than_there_are() -> None:
    with pytest.raises(UserError, match="--num-samples 9: coco test has 4 queries"):
        plan_of(source_of(6, 4), shots=1, num_samples=9)


def test_unknown_plugins_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown selector 'nearest'; known selectors: random"):
        registry.selector("nearest")
