"""What models and their sources may tell of themselves besides: arithmetic, lengths and tokens of prompts, requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Prompt, Task


@dataclass(frozen=True)
class Work:
    """What a batch needs, and what the machine could do.

    Attributes:
        flops: section -> floating-point operations of the batch (of one image for ``vision``).
        peak: floating-point operations per second of a large matrix product on this machine.
        memory: bytes used at most so far.
    """

    flops: Mapping[str, float]
    peak: float
    memory: int


@runtime_checkable
class Measurable(Protocol):
    """A model that can say what its arithmetic amounts to."""

    @property
    def encoded(self) -> int:
        """How many images it has encoded so far."""

    def work(self, prepared: Sequence[Any], task: Task) -> Work:
        """Counted by carrying a batch out."""


class TokenCounter(Protocol):
    """Counts the tokens of prompts without a model's weights: what a source's ``token_counter()`` gives."""

    def count(self, prompt: Prompt, images: Images) -> int:
        """Tokens of a prompt, its images' among them. Raises QueryError if an image can't be read."""

    def limit(self, task: Task) -> int | None:
        """How many a prompt may have, so that its answer fits behind it; None for any number."""


@runtime_checkable
class MeasuresPrompts(Protocol):
    """A model that knows how long a prompt is, in whatever makes batches of like length."""

    def length(self, prompt: Prompt, images: Images) -> int:
        """Its length; raises nothing."""


@runtime_checkable
class Concurrent(Protocol):
    """A model that is asked single prompts, by several threads at once: one that waits for a server, say."""

    @property
    def concurrency(self) -> int:
        """Prompts at once, at most."""


@dataclass(frozen=True)
class Expected:
    """Queries of one benchmark and one number of shots that will be asked.

    Attributes:
        task: what is asked.
        prompts: of the first query, in all its orders; the others are like it.
        images: where its images are.
        count: how many queries.
    """

    task: Task
    prompts: Sequence[Prompt]
    images: Images
    count: int


@runtime_checkable
class SendsRequests(Protocol):
    """A model that sends requests to a server, which may cost something."""

    def expect(self, expected: Iterable[Expected]) -> str:
        """Told what will be asked before anything is; what that will take, for the user.

        Raises UserError if it is more than the user allows.
        """

    def usage(self) -> Mapping[str, float]:
        """What it has taken so far: ``requests``, ``retries``, ``prompt tokens``, ``completion tokens``, ``cost``."""


@runtime_checkable
class Asking(Protocol):
    """A model's source that has to look before it knows what it can be asked."""

    def find_out(self, tasks: Sequence[Task]) -> None:
        """Finds out whether it can do these tasks. Raises UserError for what it can't, and says why."""
