"""A worker: has the model, and answers requests that it is sent. It opens nothing of the run's folder.

Two calls may be at work at once, in threads: the images of one are read while the other one's are being answered.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.paths import is_folder
from flamingo_eval.core.progress import LOGGER
from flamingo_eval.core.protocols import Model, ModelSource
from flamingo_eval.core.records import Prediction, Task
from flamingo_eval.core.workers import bound_spinning, prefetched
from flamingo_eval.engine.answer import ReadBatch, read_batch, result_of
from flamingo_eval.engine.asking import Runner
from flamingo_eval.engine.batches import Length, in_batches, measure_of
from flamingo_eval.engine.executors.ray.cluster import ActorCrew, Room
from flamingo_eval.engine.identity import versions
from flamingo_eval.engine.requests import Request
from flamingo_eval.storage.journal import Failure


@dataclass(frozen=True)
class Named:
    """A model as another machine finds it.

    Attributes:
        checkpoint: what ``--checkpoint`` calls it, from any folder.
        options: its settings.
        digest: what it must be there too.
    """

    checkpoint: str
    options: Mapping[str, Any]
    digest: str

    def source(self) -> ModelSource:
        """The model here. Raises UserError, CheckpointError; or it is another one than where the run began."""
        source = registry.model_source(self.checkpoint, self.options)
        same_digest(self.checkpoint, source.info().digest, self.digest)
        return source


def same_digest(name: str, found: str, wanted: str) -> None:
    """Raises UserError where what has that name on this machine is something else."""
    if found != wanted:
        raise UserError(
            f"{platform.node()} has another {name} than the machine where the run was started "
            f"({found[:10]}, not {wanted[:10]})"
        )


@dataclass(frozen=True)
class Order:
    """What a worker is for.

    Attributes:
        model: which model.
        device: where it runs, resolved.
        precision: in which precision, resolved.
        batch_size: queries per batch; None for what the model suggests.
        versions: what the run was started with: package -> version.
        root: the folder of the images, which it must have; None if they are sent.
    """

    model: Named
    device: str
    precision: str
    batch_size: int | None
    versions: Mapping[str, str]
    root: Path | None

    def check(self) -> None:
        """Raises UserError where this machine can't answer as the one where the run was started would."""
        check_versions(self.versions)
        if self.root is not None and not is_folder(self.root):
            raise UserError(
                f"{platform.node()} has no folder {self.root}, where the images are: every node needs it under "
                "the same path, or --ship-images sends them"
            )


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises UserError where this machine has other versions of what answers come from."""
    here = versions()
    other = [
        f"{name} {here.get(name)} (not {version})" for name, version in wanted.items() if here.get(name) != version
    ]
    if other:
        raise UserError(
            f"{platform.node()} has {', '.join(other)}: every node needs the versions of the machine where the run "
            "is started"
        )


@dataclass(frozen=True)
class Place:
    """Where a worker is."""

    host: str
    process: int

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}"


@dataclass(frozen=True)
class Answers:
    """What came of requests.

    Attributes:
        results: of each in turn its answer, or why there is none.
        seconds: where the worker's time has gone, since its model was loaded.
        batches: how many queries each batch had.
        seen: image -> digest of its content, as far as the worker has looked.
        warnings: what was said meanwhile.
        place: who has answered.
    """

    results: Sequence[Prediction | Failure]
    seconds: Mapping[str, float]
    batches: Sequence[int]
    seen: Mapping[str, str]
    warnings: Sequence[str]
    place: Place


@dataclass
class _Loaded:
    """The model at work.

    Attributes:
        busy: held while it answers.
        reading: held while a batch is read: models expect one such thread.
    """

    model: Model
    runner: Runner
    length: Length
    busy: threading.Lock = field(default_factory=threading.Lock)
    reading: threading.Lock = field(default_factory=threading.Lock)

    def read(self, task: Task, batch: Sequence[tuple[Request, Request]]) -> ReadBatch:
        with self.reading:
            return read_batch(self.model, task, batch, self.length)


class Worker:
    """Answers requests. The model is loaded with the first call: a worker that was started anew loads it again.

    Args:
        order: what it is for.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._ready: _Loaded | None = None

    def place(self) -> Place:
        """Where it is."""
        return here()

    def ready(self) -> None:
        """Loads the model. Raises UserError, CheckpointError where it can't be had, or answers would be others."""
        self._loaded()

    def size(self, request: Request, images: Images) -> int:
        """Queries per batch of those like this one."""
        loaded, prompt = self._loaded(), request.prompts[0]
        return loaded.runner.size(prompt, loaded.length(prompt, images), request.task)

    def do(self, requests: Sequence[Request], images: Images) -> Answers:
        """Answers requests of one task.

        Args:
            requests: what is asked.
            images: where the images of all of them are.
        """
        loaded, task = self._loaded(), requests[0].task
        requests = [replace(request, images=images) for request in requests]
        results: dict[int, Prediction | Failure] = {}
        number = {request.slot: i for i, request in enumerate(requests)}
        sizes: list[int] = []
        batches = in_batches([(one, one) for one in requests], partial(loaded.runner.size, task=task), loaded.length)
        with listening() as warnings, closing(prefetched(partial(loaded.read, task), batches)) as reading:
            first = next(reading)  # while another call's requests are being answered
            with loaded.busy:
                for _, ready in chain([first], reading):
                    results |= {number[failure.slot]: failure for failure in ready.failures}
                    done = 0
                    for answers in loaded.runner.answer(ready.prepared, ready.lengths, task):
                        some = ready.items[done : done + len(answers)]
                        for (item, content), result in zip(some, answers, strict=True):
                            results[number[item.slot]] = result_of(item, result, content)
                        done += len(answers)
                        sizes.append(len(answers))
                seconds = dict(loaded.model.timings())
        return Answers([results[i] for i in range(len(requests))], seconds, sizes, images.seen(), warnings, here())

    def _loaded(self) -> _Loaded:
        with self._lock:
            if self._ready is None:
                bound_spinning()
                self._order.check()
                model = self._order.model.source().load(self._order.device, self._order.precision)
                self._ready = _Loaded(model, Runner(model, self._order.batch_size), measure_of(model))
            return self._ready


def resolved_there(named: Named, device: str, precision: str, room: Room) -> tuple[str, str]:
    """Device and precision that a model has on a machine of the cluster that a worker fits on.

    Raises:
        UserError: that machine has no such device or precision, or other versions.
    """
    crew = ActorCrew[None, tuple[str, str]](_Resolver, (named, device, precision, versions()), replace(room, workers=1),
                                            lambda _: ())  # fmt: skip
    with closing(crew):
        found: tuple[str, str] = crew.first("do")
        return found


class _Resolver:
    """Looks what ``auto`` stands for where it is."""

    def __init__(self, what: tuple[Named, str, str, Mapping[str, str]]) -> None:
        self._what = what

    def do(self) -> tuple[str, str]:
        named, device, precision, wanted = self._what
        check_versions(wanted)
        return named.source().resolve(device, precision)


def here() -> Place:
    """This process."""
    return Place(platform.node(), os.getpid())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collects this package's warnings, which nobody here would read."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    listener = Listener(logging.WARNING)
    LOGGER.addHandler(listener)
    try:
        yield heard
    finally:
        LOGGER.removeHandler(listener)
