"""The executor port: who answers a run's requests, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flamingo_eval import registry
from flamingo_eval.engine.folder import RunFolder
from flamingo_eval.engine.journal import Failure, Journal
from flamingo_eval.engine.requests import Pending
from flamingo_eval.errors import UserError
from flamingo_eval.ports import ModelSource
from flamingo_eval.runspec import Process


@dataclass(frozen=True)
class Terms:
    """How requests are to be answered.

    Attributes:
        device: where the model runs, resolved.
        precision: in which precision, resolved.
        batch_size: requests a batch; None for what the model suggests.
        extra: fields that every line of the journal has besides its own.
    """

    device: str
    precision: str
    batch_size: int | None
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of answering.

    Attributes:
        failures: the requests that can't be answered.
        seconds: ``answering``, and where the model's time has gone.
    """

    failures: Sequence[Failure]
    seconds: Mapping[str, float]


class Alone(Protocol):
    """Things that only one of a run's processes may do at a time."""

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Waits until no other process is within the same."""


@runtime_checkable
class Executor(Protocol):
    """Who answers a run's requests (``EXECUTOR`` is the class; it is made with the run's :class:`Process`).

    Its requests are :class:`Pending`: cheap handles, whose ``request`` holds all that is needed and can be pickled.
    """

    process: Process

    @property
    def leads(self) -> bool:
        """Whether this process tells people what goes on, scores and reports."""

    @property
    def sole(self) -> bool:
        """Whether no other process may be at work in the run's folder."""

    def hold(self, folder: RunFolder) -> AbstractContextManager[Alone]:
        """Holds the run's folder, alone or with the other processes of the run. Raises UserError if others do."""

    def journal(self, folder: RunFolder) -> Journal:
        """The journal that this process's answers go to."""

    def run(self, requests: Sequence[Pending], model_source: ModelSource, journal: Journal, terms: Terms) -> Outcome:
        """Answers all requests, and journals every answer before it asks for many more.

        Raises:
            CheckpointError: the model can't be loaded.
            StorageError: answers can't be kept.
        """


def make_executor(name: str | None, process: Process) -> Executor:
    """The executor of that name, for one process of a run.

    Args:
        name: None for ``local``, or for ``processes`` where there are several.
        process: which one this is.

    Raises:
        UserError: there is none of that name, it is no executor, or works in one process alone where there are several.
    """
    make = registry.executor(name or ("local" if process.count == 1 else "processes"))
    executor = make(process)
    if not isinstance(executor, Executor):
        raise UserError(f"the executor {name} is none: it lacks something of flamingo_eval.engine.executor.Executor")
    if process.count > 1 and executor.sole:
        raise UserError(
            f"--executor {name} works in one process alone, and this is one of {process.count}: leave it out, or say "
            "--process 0/1"
        )
    return executor


def check_outcome(outcome: Any, requests: Sequence[Pending], journal: Journal, executor: Executor) -> None:
    """Makes sure that what an executor reports and has journalled belongs to what it was asked.

    Raises:
        UserError: it does not; the message names the executor. Answers to other requests do not count.
    """
    name, asked = type(executor).__name__, {item.slot: item for item in requests}
    if not isinstance(outcome, Outcome):
        raise UserError(f"the executor {name} gave back {repr(outcome)[:60]}, which is no Outcome")
    strange = [failure for failure in outcome.failures if getattr(failure, "slot", None) not in asked]
    if strange:
        raise UserError(f"the executor {name} reports what it was not asked: {repr(strange[0])[:200]}")
    known = ((item, journal.get(slot)) for slot, item in asked.items())
    misplaced = [item for item, prediction in known if prediction is not None and prediction.key != item.key]
    if misplaced:
        journal.withdraw(item.slot for item in misplaced)
        raise UserError(
            f"the executor {name} journalled answers with keys of other requests, such as that of query "
            f"{misplaced[0].slot[3]}; they do not count"
        )
