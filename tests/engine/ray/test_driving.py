"""Handing work to workers that are functions: no Ray, no processes."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence

import pytest

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.engine.executors.ray.driving import AT_ONCE, Done, Drive, WorkerDied


class Fakes:
    """Workers on a clock of their own: each piece takes a second; some die of what they are asked.

    Args:
        count: how many.
        deadly: whether a worker dies of an item, told how often it has been tried.
        start: seconds until a worker is there; None for never.
        loads: whether a worker can load; told its number, and how often it has tried.
        never: workers that can't be started at all.
    """

    def __init__(
        self,
        count: int,
        deadly: Callable[[int, int], bool] = lambda item, tried: False,
        start: Callable[[int], float | None] = lambda worker: 0.0,
        loads: Callable[[int, int], bool] = lambda worker, tried: True,
        never: Collection[int] = (),
    ) -> None:
        self._never = never
        self._count, self._deadly, self._start, self._loads = count, deadly, start, loads
        self.now = 0.0
        self._queue: list[tuple[float, int]] = []
        self._results: dict[Hashable, tuple[int, int, Sequence[int] | None, str]] = {}
        self._numbers = itertools.count()
        self._lives, self._free = Counter[int](), Counter[int]()
        self._in_flight = dict[int, int]()
        self.most_at_once = 0
        self.tried, self.loaded = Counter[int](), Counter[int]()
        self.alone = True

    @property
    def count(self) -> int:
        return self._count

    def _later(self, worker: int, seconds: float | None, items: Sequence[int] | None, kind: str) -> Hashable:
        number = next(self._numbers)
        self._results[number] = (worker, self._lives[worker], items, kind)
        if seconds is not None:
            heapq.heappush(self._queue, (self.now + seconds, number))
        return number

    def begin(self, worker: int) -> Hashable:
        return self._later(worker, self._start(worker), None, "begin")

    def load(self, worker: int) -> Hashable:
        self.loaded[worker] += 1
        return self._later(worker, 0.5, None, "load")

    def send(self, worker: int, items: Sequence[int]) -> Hashable:
        self._in_flight[worker] = self._in_flight.get(worker, 0) + 1
        self.most_at_once = max(self.most_at_once, self._in_flight[worker])
        self._free[worker] = int(max(self._free[worker], self.now)) + 1
        return self._later(worker, self._free[worker] - self.now, items, "work")

    def wait(self, handles: Collection[Hashable], seconds: float) -> Sequence[Hashable]:
        del seconds
        done: list[Hashable] = []
        while self._queue and not done:
            self.now, number = heapq.heappop(self._queue)
            done = [number] if number in handles else []
        return done

    def result(self, handle: Hashable) -> list[int]:
        worker, life, items, kind = self._results.pop(handle)
        if kind == "load" and not self._loads(worker, self.loaded[worker]):
            raise WorkerDied("no memory")
        if kind == "begin" and worker in self._never:
            raise WorkerDied("no such environment", for_good=True)
        if items is None:
            return []
        self._in_flight[worker] -= 1
        if life != self._lives[worker]:
            raise WorkerDied("it had died")
        for item in items:
            self.tried[item] += 1
            if self._deadly(item, self.tried[item]):
                self._lives[worker] += 1
                raise WorkerDied("exit 1")
        return [10 * item for item in items]

    def waiting_for(self) -> str:
        return "nothing"


def driven(fakes: Fakes, work: Iterator[Sequence[int]]) -> tuple[dict[int, int], dict[int, str]]:
    drive = Drive[int, list[int]](fakes, work, lambda _: None)
    results, given_up = dict[int, int](), dict[int, str]()
    for done in drive.run():
        for part in done:
            assert isinstance(part, Done)
            for i, item in enumerate(part.items):
                assert item not in results
                assert item not in given_up
                if part.result is None:
                    given_up[item] = part.reason
                else:
                    results[item] = part.result[i]
    return results, given_up


def in_pieces(count: int, size: int) -> Iterator[Sequence[int]]:
    return (range(i, min(count, i + size)) for i in range(0, count, size))


def test_all_is_done_once_and_no_more_is_sent_than_workers_are_about_to_do() -> None:
    fakes, asked = Fakes(3), []

    def work() -> Iterator[Sequence[int]]:
        for piece in in_pieces(100, 7):
            asked.append(piece)
            assert len(asked) * 7 - sum(fakes.tried.values()) <= 3 * AT_ONCE * 7 + 7, "asked for before it is needed"
            yield piece

    results, given_up = driven(fakes, work())
    assert results == {i: 10 * i for i in range(100)}
    assert not given_up
    assert fakes.most_at_once == AT_ONCE
    assert set(fakes.tried.values()) == {1}


def test_a_worker_that_dies_once_is_no_failing_query() -> None:
    fakes = Fakes(2, deadly=lambda item, tried: item % 13 == 5 and tried == 1)
    results, given_up = driven(fakes, in_pieces(60, 4))
    assert (len(results), given_up) == (60, {})


def test_what_two_workers_die_of_is_given_up_by_name_and_alone() -> None:
    fakes = Fakes(3, deadly=lambda item, tried: item in (17, 18, 40))
    results, given_up = driven(fakes, in_pieces(60, 4))
    assert sorted(given_up) == [17, 18, 40]
    assert sorted(results) == [i for i in range(60) if i not in given_up]
    assert "2 workers have died of it; of the last one is known: exit 1" in given_up[17]


def test_random_deaths_lose_nothing() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        fakes = Fakes(4, deadly=lambda item, tried, chance=chance: item != 7 and tried < 3 and chance.random() < 0.05)  # type: ignore[misc]
        results, given_up = driven(fakes, in_pieces(200, 6))
        assert sorted([*results, *given_up]) == list(range(200))


def test_workers_that_never_come_hold_nothing_up() -> None:
    fakes = Fakes(4, start=lambda worker: None if worker else 0.0)
    assert len(driven(fakes, in_pieces(20, 4))[0]) == 20


def test_a_worker_that_always_dies_while_loading_is_reported_not_tried_for_ever() -> None:
    with pytest.raises(CheckpointError, match="has died 3 times while loading; is there memory for the model"):
        driven(Fakes(1, loads=lambda worker, tried: False), in_pieces(4, 4))
    assert len(driven(Fakes(1, loads=lambda worker, tried: tried % 3 == 0), in_pieces(4, 4))[0]) == 4


def test_a_worker_that_cant_be_started_is_done_without() -> None:
    assert len(driven(Fakes(3, never=(0, 2)), in_pieces(40, 4))[0]) == 40
    with pytest.raises(CheckpointError, match="no worker can be started: no such environment"):
        driven(Fakes(3, never=(0, 1, 2)), in_pieces(40, 4))


def test_what_a_worker_raises_is_raised() -> None:
    def fail(item: int, tried: int) -> bool:
        raise CheckpointError(f"{item} is not a checkpoint, {tried}")

    with pytest.raises(CheckpointError, match="0 is not a checkpoint, 1"):
        driven(Fakes(2, deadly=fail), in_pieces(4, 4))


@pytest.mark.slow
def test_a_thousand_workers() -> None:
    """Giving out and taking back is no bottleneck."""
    began = time.perf_counter()
    results, _ = driven(Fakes(1000), in_pieces(20_000, 4))
    assert len(results) == 20_000
    assert time.perf_counter() - began < 10
