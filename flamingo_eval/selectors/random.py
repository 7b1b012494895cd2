"""Random demonstrations, exactly as the reference draws them in one process."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.protocols import NOTHING, Selection
from flamingo_eval.core.seeds import choose, sample_each
from flamingo_eval.core.settings import Setting


@dataclass(frozen=True)
class RandomSelector:
    """Draws a pool once per trial (NumPy, continuing after the queries' draw), then calls ``random.sample`` per query.

    Source: open_flamingo/eval/utils.py (``get_query_set``, ``sample_batch_demos_from_query_set``) and evaluate.py
    (``random.seed(seed + rank)``, rank 0).
    """

    about = "drawn from a pool"
    needs = NOTHING
    settings: tuple[Setting, ...] = ()

    def select(self, selection: Selection) -> list[list[list[int]]]:
        """Numbers of the demonstrations, for each query and order; raises UserError if the pool is too small.

        Under prompt ensembling, a query's sample is shuffled once per order, cumulatively. (The reference draws the
        samples of a full batch first; this is its order at batch size 1.)
        """
        if selection.pool is not None:
            pool = list(selection.pool)
        else:
            pool_size = min(selection.pool_size, len(selection.train))
            pool = choose(selection.generator, len(selection.train), pool_size)
        if selection.count > len(pool):
            raise UserError(
                f"{selection.count} demonstrations asked for, but the pool holds {len(pool)} "
                f"(training examples: {len(selection.train)}, --pool-size: {selection.pool_size})"
            )
        orders = min(selection.ensemble, math.factorial(min(selection.count, 10)))
        return sample_each(pool, selection.count, len(selection.queries), selection.seed, orders)


SELECTOR = RandomSelector()
