"""A worker loads the model and answers the requests that it is sent. It opens nothing in the run folder.

Two calls may run at once, in threads: the images of one call are read while the requests of the other are answered.
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
    """A model, described so that another machine can find it.

    Attributes:
        checkpoint: a value of ``--checkpoint`` that works from any folder.
        options: the model's settings.
        digest: the digest that the model must have there too.
    """

    checkpoint: str
    options: Mapping[str, Any]
    digest: str

    def source(self) -> ModelSource:
        """The model on this machine. Raises CheckpointError; UserError, also if the model has another digest here."""
        source = registry.model_source(self.checkpoint, self.options)
        same_digest(self.checkpoint, source.info().digest, self.digest)
        return source


def same_digest(name: str, found: str, wanted: str) -> None:
    """Raises UserError if the model or encoder of that name has another digest on this machine."""
    if found != wanted:
        raise UserError(
            f"{platform.node()} has another {name} than the machine where the run was started "
            f"({found[:10]}, not {wanted[:10]})"
        )


@dataclass(frozen=True)
class Order:
    """The instructions for a worker.

    Attributes:
        model: the model to load.
        device: the model's device, with ``auto`` resolved.
        precision: the model's precision, with ``auto`` resolved.
        batch_size: queries per batch; None for what the model suggests.
        versions: package -> version where the run was started.
        root: folder of the images, which the worker's machine must have; None if images are sent.
    """

    model: Named
    device: str
    precision: str
    batch_size: int | None
    versions: Mapping[str, str]
    root: Path | None

    def check(self) -> None:
        """Raises UserError if this machine can't give the same answers as the one where the run was started."""
        check_versions(self.versions)
        if self.root is not None and not is_folder(self.root):
            raise UserError(
                f"{platform.node()} has no folder {self.root}, where the images are: every node needs it under "
                "the same path, or --ship-images sends them"
            )


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises UserError if this machine has other versions of the packages that answers depend on."""
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
    """The host and process of a worker."""

    host: str
    process: int

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}"


@dataclass(frozen=True)
class Answers:
    """What a worker returns for requests.

    Attributes:
        results: for each request in order, its answer, or why there is none.
        seconds: the model's timings since it was loaded.
        batches: how many queries each batch had.
        seen: image -> digest of its content, for images that the worker has read or was sent a digest of.
        warnings: warnings that were logged during the call.
        place: the worker that has answered.
    """

    results: Sequence[Prediction | Failure]
    seconds: Mapping[str, float]
    batches: Sequence[int]
    seen: Mapping[str, str]
    warnings: Sequence[str]
    place: Place


@dataclass
class _Loaded:
    """A loaded model.

    Attributes:
        busy: held while the model answers.
        reading: held while a batch is read, since models expect only one thread that reads.
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
    """Answers requests. The first call loads the model, so a worker that was restarted loads it again.

    Args:
        order: its instructions.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._ready: _Loaded | None = None

    def place(self) -> Place:
        """The host and process of this worker."""
        return here()

    def ready(self) -> None:
        """Loads the model. Raises UserError, CheckpointError if it can't be loaded or its answers would differ."""
        self._loaded()

    def size(self, request: Request, images: Images) -> int:
        """Queries per batch for requests like this one."""
        loaded, prompt = self._loaded(), request.prompts[0]
        return loaded.runner.size(prompt, loaded.length(prompt, images), request.task)

    def do(self, requests: Sequence[Request], images: Images) -> Answers:
        """Answers requests of one task.

        Args:
            requests: the requests.
            images: the images of all of them.
        """
        loaded, task = self._loaded(), requests[0].task
        requests = [replace(request, images=images) for request in requests]
        results: dict[int, Prediction | Failure] = {}
        number = {request.slot: i for i, request in enumerate(requests)}
        sizes: list[int] = []
        batches = in_batches([(one, one) for one in requests], partial(loaded.runner.size, task=task), loaded.length)
        with listening() as warnings, closing(prefetched(partial(loaded.read, task), batches)) as reading:
            first = next(reading)  # read while another call's requests are being answered
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
    """Device and precision of a model on a machine of the cluster that has room for a worker.

    Raises:
        UserError: that machine has no such device or precision, or has other versions.
    """
    crew = ActorCrew[None, tuple[str, str]](_Resolver, (named, device, precision, versions()), replace(room, workers=1),
                                            lambda _: ())  # fmt: skip
    with closing(crew):
        found: tuple[str, str] = crew.first("do")
        return found


class _Resolver:
    """Finds out what ``auto`` stands for on the machine that it runs on."""

    def __init__(self, what: tuple[Named, str, str, Mapping[str, str]]) -> None:
        self._what = what

    def do(self) -> tuple[str, str]:
        named, device, precision, wanted = self._what
        check_versions(wanted)
        return named.source().resolve(device, precision)


def here() -> Place:
    """The host and process that this code runs in."""
    return Place(platform.node(), os.getpid())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collects this package's warnings, since nobody reads a worker's output."""
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
