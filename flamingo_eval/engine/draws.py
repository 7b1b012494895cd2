"""Draws: which examples a trial queries, and from which pool its demonstrations come.

Source: open_flamingo/eval/utils.py (``prepare_eval_samples``, ``get_query_set``), at its last commit and at tag 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.seeds import choose, visiting_order

if TYPE_CHECKING:
    import numpy as np

    from flamingo_eval.core.source import Source


def draw_queries(
    source: Source, generator: np.random.RandomState, num_samples: int | None, _: int
) -> tuple[list[int], None]:
    """Queries in the order visited; the selector draws the pool."""
    count = len(source.data.test)
    if num_samples is not None and num_samples > count:
        raise UserError(
            f"--num-samples {num_samples}: {source.benchmark.name} {source.benchmark.split} has {count} queries"
        )
    drawn = choose(generator, count, num_samples or count)
    return [drawn[i] for i in visiting_order(len(drawn))], None


def draw_from_one_set(
    source: Source, generator: np.random.RandomState, num_samples: int | None, pool_size: int
) -> tuple[list[int], list[int]]:
    """Queries and pool from one set: the pool is drawn first, queries stay as drawn (open_flamingo tag 0.1)."""
    count = len(source.data.test)
    wanted = count - pool_size if num_samples is None else num_samples
    if wanted < 1 or wanted + pool_size > count:
        raise UserError(
            f"{source.benchmark.name} under {source.benchmark.protocol} draws queries and pool from one set "
            f"of {count}, too few for {wanted} queries and a pool of {pool_size}: "
            "lower --num-samples and --pool-size"
        )
    drawn = choose(generator, count, wanted + pool_size)
    return drawn[pool_size:], drawn[:pool_size]
