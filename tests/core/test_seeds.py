"""The random draws of the protocol."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_eval.core.seeds import choose, numpy_generator, sample_each, visiting_order


@given(st.integers(0, 300))
def test_visiting_order_is_a_permutation(count: int) -> None:
    assert sorted(visiting_order(count)) == list(range(count))


@pytest.mark.torch
@pytest.mark.parametrize("count", [1, 2, 5, 24, 500, 5000, 40504])
def test_visiting_order_is_torchs(count: int) -> None:
    import torch
    from torch.utils.data import DistributedSampler

    sampler: DistributedSampler[int] = DistributedSampler(range(count), num_replicas=1, rank=0)  # type: ignore[arg-type]
    assert visiting_order(count) == list(sampler)
    assert visiting_order(count) == torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def test_draws_are_those_of_the_global_generators_and_leave_them_alone() -> None:
    np.random.seed(7)
    random.seed(7)
    before = (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    generator = numpy_generator(42)
    queries, pool = choose(generator, 10, 10), choose(generator, 30, 8)
    drawn = sample_each(pool, 3, 2, 42)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[index]

    np.random.seed(42)
    random.seed(42)
    assert queries == np.random.choice(10, 10, replace=False).tolist()
    assert pool == np.random.choice(30, 8, replace=False).tolist()
    assert drawn == [[random.sample(pool, 3)], [random.sample(pool, 3)]]

    random.seed(42)
    first = random.sample(pool, 3)
    orders = []
    for _ in range(2):
        random.shuffle(first)
        orders.append(list(first))
    assert sample_each(pool, 3, 2, 42, orders=2) == [orders, sample_each(pool, 3, 2, 42, orders=2)[1]]
    assert sorted(sample_each(pool, 3, 2, 42, orders=2)[1][0]) != sorted(drawn[1][0]), (
        "shuffling moves the generator on"
    )
