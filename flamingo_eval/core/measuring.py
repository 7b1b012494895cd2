"""Optional protocols of models and their sources: arithmetic, lengths and tokens of prompts, requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Prompt, Task


@dataclass(frozen=True)
class Work:
    """The operations that a batch needs, the machine's peak rate, and the memory used.

    Attributes:
        flops: section -> floating-point operations of the batch (of one image for ``vision``).
        peak: floating-point operations per second of a large matrix product on this machine.
        memory: peak use of memory so far, in bytes.
    """

    flops: Mapping[str, float]
    peak: float
    memory: int


@runtime_checkable
class Measurable(Protocol):
    """A model that can count its floating-point operations."""

    @property
    def encoded(self) -> int:
        """How many images it has encoded so far."""

    def work(self, prepared: Sequence[Any], task: Task) -> Work:
        """Counts the work of a batch by running it."""


class TokenCounter(Protocol):
    """Counts the tokens of prompts without a model's weights; a source's ``token_counter()`` returns it."""

    def count(self, prompt: Prompt, images: Images) -> int:
        """Number of tokens of a prompt, including its images' tokens. Raises QueryError if an image can't be read."""

    def limit(self, task: Task) -> int | None:
        """Largest number of tokens of a prompt, so that its answer still fits; None for no limit."""


@runtime_checkable
class MeasuresPrompts(Protocol):
    """A model that can measure the length of a prompt, in any unit that serves to batch prompts of similar length."""

    def length(self, prompt: Prompt, images: Images) -> int:
        """Length of a prompt. Never raises an error."""


@runtime_checkable
class Concurrent(Protocol):
    """A model that answers single prompts, from several threads at once, such as one that waits for a server."""

    @property
    def concurrency(self) -> int:
        """Largest number of prompts at once."""


@dataclass(frozen=True)
class Expected:
    """Queries that will be asked, of one benchmark at one number of shots.

    Attributes:
        task: what is asked.
        prompts: the first query's prompt in all its orders; the other queries are similar.
        images: where their images are.
        count: number of queries.
    """

    task: Task
    prompts: Sequence[Prompt]
    images: Images
    count: int


@runtime_checkable
class SendsRequests(Protocol):
    """A model that sends requests to a server, which may cost money."""

    def expect(self, expected: Iterable[Expected]) -> str:
        """Called with all queries before any is asked. Returns an estimate of what they will take, for the user.

        Raises UserError if it is more than the user allows.
        """

    def usage(self) -> Mapping[str, float]:
        """What has been used so far: ``requests``, ``retries``, ``prompt tokens``, ``completion tokens``, ``cost``."""


@runtime_checkable
class Asking(Protocol):
    """A model's source that must find out first what the model can be asked, for example from a server."""

    def find_out(self, tasks: Sequence[Task]) -> None:
        """Finds out whether the model can do these tasks. Raises UserError, with the reason, if it can't."""
