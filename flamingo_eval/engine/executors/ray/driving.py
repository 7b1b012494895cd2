"""Driving: hands work to workers, never much more than they can do, and takes back what dead ones were at.

Nothing here knows Ray: tests drive workers that are functions. A worker that dies is not the fault of what it was
doing, until a second one has died of the same: then its items are given out one by one, to workers that have nothing
else to do, and an item that two of them die of is given up by name.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flamingo_eval.core.errors import CheckpointError

T = TypeVar("T")
S = TypeVar("S")
Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)

AT_ONCE = 2
"""Pieces of work that a worker has: one that it does, and one whose images it reads meanwhile."""

DEATHS = 2
"""Workers that die of an item before it is given up."""

LOADS = 3
"""Times in a row that a worker dies before it is ready, until that is no accident."""

PATIENCE = 30.0
"""Seconds without a worker, or a result, before the user is told what is waited for."""


class WorkerDied(Exception):
    """A worker, or its machine, has died or can't be reached; the message says what is known.

    Args:
        what: the message.
        for_good: it can't be started anew.
    """

    def __init__(self, what: str, *, for_good: bool = False) -> None:
        super().__init__(what)
        self.for_good = for_good


class Crew(Protocol[Item, Result]):
    """Workers, by number; every call returns at once with a handle, but for those that say otherwise."""

    @property
    def count(self) -> int:
        """How many there are."""

    def begin(self, worker: int) -> Hashable:
        """A handle that is done once this worker is there, which may take until there is a machine for it."""

    def load(self, worker: int) -> Hashable:
        """A handle that is done once a worker that is there is ready for work."""

    def send(self, worker: int, items: Sequence[Item]) -> Hashable:
        """Gives it work."""

    def wait(self, handles: Collection[Hashable], seconds: float) -> Sequence[Hashable]:
        """Those that are done, as soon as there is one; none if the time is over."""

    def result(self, handle: Hashable) -> Result:
        """What came of it. Raises WorkerDied, and whatever the worker raised."""

    def waiting_for(self) -> str:
        """Why no worker may be ready, for the user."""


@dataclass(frozen=True)
class Done(Generic[T, S]):
    """What came of a piece of work.

    Attributes:
        items: what was to be done.
        result: what came of it; None if it was given up.
        reason: why it was given up.
    """

    items: Sequence[T]
    result: S | None
    reason: str = ""


@dataclass
class _Piece(Generic[T]):
    """Items that are done together; ``alone``: by a worker that has nothing else to do."""

    items: Sequence[T]
    deaths: int = 0
    alone: bool = False


@dataclass
class _Worker:
    """What is known of a worker.

    Attributes:
        load: pieces that it has; None while it is not ready.
        life: how often it has been started anew.
        failed: how often in a row it has died before it was ready.
        reserved: whether it has a piece that nothing may come beside.
    """

    load: int | None = None
    life: int = 0
    failed: int = 0
    reserved: bool = False


class Drive(Generic[T, S]):
    """Work that is being done by a crew.

    Args:
        crew: the workers.
        work: the items, in pieces; the next one is asked for when a worker is free for it.
        note: told what is waited for.
    """

    def __init__(self, crew: Crew[T, S], work: Iterator[Sequence[T]], note: Callable[[str], None]) -> None:
        self._crew, self._work, self._note = crew, work, note
        self._back: deque[_Piece[T]] = deque()
        self._suspects: deque[_Piece[T]] = deque()
        self._workers = [_Worker() for _ in range(crew.count)]
        self._starting = {crew.begin(worker): (worker, False) for worker in range(crew.count)}
        self._at: dict[Hashable, tuple[int, int, _Piece[T]]] = {}
        self._exhausted = False
        self.deaths = 0
        """How often work was lost with a worker."""

    @property
    def ready(self) -> int:
        """Workers that are ready."""
        return sum(worker.load is not None for worker in self._workers)

    def run(self) -> Iterator[list[Done[T, S]]]:
        """What comes of the work, in whatever order it comes.

        Raises:
            CheckpointError: a worker dies again and again before it is ready, or none can be started.
            Whatever a worker has raised, but for its death.
        """
        heard = time.monotonic()
        while True:
            self._give_out()
            if not self._at and self._finished():
                return
            ready = self._crew.wait([*self._at, *self._starting], 1.0)
            if ready:
                heard = time.monotonic()
            elif not self.ready and time.monotonic() - heard > PATIENCE:
                self._note(self._crew.waiting_for())
                heard = time.monotonic()
            done = [found for handle in ready for found in self._take(handle)]
            if done:
                yield done

    def _finished(self) -> bool:
        """Whether there is nothing left to give out."""
        return self._exhausted and not self._back and not self._suspects

    def _give_out(self) -> None:
        for load in range(AT_ONCE):  # first to those that have nothing to do
            for number, worker in enumerate(self._workers):
                if worker.load != load or worker.reserved:
                    continue
                piece = self._next(idle=load == 0)
                if piece is None:
                    break
                worker.load, worker.reserved = load + 1, piece.alone
                self._at[self._crew.send(number, piece.items)] = (number, worker.life, piece)

    def _next(self, *, idle: bool) -> _Piece[T] | None:
        if self._suspects and idle:
            return self._suspects.popleft()
        if self._back:
            return self._back.popleft()
        if not self._exhausted:
            items = next(self._work, None)
            if items is not None:
                return _Piece(items)
            self._exhausted = True
        return None

    def _take(self, handle: Hashable) -> list[Done[T, S]]:
        """What a handle that is done brings."""
        if handle in self._starting:
            self._started(handle, *self._starting.pop(handle))
            return []
        number, life, piece = self._at.pop(handle)
        worker = self._workers[number]
        try:
            result = self._crew.result(handle)
        except WorkerDied as death:
            if worker.life == life:  # else another piece of the same has said so
                self._start_anew(number)
            return self._died(piece, str(death))
        if worker.life == life and worker.load is not None:
            worker.load, worker.reserved = worker.load - 1, False
        return [Done(piece.items, result)]

    def _started(self, handle: Hashable, number: int, loading: bool) -> None:
        worker = self._workers[number]
        try:
            self._crew.result(handle)
        except WorkerDied as death:
            if death.for_good and not loading:
                self._gone(str(death))
                return
            worker.failed += loading
            if worker.failed >= LOADS:
                raise CheckpointError(
                    f"a worker has died {worker.failed} times while loading; is there memory for the model? {death}"
                ) from death
            self._start_anew(number)
            return
        if loading:
            worker.load, worker.failed = 0, 0
        else:
            self._starting[self._crew.load(number)] = (number, True)

    def _gone(self, why: str) -> None:
        """One worker less; without any there is nobody to go on. Raises CheckpointError."""
        if not self._starting and not self.ready:
            raise CheckpointError(f"no worker can be started: {why}")
        self._note(f"a worker can't be started: {why}")

    def _start_anew(self, number: int) -> None:
        worker = self._workers[number]
        worker.load, worker.reserved, worker.life = None, False, worker.life + 1
        self._starting[self._crew.begin(number)] = (number, False)

    def _died(self, piece: _Piece[T], why: str) -> list[Done[T, S]]:
        """Work that was lost is done again; what is left of it when a worker has died of it alone."""
        self.deaths += 1
        piece.deaths += 1
        if piece.deaths < DEATHS:
            (self._suspects if piece.alone else self._back).append(piece)
        elif piece.alone:
            return [Done(piece.items, None, f"{piece.deaths} workers have died of it; of the last one is known: {why}")]
        else:
            self._suspects.extend(_Piece([item], alone=True) for item in piece.items)
        return []
