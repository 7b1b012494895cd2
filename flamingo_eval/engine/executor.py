"""The executor port: who answers a run's requests, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from flamingo_eval.engine.folder import RunFolder
from flamingo_eval.engine.journal import Failure, Journal
from flamingo_eval.engine.requests import Pending
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


class Executor(Protocol):
    """Who answers a run's requests (``EXECUTOR`` is the class; it is made with the run's :class:`Process`).

    Its requests are :class:`Pending`: cheap handles, whose ``request`` holds all that is needed and can be pickled.
    """

    process: Process

    @property
    def leads(self) -> bool:
        """Whether this process tells people what goes on, scores and reports."""

    @property
    def alone(self) -> bool:
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
