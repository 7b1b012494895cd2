"""Several processes that work on one run and share its folder.

A run's queries are divided into chunks. Each process claims some chunks, answers them, and claims the next ones, so a
fast process does more than a slow one. When a process dies, the system releases its claims, and another process takes
the chunks. A query counts as answered when its answer is in one of the journals.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Protocol

from flamingo_eval.core.run_settings import Process
from flamingo_eval.engine.answer import Answering
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.engine.requests import Pending
from flamingo_eval.storage.claims import Claims
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder

CHUNK = 16
"""Queries of the plan per chunk; a process claims one chunk or several at a time."""


CLAIM_SECONDS = 20.0
"""A process claims about as many queries as it answers in this time."""


class Answered(Protocol):
    """What :func:`divide` needs to know about answers."""

    def refresh(self) -> int:
        """Reads the answers that other processes have written; returns how many are new."""

    def done(self, item: Pending) -> bool:
        """Whether this query has an answer, or can't be answered."""


def chunks_of(pending: Sequence[Pending], process: Process) -> OrderedDict[str, list[Pending]]:
    """The queries by chunk; a chunk's name and bounds depend on the plan alone.

    In each trial, every process begins at another place, so that processes rarely want the same chunk.
    """
    chunks: OrderedDict[str, list[Pending]] = OrderedDict()
    for key, items in groupby(pending, key=lambda item: item.trial.key):
        parts = [(f"{key}/{n}", list(part)) for n, part in groupby(items, key=lambda item: item.position // CHUNK)]
        first = len(parts) * process.rank // process.count
        chunks.update(parts[first:] + parts[:first])
    return chunks


def divide(
    pending: Sequence[Pending],
    process: Process,
    claims: Claims,
    answered: Answered,
    batch_size: Callable[[Pending], int],
    others: Callable[[int], None],
) -> Iterator[list[Pending]]:
    """Yields parts of the work for this process, until all queries are answered, by this process or another.

    Each part must be answered before the next one is taken. The queries of a part have one benchmark and one number of
    shots.

    Args:
        pending: the run's pending queries, in plan order.
        process: which of the processes this is.
        claims: what the processes have claimed, by name of a chunk.
        answered: which queries have an answer by now.
        batch_size: how many queries like this one make a batch.
        others: called often with the number of new answers that other processes have written, which may be 0.
    """
    chunks = chunks_of(pending, process)
    per_query: float | None = None
    pause = 0.05
    while chunks:
        others(answered.refresh())
        share = len(chunks) * CHUNK // (2 * process.count)
        taken = _claim(chunks, claims, answered, partial(_wanted, batch_size, per_query, share))
        if not taken:
            if chunks:
                time.sleep(pause)
                pause = min(2.0, 2 * pause)
            continue
        pause = 0.05
        others(answered.refresh())  # other processes may have answered some before the claim
        items = [item for name in taken for item in chunks.pop(name) if not answered.done(item)]
        began = time.perf_counter()
        if items:
            yield items
            per_query = (time.perf_counter() - began) / len(items)
        for name in taken:
            claims.release(name)


def _wanted(batch_size: Callable[[Pending], int], per_query: float | None, share: int, like: Pending) -> int:
    """How many queries to claim: at least a batch; later as many as take some seconds, but at most a fair share."""
    most = 0 if per_query is None else min(int(CLAIM_SECONDS / per_query), share)
    return max(batch_size(like), most)


def _claim(
    chunks: OrderedDict[str, list[Pending]],
    claims: Claims,
    answered: Answered,
    wanted: Callable[[Pending], int],
) -> list[str]:
    """Claims chunks and returns their names; chunks that are done already are dropped."""
    taken: list[str] = []
    count = most = 0
    kind: tuple[str, int] | None = None
    for name, items in list(chunks.items()):
        if all(answered.done(item) for item in items):
            del chunks[name]
            continue
        if kind not in (None, items[0].trial.key[:2]):
            break
        if not claims.take(name):
            continue
        taken.append(name)
        if kind is None:
            kind, most = items[0].trial.key[:2], wanted(items[0])
        count += len(items)
        if count >= most:
            break
    return taken


class ProcessesExecutor(LocalExecutor):
    """One of several processes. Only the first one shows messages and scores; its progress bar counts all answers."""

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.process.rank == 0

    @property
    def sole(self) -> bool:
        """Always false: other processes may work in the same folder."""
        return False

    def journal(self, folder: RunFolder) -> Journal:
        """This process's own journal file, created empty, since others must find it long before it has an answer."""
        journal = Journal(folder.journal_file, self.process.rank)
        journal.begin()
        return journal

    def parts(
        self, requests: Sequence[Pending], work: Answering, others: Callable[[int], None]
    ) -> Iterator[Sequence[Pending]]:
        """Yields the queries of chunks as they are claimed."""
        yield from divide(requests, self.process, self.claims, work, work.batch_size, others)


EXECUTOR = ProcessesExecutor
