"""Checks of numbers in files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def all_finite(numbers: Iterable[Any]) -> bool:
    """Whether all are finite and fit into a float: JSON can have larger numbers, and Python's parser accepts NaN."""
    try:
        return all(math.isfinite(number) for number in numbers)
    except OverflowError:
        return False


def same_number(stated: float | None, computed: float | None) -> bool:
    """Whether a number in a file equals the one computed from the rest of the file, up to rounding."""
    if computed is None or stated is None:
        return stated is computed
    return all_finite([stated]) and math.isclose(stated, computed, rel_tol=1e-9, abs_tol=1e-6)
