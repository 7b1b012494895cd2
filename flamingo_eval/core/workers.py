"""Threads: for prefetching, for calls at the same time, and those of the numerical libraries."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

A = TypeVar("A")
B = TypeVar("B")

WORKERS = min(16, os.cpu_count() or 1)
"""Number of threads that read images."""


_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that set how OpenMP threads wait for work, in GNU's library and in LLVM's and Intel's."""
_SPINS, _MILLISECONDS = 5000, 1
"""How long waiting threads spin before they sleep: a few microseconds' worth, as long as the gap between two
operations. The defaults are 300,000 spins and 200 milliseconds. tests/speed/README.md shows what those cost where other
programs compute too, and how little they gain."""


def bound_spinning() -> None:
    """Keeps waiting OpenMP threads from occupying a processor that another program needs; the user's settings stay.

    Works only before torch is loaded, since its threads read these variables once.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"] = str(_SPINS), str(_MILLISECONDS)


def prefetched(function: Callable[[A], B], items: Iterable[A]) -> Generator[tuple[A, B], None, None]:
    """Each item with the function's value, which a thread computes while the item before is being used.

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


def as_they_come(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[list[tuple[A, B]]]:
    """Items with the function's values, in the order in which they finish; at most ``threads`` are computed at once.

    Once the function has raised an error, no further items are started. Items already started are yielded before the
    error is raised. An interrupt does not wait for them.

    >>> sorted(pair for part in as_they_come(len, ["a", "bb"], 2) for pair in part)
    [('a', 1), ('bb', 2)]
    """
    to_do: SimpleQueue[A | None] = SimpleQueue()
    done: SimpleQueue[tuple[A, B | None, BaseException | None]] = SimpleQueue()
    feed, begun, failure = iter(items), 0, None

    def work() -> None:
        while (item := to_do.get()) is not None:
            try:
                done.put((item, function(item), None))
            except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits for it
                done.put((item, None, error))

    def begin() -> bool:
        item = next(feed, None)
        if item is not None:
            to_do.put(item)
        return item is not None

    # daemons: an interrupted program does not wait for a server that takes minutes
    pool = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in pool:
        thread.start()
    try:
        while begun < threads and begin():
            begun += 1
        while begun:
            came = [done.get()]
            with suppress(Empty):
                while True:
                    came.append(done.get_nowait())
            failure = failure or next((error for _, _, error in came if error is not None), None)
            begun -= len(came)
            yield [(item, cast(B, value)) for item, value, error in came if error is None]
            while failure is None and begun < threads and begin():
                begun += 1
    finally:
        for _ in pool:
            to_do.put(None)
    if failure is not None:
        raise failure
