"""Random draws, always from local generators; nothing here reads or changes global random state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # importing NumPy would take half of the command line's start
    import numpy as np

T = TypeVar("T")


def numpy_generator(seed: int) -> np.random.RandomState:
    """The legacy generator that ``np.random.seed(seed)`` would have set up globally."""
    import numpy as np

    return np.random.RandomState(seed)


def choose(generator: np.random.RandomState, population: int, count: int) -> list[int]:
    """``count`` of ``range(population)`` without replacement, in the order drawn (``np.random.choice``)."""
    return [int(i) for i in generator.choice(population, count, replace=False)]


def visiting_order(count: int) -> list[int]:
    """The order in which torch's ``DistributedSampler`` visits ``count`` items with its defaults.

    Equals ``torch.randperm(count, generator=torch.Generator().manual_seed(0))`` without importing torch: both
    draw 32-bit words from the same Mersenne Twister and swap forwards (ATen/native/TensorFactories.cpp,
    ``randperm_cpu``, which does so for counts below 2**32 / 20).

    >>> visiting_order(5)
    [4, 0, 1, 3, 2]
    """
    import numpy as np

    order = list(range(count))
    if count < 2:
        return order
    words = np.random.RandomState(0).randint(0, 2**32, size=count - 1, dtype=np.uint32)
    steps = words.astype(np.uint64) % np.arange(count, 1, -1, dtype=np.uint64)
    for i, step in enumerate(steps.tolist()):
        j = i + step
        order[i], order[j] = order[j], order[i]
    return order


def sample_each(pool: Sequence[T], count: int, times: int, seed: int, orders: int = 1) -> list[list[list[T]]]:
    """What ``random.seed(seed)`` and ``times`` calls of ``random.sample(pool, count)`` give, from a local generator.

    Returns:
        For each sample its orders: as drawn if ``orders`` is 1, else ``orders`` shuffles, each of the one before.
    """
    generator = random.Random(seed)

    def draw() -> list[list[T]]:
        sample = generator.sample(pool, count)
        if orders == 1:
            return [sample]
        shuffled = []
        for _ in range(orders):
            generator.shuffle(sample)
            shuffled.append(list(sample))
        return shuffled

    return [draw() for _ in range(times)]
