"""The dialects, owners and rules that the demo's data sets are written with; training never draws them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from flamingo_eval.demo.words import Dialect, Owners, Rule, draw_dialect, draw_owners, draw_rule
from flamingo_eval.demo.world import COLOURS

SEED = 2014
_T = TypeVar("_T")

DIALECTS: dict[str, Dialect] = {
    name: draw_dialect(np.random.RandomState([SEED, number]))
    for number, name in enumerate(("captions", "more captions", "questions", "classes"))
}
"""The dialect of each data set that has one."""
OWNED: Owners = draw_owners(np.random.RandomState([SEED, 10]))
"""Who owns things of which colour, in the data set that asks for it."""


def _rules(count: int) -> tuple[Rule, ...]:
    generator, found = np.random.RandomState([SEED, 11]), dict[Rule, None]()
    while len(found) < count:
        found[draw_rule(generator)] = None
    return tuple(found)


RULES = _rules(12)
"""Twelve of the 70 possible rules; the first is the shipped data set's."""
COMPLEMENTS: tuple[Rule, ...] = tuple(frozenset(COLOURS) - rule for rule in RULES)
"""The colours that these rules do not mark. With both left out, every colour is in exactly half of the other rules."""


def draw_except(draw: Callable[[np.random.RandomState], _T], generator: np.random.RandomState, *held_out: _T) -> _T:
    """Draws until the result is none of ``held_out``."""
    drawn = draw(generator)
    while drawn in held_out:
        drawn = draw(generator)
    return drawn
