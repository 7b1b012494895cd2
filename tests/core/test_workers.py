"""Threads: work that is given out as it comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from flamingo_eval.core.workers import as_they_come


@pytest.mark.slow
def test_no_more_at_once_than_allowed_and_nothing_waits_for_the_slowest() -> None:
    """One item takes as long as twenty of the others; they don't wait for it."""
    under_way, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.5 if item == 0 else 0.02)
        with lock:
            under_way -= 1
        return item * item

    came = [pair for part in as_they_come(work, range(41), 3) for pair in part]
    assert sorted(came) == [(i, i * i) for i in range(41)]
    assert came[-1][0] == 0, "all others are done before it"
    assert most == 3


def test_what_has_begun_is_given_out_before_an_error_is_raised() -> None:
    def work(item: int) -> int:
        time.sleep(0.05)
        if item == 5:
            raise ValueError("five")
        return item

    came: list[int] = []
    with pytest.raises(ValueError, match="five"):
        came.extend(item for part in as_they_come(work, range(1000), 4) for item, _ in part)
    assert {0, 1, 2, 3, 4} <= set(came)
    assert 5 not in came
    assert len(came) < 12, "nothing begins after it"


def test_items_are_taken_only_when_their_turn_comes() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    parts = as_they_come(lambda item: item, items(), 2)
    next(parts)
    assert taken <= 4
    parts.close()  # type: ignore[attr-defined]
    assert list(as_they_come(lambda item: item, [], 2)) == []
