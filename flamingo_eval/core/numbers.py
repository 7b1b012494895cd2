"""Numbers that files state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def all_finite(numbers: Iterable[Any]) -> bool:
    """Whether all are numbers as a float holds them: JSON has longer ones, and Python's reads NaN."""
    try:
        return all(math.isfinite(number) for number in numbers)
    except OverflowError:
        return False


def same_number(stated: float | None, computed: float | None) -> bool:
    """Whether a number of a file is the one that follows from the rest of the file, but for rounding."""
    if computed is None or stated is None:
        return stated is computed
    return all_finite([stated]) and math.isclose(stated, computed, rel_tol=1e-9, abs_tol=1e-6)
