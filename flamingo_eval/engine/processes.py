"""Many processes on one run: who this one is, and how work is divided.

A run's queries are cut into chunks. Each process claims some, answers them, and claims the next ones, so that a fast
one does more than a slow one. A claim is a lock on a byte of a file in the run's folder: the system lets go of it when
a process dies, and another one takes the chunk up. What counts as answered is what stands in the journals.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Protocol

from flamingo_eval.engine.answer import Pending
from flamingo_eval.errors import StorageError, UserError
from flamingo_eval.files import open_own, storage_errors
from flamingo_eval.runspec import Process

CHUNK = 16
"""Queries that are claimed together, at least."""

CLAIM_SECONDS = 20.0
"""A process claims as many as it answers in about this time."""

_ENVIRONMENTS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
"""What torchrun and Slurm's srun tell the processes that they start."""


def process_from(environment: Mapping[str, str], option: str | None) -> Process:
    """Which process this is: as the option says, ``RANK/COUNT``, else as torchrun or srun say, else the only one.

    Raises:
        UserError: it makes no sense.
    """
    if option is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", option.strip())
        if match is None or int(match[1]) >= int(match[2]):
            raise UserError(f"--process {option!r}: give RANK/COUNT, ranks from 0 on, such as 0/4, 1/4, 2/4 and 3/4")
        return Process(int(match[1]), int(match[2]), int(match[1]))
    for rank, count, local in _ENVIRONMENTS:
        if rank in environment and count in environment:
            try:
                process = Process(*(int(environment.get(name, "0")) for name in (rank, count, local)))
            except ValueError:
                process = Process(-1)
            if not 0 <= process.rank < process.count:
                raise UserError(
                    f"{rank}={environment[rank]} and {count}={environment[count]} in the environment make no sense; "
                    "unset them, or say --process 0/1"
                )
            return process
    return Process()


class Claims:
    """Locks by name, on bytes of one file.

    Args:
        path: the file; all processes must see the same one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            self._file = open_own(path, os.O_RDWR | os.O_CREAT)

    def close(self) -> None:
        """Lets go of everything."""
        os.close(self._file)

    def take(self, name: str) -> bool:
        """Claims a name; False if another process holds it."""
        return self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self, name: str) -> None:
        """Lets go of a name."""
        self._lock(name, fcntl.LOCK_UN)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Waits until no other process is within the same."""
        self._lock(name, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.release(name)

    def _lock(self, name: str, kind: int) -> bool:
        place = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
        try:
            fcntl.lockf(self._file, kind, 1, place)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StorageError(
                f"{self._path} can't be locked ({error.strerror}): processes can't share a run here"
            ) from error
        return True


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
    for cell, items in groupby(pending, key=lambda item: item.trial.cell):
        parts = [(f"{cell}/{n}", list(part)) for n, part in groupby(items, key=lambda item: item.position // CHUNK)]
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
        if kind not in (None, items[0].trial.cell[:2]):
            break
        if not claims.take(name):
            continue
        taken.append(name)
        if kind is None:
            kind, most = items[0].trial.cell[:2], wanted(items[0])
        count += len(items)
        if count >= most:
            break
    return taken
