"""RICES: each query is shown the training examples whose pictures are most similar to its own."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from flamingo_eval.ports import Selection


@dataclass(frozen=True)
class RicesSelector:
    """The most similar examples of the whole training set, most similar last, next to the query.

    Source: RICES (Flamingo, arXiv 2204.14198, appendix) as in open_flamingo/eval/rices.py (``find``).
    """

    needs_features = True

    def select(self, selection: Selection) -> list[list[list[int]]]:
        """Numbers of the demonstrations, for each query and order; none for a picture that could not be encoded.

        Under prompt ensembling a query's demonstrations are shuffled once per order, cumulatively, as random ones are.
        """
        if selection.nearest is None:
            raise ValueError("RICES was given no features")
        orders = min(selection.ensemble, math.factorial(min(selection.count, 10)))
        generator = random.Random(selection.seed)
        picked = []
        for query in selection.queries:
            order = [*selection.nearest.rows[query.image][: selection.count]][::-1]
            if orders == 1:
                picked.append([order])
                continue
            shuffled = []
            for _ in range(orders):
                generator.shuffle(order)
                shuffled.append(list(order))
            picked.append(shuffled)
        return picked


SELECTOR = RicesSelector()
