"""Many processes on one run, which share its folder.

A run's queries are cut into chunks. Each process claims some, answers them, and claims the next ones, so that a fast
one does more than a slow one. The system lets go of a claim when a process dies, and another one takes the chunk up.
What counts as answered is what stands in the journals.
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
"""Queries that are claimed together, at least."""


CLAIM_SECONDS = 20.0
"""A process claims as many as it answers in about this time."""


class Answered(Protocol):
    """What the division of work has to know of answers."""

    def refresh(self) -> int:
        """Learns what other processes have answered; how many answers that were."""

    def done(self, item: Pending) -> bool:
        """Whether this query has an answer, or can't have one."""


def chunks_of(pending: Sequence[Pending], process: Process) -> OrderedDict[str, list[Pending]]:
    """The queries by chunk; a chunk's name and bounds depend on the plan alone.

    Of each trial every process begins at another place, so that they rarely want the same.
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
    """Parts of the work for this process, until all of it is done, by whomever.

    Each part must be answered before the next one is asked for. All of a part are of one benchmark and number of shots.

    Args:
        pending: what the run lacks, in plan order.
        process: which of the processes this is.
        claims: what the processes have claimed, by name of a chunk.
        answered: which queries have an answer by now.
        batch_size: how many queries like one make a batch.
        others: told how many answers others have brought, whenever there are some.
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
        others(answered.refresh())  # between looking and claiming others may have been faster
        items = [item for name in taken for item in chunks.pop(name) if not answered.done(item)]
        began = time.perf_counter()
        if items:
            yield items
            per_query = (time.perf_counter() - began) / len(items)
        for name in taken:
            claims.release(name)


def _wanted(batch_size: Callable[[Pending], int], per_query: float | None, share: int, like: Pending) -> int:
    """How many queries to claim: a batch at first, then some seconds' worth; near the end no more than a fair share."""
    most = 0 if per_query is None else min(int(CLAIM_SECONDS / per_query), share)
    return max(batch_size(like), most)


def _claim(
    chunks: OrderedDict[str, list[Pending]],
    claims: Claims,
    answered: Answered,
    wanted: Callable[[Pending], int],
) -> list[str]:
    """Names of chunks that are this process's now; those that are done already are dropped."""
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
    """One of several processes; the first one's bar shows what all have done, and it alone tells and scores."""

    @property
    def leads(self) -> bool:
        """Whether it is the first one."""
        return self.process.rank == 0

    @property
    def sole(self) -> bool:
        """Others may be at work in the same folder."""
        return False

    def journal(self, folder: RunFolder) -> Journal:
        """A file of its own, which others must find long before there is something in it."""
        journal = Journal(folder.journal_file, self.process.rank)
        journal.begin()
        return journal

    def parts(
        self, requests: Sequence[Pending], work: Answering, others: Callable[[int], None]
    ) -> Iterator[Sequence[Pending]]:
        """Chunks, as they are claimed."""
        yield from divide(requests, self.process, self.claims, work, work.batch_size, others)


EXECUTOR = ProcessesExecutor
