"""Threads: prefetching, and those of the libraries that compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that read images."""


_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that say how OpenMP's threads wait for work: for GNU's library, and LLVM's and Intel's."""
_SPINS, _MILLISECONDS = 5000, 1
"""How long they go round and round before they sleep: a few microseconds' worth, as long as the gap between two
operations. By default it is 300,000 times, and 200 milliseconds; what that costs where other programs compute too, and
how little it gains, is in tests/speed/README.md."""


def bound_spinning() -> None:
    """Keeps OpenMP's threads from holding a processor that another program needs; what the user has set stays.

    Only before torch is loaded: its threads read this once.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"] = str(_SPINS), str(_MILLISECONDS)


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
