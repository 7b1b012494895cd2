"""Driving: gives work to workers, never much more than they can do, and takes back the work of dead ones.

Nothing here depends on Ray: tests drive workers that are functions. When a worker dies, its work is not blamed until a
second worker has died of the same piece. Then the items of the piece are given out one by one, to workers that have
nothing else to do. An item that two of these die of is given up by name.
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
"""Pieces of work that a worker has at once: one that it does, and one whose images it reads meanwhile."""

DEATHS = 2
"""Workers that die of a piece before its items are given out one by one, or of a single item before it is given up."""

LOADS = 3
"""Times in a row that a worker dies while it loads before the run fails."""

PATIENCE = 30.0
"""Seconds without a worker that is ready, or a first result, before the user is shown what the run waits for."""


class WorkerDied(Exception):
    """A worker, or its machine, has died or can't be reached; the message says what is known.

    Args:
        what: the message.
        for_good: the worker can't be restarted.
    """

    def __init__(self, what: str, *, for_good: bool = False) -> None:
        super().__init__(what)
        self.for_good = for_good


class Crew(Protocol[Item, Result]):
    """Workers, by number; calls return a handle at once unless they state otherwise."""

    @property
    def count(self) -> int:
        """Number of workers."""

    def begin(self, worker: int) -> Hashable:
        """A handle that is done once this worker has started, which may have to wait for a machine."""

    def load(self, worker: int) -> Hashable:
        """A handle that is done once a started worker is ready for work."""

    def send(self, worker: int, items: Sequence[Item]) -> Hashable:
        """Gives a worker items to work on; the handle is done once they are."""

    def wait(self, handles: Collection[Hashable], seconds: float) -> Sequence[Hashable]:
        """All handles that are done, as soon as one is; none if the time is over."""

    def result(self, handle: Hashable) -> Result:
        """The result of a handle. Raises WorkerDied, or the error that the worker raised."""

    def waiting_for(self) -> str:
        """A message for the user: why no worker may be ready."""


@dataclass(frozen=True)
class Done(Generic[T, S]):
    """A piece of work that is done or given up.

    Attributes:
        items: the items of the piece.
        result: the result; None if the piece was given up.
        reason: why it was given up.
    """

    items: Sequence[T]
    result: S | None
    reason: str = ""


@dataclass
class _Piece(Generic[T]):
    """Items that are done together; if ``alone``, by a worker that has nothing else to do."""

    items: Sequence[T]
    deaths: int = 0
    alone: bool = False


@dataclass
class _Worker:
    """The state of a worker.

    Attributes:
        load: number of pieces that it has; None while it is not ready.
        life: how often it has been restarted.
        failed: how often in a row it has died while it loaded.
        reserved: whether it has a piece that it must not have others beside.
    """

    load: int | None = None
    life: int = 0
    failed: int = 0
    reserved: bool = False


class Drive(Generic[T, S]):
    """Has a crew do the work.

    Args:
        crew: the workers.
        work: the items, in pieces; the next piece is taken when a worker is free for it.
        note: called with messages for the user, such as what the run waits for.
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
        """Number of workers that are ready."""
        return sum(worker.load is not None for worker in self._workers)

    def run(self) -> Iterator[list[Done[T, S]]]:
        """Yields results, in the order in which they come.

        Raises:
            CheckpointError: a worker dies again and again while it loads, or none can be started.
            Whatever a worker has raised, except its death.
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
        """The results of a handle that is done."""
        if handle in self._starting:
            self._started(handle, *self._starting.pop(handle))
            return []
        number, life, piece = self._at.pop(handle)
        worker = self._workers[number]
        try:
            result = self._crew.result(handle)
        except WorkerDied as death:
            if worker.life == life:  # else another piece of this worker has reported it
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
        """Goes on without a worker that can't be started. Raises CheckpointError if no other worker is left."""
        if not self._starting and not self.ready:
            raise CheckpointError(f"no worker can be started: {why}")
        self._note(f"a worker can't be started: {why}")

    def _start_anew(self, number: int) -> None:
        worker = self._workers[number]
        worker.load, worker.reserved, worker.life = None, False, worker.life + 1
        self._starting[self._crew.begin(number)] = (number, False)

    def _died(self, piece: _Piece[T], why: str) -> list[Done[T, S]]:
        """Requeues lost work; returns an item as given up once ``DEATHS`` workers have died of it alone."""
        self.deaths += 1
        piece.deaths += 1
        if piece.deaths < DEATHS:
            (self._suspects if piece.alone else self._back).append(piece)
        elif piece.alone:
            return [Done(piece.items, None, f"{piece.deaths} workers have died of it; of the last one is known: {why}")]
        else:
            self._suspects.extend(_Piece([item], alone=True) for item in piece.items)
        return []
