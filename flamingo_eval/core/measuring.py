"""What ``bench`` asks of a model that can say what its arithmetic amounts to; optional for models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flamingo_eval.core.records import Task


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
