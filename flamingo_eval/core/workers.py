"""Prefetching, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that read images."""


def prefetched(function: Callable[[A], B], items: Iterable[A]) -> Iterator[tuple[A, B]]:
    """Each item with the function's value, which is worked out in a thread while the one before is being used.

    >>> list(prefetched(len, ["a", "bb"]))
    [('a', 1), ('bb', 2)]
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        try:
            for item in items:
                following = (item, pool.submit(function, item))
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting is not None:
                yield waiting[0], waiting[1].result()
        finally:
            pool.shutdown(cancel_futures=True)
