"""The executor protocol: executors answer a run's requests, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelSource
from flamingo_eval.core.run_settings import Process, RunSpec
from flamingo_eval.core.schema import typed
from flamingo_eval.engine.requests import Pending
from flamingo_eval.engine.retrieval import Retriever
from flamingo_eval.storage.journal import Failure, Journal
from flamingo_eval.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Terms:
    """How requests are to be answered.

    Attributes:
        device: the model's device, with ``auto`` resolved.
        precision: the model's precision, with ``auto`` resolved.
        batch_size: requests per batch; None for what the model suggests.
        extra: fields added to every line of the journal.
        report: called with the usage of a server's model when answering ends, also after an error.
    """

    device: str
    precision: str
    batch_size: int | None
    extra: Mapping[str, str]
    report: Callable[[Mapping[str, float]], None] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """The result of answering.

    Attributes:
        failures: the requests that can't be answered.
        seconds: the time for ``answering``, and the model's timings.
        batches: benchmark and shots -> queries of a batch -> how many such batches; empty if not known.
        workers: worker of a cluster -> how many requests it handled.
    """

    failures: Sequence[Failure]
    seconds: Mapping[str, float]
    batches: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)


class Alone(Protocol):
    """Sections of code that only one of a run's processes may be in at a time."""

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Waits until no other process is in the section with this name."""


class Executor(Protocol):
    """Answers a run's requests (``EXECUTOR`` is the class; it is constructed with the run's :class:`Process`).

    It gets requests as :class:`Pending`: cheap handles, whose ``request`` has everything needed and can be pickled.
    """

    process: Process

    @property
    def leads(self) -> bool:
        """Whether this process shows messages and progress, scores, and reports."""

    @property
    def sole(self) -> bool:
        """Whether no other process may work in the run folder."""

    def hold(self, folder: RunFolder) -> AbstractContextManager[Alone]:
        """Locks the run folder, alone or with the run's other processes. Raises UserError if it is in use."""

    def journal(self, folder: RunFolder) -> Journal:
        """The journal that this process's answers go to."""

    def run(self, requests: Sequence[Pending], model_source: ModelSource, journal: Journal, terms: Terms) -> Outcome:
        """Answers all requests, and writes each answer to the journal before it asks many more.

        Raises:
            CheckpointError: the model can't be loaded.
            StorageError: answers can't be written.
        """


@runtime_checkable
class Distributed(Protocol):
    """An executor whose models run on other machines; it connects to them before a run is prepared."""

    def connect(self, spec: RunSpec) -> None:
        """Connects to the machines. Raises UserError."""

    def resolve(self, source: ModelSource) -> tuple[str, str]:
        """Device and precision of a model on those machines. Raises UserError."""

    def retriever(self, retriever: Retriever, images: Images) -> Retriever:
        """The same retriever, with features computed on those machines."""

    def close(self) -> None:
        """Disconnects from the machines."""


def make_executor(name: str | None, process: Process) -> Executor:
    """The executor of that name, for one process of a run.

    Args:
        name: name of the executor; None for ``local``, or for ``processes`` if the run has several processes.
        process: which process this is.

    Raises:
        UserError: there is no executor of that name, it lacks a part of the protocol, or it works only in one process
            and the run has several.
    """
    name = name or ("local" if process.count == 1 else "processes")
    executor = registry.executor(name)(process)
    lacking = [one for one in ("process", "leads", "sole", "hold", "journal", "run") if not hasattr(executor, one)]
    if lacking:
        raise UserError(f"the executor {name} has no {', '.join(lacking)} (flamingo_eval.engine.executor.Executor)")
    if process.count > 1 and executor.sole:
        raise UserError(
            f"--executor {name} works in one process alone, and this is one of {process.count}: leave it out, or say "
            "--process 0/1"
        )
    return cast(Executor, executor)


def checked(outcome: Any, requests: Sequence[Pending], journal: Journal, executor: Executor) -> Outcome:
    """Checks an executor's outcome against the requests that it was given; returns it with corrected failures.

    A failure is dropped if its request has been answered meanwhile. An answer with the key of another request becomes a
    failure.

    Raises:
        UserError: it is not a valid outcome, or has failures of other requests; the message names the executor.
    """
    name, asked = type(executor).__name__, {item.slot: item for item in requests}
    problem = _problem(outcome)
    if problem:
        raise UserError(f"the executor {name} gave back {problem}")
    strange = [failure for failure in outcome.failures if failure.slot not in asked]
    if strange:
        raise UserError(f"the executor {name} reports what it was not asked: {repr(strange[0])[:200]}")
    journal.refresh()
    failures = [one for one in outcome.failures if not asked[one.slot].answered_by(journal.get(one.slot))]
    for slot, item in asked.items():
        known = journal.get(slot)
        if known is not None and known.key != item.key:
            failures.append(
                Failure(slot, f"the executor {name} brought an answer to another request for query {slot[3]}")
            )
    journal.withdraw(failure.slot for failure in failures)
    return replace(cast(Outcome, outcome), failures=failures)


def _problem(outcome: Any) -> str | None:
    if not isinstance(outcome, Outcome):
        return f"{repr(outcome)[:60]}, which is no Outcome"
    if not isinstance(outcome.failures, Sequence) or not all(map(_is_failure, outcome.failures)):
        return f"failures that are none: {repr(outcome.failures)[:200]}"
    seconds = outcome.seconds
    if not isinstance(seconds, Mapping) or not all(isinstance(value, int | float) for value in seconds.values()):
        return f"seconds that are none: {repr(seconds)[:200]}"
    try:
        typed(outcome.batches, dict[str, dict[str, int]], "batches")
    except UserError:
        return f"batches that are none: {repr(outcome.batches)[:200]}"
    return None


def _is_failure(one: Any) -> bool:
    return isinstance(one, Failure) and isinstance(one.slot, tuple) and isinstance(one.reason, str)
