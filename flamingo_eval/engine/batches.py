"""Queries in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from flamingo_eval.core.images import Images
from flamingo_eval.core.measuring import MeasuresPrompts
from flamingo_eval.core.protocols import Model
from flamingo_eval.core.records import Prompt, Task
from flamingo_eval.engine.requests import Pending, Request

T = TypeVar("T")


def kinds(pending: Sequence[Pending]) -> Iterator[tuple[Task, list[Pending]]]:
    """Runs of queries of one benchmark and one number of shots."""
    for _, items in groupby(pending, key=lambda item: item.trial.key[:2]):
        kind = list(items)
        yield kind[0].trial.source.task, kind


WINDOW = 32
"""Batches whose queries are put in order of length, so that there is little padding."""


Length = Callable[[Prompt, Images], int]
"""How long a prompt is, in whatever makes batches of like length."""


def measure_of(model: Model) -> Length:
    """The model's own measure, such as tokens, if it has one; else characters."""
    return model.length if isinstance(model, MeasuresPrompts) else lambda prompt, _: prompt.length


def batches_of(
    pending: Sequence[Pending], size_of: Callable[[Prompt, int], int], length_of: Length
) -> Iterator[list[tuple[Pending, Request]]]:
    """Batches of queries of like length, longest first, with their prompts.

    Args:
        pending: the queries.
        size_of: how many make a batch whose longest prompt is this one, and so long.
        length_of: how long a prompt is.
    """
    start = 0
    while start < len(pending):
        first, images = pending[start].query.prompt, pending[start].trial.source.images
        window = WINDOW * size_of(first, length_of(first, images))
        yield from in_batches([(item, item.request) for item in pending[start : start + window]], size_of, length_of)
        start += window


def in_batches(
    some: Sequence[tuple[T, Request]], size_of: Callable[[Prompt, int], int], length_of: Length
) -> Iterator[list[tuple[T, Request]]]:
    """The same of requests that are there already, each with whatever it is for."""
    lengths = {id(request): length_of(request.prompts[0], request.images) for _, request in some}
    left = sorted(some, key=lambda pair: -lengths[id(pair[1])])
    while left:
        longest = left[0][1]
        size = size_of(longest.prompts[0], lengths[id(longest)])
        yield left[:size]
        left = left[size:]
