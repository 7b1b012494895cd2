"""Workers of a Ray cluster answer the requests; only this process writes to the run folder.

Requests are sent in pieces of a few batches, and only as many as the workers are about to answer. Results are written
to the journal before more requests are sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, cast

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.images import CHANGED, Images
from flamingo_eval.core.progress import note, progress_bar, warn
from flamingo_eval.core.protocols import ModelSource
from flamingo_eval.core.run_settings import Process, RunSpec
from flamingo_eval.engine.batches import WINDOW, kinds
from flamingo_eval.engine.executor import Outcome, Terms
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.engine.executors.ray.cluster import ActorCrew, connected, room
from flamingo_eval.engine.executors.ray.driving import Done, Drive
from flamingo_eval.engine.executors.ray.features import RaySource
from flamingo_eval.engine.executors.ray.shipping import Packing
from flamingo_eval.engine.executors.ray.worker import Answers, Named, Order, Place, Worker, resolved_there
from flamingo_eval.engine.identity import versions
from flamingo_eval.engine.requests import Pending, Request
from flamingo_eval.engine.retrieval import Retriever
from flamingo_eval.storage.journal import Entry, Failure, Journal

BATCHES = 4
"""Batches that are sent to a worker at once, at most; fewer near the end."""


class RayExecutor(LocalExecutor):
    """Answers requests with workers that are Ray actors; connects to the cluster before the run is prepared.

    Args:
        process: which of a run's processes this is; it must be the only one.
    """

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._connection = ExitStack()

    def connect(self, spec: RunSpec) -> None:
        """Finds or starts the cluster that a run names. Raises UserError."""
        self._spec = spec
        alone = self._connection.enter_context(connected(spec.address, spec.workers))
        self._room = room(spec.workers, spec.gpus_per_worker, alone=alone)

    def close(self) -> None:
        """Disconnects from the cluster, and ends it if it was started for the run."""
        self._connection.close()

    def resolve(self, source: ModelSource) -> tuple[str, str]:
        """Device and precision of the model on a worker, which may differ from this machine's. Raises UserError."""
        info = source.info()
        if info.server is not None:
            raise UserError(
                f"{info.name} is behind a server, which one process asks (--concurrency says how much at once): leave "
                "out --executor ray"
            )
        self._named = Named(info.found_as or self._spec.checkpoint, _placed(self._spec), info.digest)
        if self._room.gpus == 0:
            return source.resolve(self._device, self._spec.precision)
        return resolved_there(self._named, self._device, self._spec.precision, self._room)

    @property
    def _device(self) -> str:
        """The model's device on a worker. Without a GPU, ``auto`` means CPU: the worker must not look for a GPU."""
        return "cpu" if self._room.gpus == 0 and self._spec.device == "auto" else self._spec.device

    def retriever(self, retriever: Retriever, images: Images) -> Retriever:
        """The same retriever, with features computed by the workers."""
        packing = Packing(images, ship=self._spec.ship_images)
        encoder = RaySource(retriever.encoder, retriever.rules, self._device, self._room, packing)
        return replace(retriever, encoder=encoder)

    def run(self, requests: Sequence[Pending], model_source: ModelSource, journal: Journal, terms: Terms) -> Outcome:
        """See :class:`flamingo_eval.engine.executor.Executor`."""
        del model_source  # each worker finds it by its name
        images, ship = requests[0].trial.source.images, self._spec.ship_images
        order = Order(
            model=self._named,
            device=terms.device,
            precision=terms.precision,
            batch_size=terms.batch_size,
            versions=versions(),
            root=None if ship else images.root.absolute(),
        )
        packing = Packing(images, ship=ship)
        crew = ActorCrew[Request, Answers](Worker, order, self._room, packing)
        with closing(crew):
            sizes = _Sizes(crew, packing, terms.batch_size)
            work = _Taking(journal, terms, images)
            drive = Drive[Request, Answers](crew, pieces(requests, sizes, self._room.workers), note)
            began = time.perf_counter()
            with progress_bar(len(requests), "query", "answering", shown=self.leads) as bar:
                for done in drive.run():
                    bar.update(work.take(done))
                    bar.set_postfix_str(f"{drive.ready} workers", refresh=False)
            return work.outcome(time.perf_counter() - began, drive.deaths)


def _placed(spec: RunSpec) -> dict[str, Any]:
    """The model's settings, in a form that is valid in any folder."""
    options = dict(spec.model_options)
    if "weights" in options:
        options["weights"] = options["weights"].absolute()
    return options


def pieces(
    requests: Sequence[Pending], batch_size: Callable[[Request], int], workers: int
) -> Iterator[Sequence[Request]]:
    """Yields pieces of a few batches, with requests of one task and similar length. The last pieces are smaller, so
    that all workers are busy until the end.
    """
    left = len(requests)
    for _, kind in kinds(requests):
        size = batch_size(kind[0].request)
        window, start = size * WINDOW, 0
        while start < len(kind):
            some = [item.request for item in kind[start : start + window]]
            start += len(some)
            some.sort(key=lambda request: -request.prompts[0].length)
            while some:
                count = size * max(1, min(BATCHES, left // (4 * workers * size)))
                piece, some = some[:count], some[count:]
                yield piece
                left -= len(piece)


class _Sizes:
    """Queries per batch: the user's number, else what a worker suggests."""

    def __init__(self, crew: ActorCrew[Request, Answers], packing: Packing, wanted: int | None) -> None:
        self._crew, self._packing, self._wanted = crew, packing, wanted

    def __call__(self, like: Request) -> int:
        if self._wanted is not None:
            return self._wanted
        [request], images = self._packing([like])
        return cast(int, self._crew.first("size", request, images))


class _Taking:
    """Writes the workers' answers to the journal, and collects failures, timings and warnings."""

    def __init__(self, journal: Journal, terms: Terms, images: Images) -> None:
        self._journal, self._terms, self._images = journal, terms, images
        self._failures: list[Failure] = []
        self._batches: dict[str, Counter[str]] = {}
        self._seconds: dict[Place, Mapping[str, float]] = {}
        self._answers: Counter[str] = Counter()
        self._warned: set[str] = set()

    def take(self, done: Sequence[Done[Request, Answers]]) -> int:
        """Writes all answers to the journal in one append; returns how many requests were handled."""
        entries: list[Entry] = []
        for part in done:
            if part.result is None:
                self._failures += [Failure(request.slot, part.reason) for request in part.items]
                continue
            changed = set(self._images.learn(part.result.seen))
            self._note(part.items[0], part.result)
            self._answers[str(part.result.place)] += len(part.items)
            for request, result in zip(part.items, part.result.results, strict=True):
                other = changed & request.own_images if changed else ()
                if isinstance(result, Failure):
                    self._failures.append(result)
                elif other:
                    self._failures.append(Failure(request.slot, f"{self._images.root / min(other)} {CHANGED}"))
                else:
                    entries.append(Entry(request.slot, result))
        if entries:
            self._journal.append(entries, self._terms.extra)
        return sum(len(part.items) for part in done)

    def _note(self, like: Request, answers: Answers) -> None:
        benchmark, shots, *_ = like.slot
        self._batches.setdefault(f"{benchmark} {shots}", Counter()).update(map(str, answers.batches))
        # seconds add up over a worker's life; the results of two pieces may come in either order
        known = self._seconds.get(answers.place, {})
        self._seconds[answers.place] = max(known, answers.seconds, key=lambda seconds: sum(seconds.values()))
        for warning in answers.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                warn(f"{answers.place.host}: {warning}")

    def outcome(self, answering: float, deaths: int) -> Outcome:
        """The outcome of all work; the seconds of each section are the mean over the workers."""
        if deaths:
            note(f"{deaths} pieces of work were lost with workers that died, and done again by others")
        sections: Counter[str] = Counter()
        for seconds in self._seconds.values():
            sections.update(seconds)
        mean = {name: seconds / len(self._seconds) for name, seconds in sections.items()}
        batches = {kind: dict(sizes) for kind, sizes in self._batches.items()}
        return Outcome(self._failures, {"answering": answering, **mean}, batches, dict(self._answers))


EXECUTOR = RayExecutor
