"""Queries in batches of similar length."""

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
    """Consecutive queries of one benchmark and one number of shots, with their task."""
    for _, items in groupby(pending, key=lambda item: item.trial.key[:2]):
        kind = list(items)
        yield kind[0].trial.source.task, kind


WINDOW = 32
"""Number of batches whose queries are sorted by length together, so that there is little padding."""


Length = Callable[[Prompt, Images], int]
"""Length of a prompt, in the unit by which batches are made."""


def measure_of(model: Model) -> Length:
    """The model's own measure, such as tokens, if it has one; else characters."""
    return model.length if isinstance(model, MeasuresPrompts) else lambda prompt, _: prompt.length


def batches_of(
    pending: Sequence[Pending], size_of: Callable[[Prompt, int], int], length_of: Length
) -> Iterator[list[tuple[Pending, Request]]]:
    """Batches of queries of similar length, with their requests; among ``WINDOW`` batches, the longest come first.

    Args:
        pending: the queries.
        size_of: how many queries make a batch whose longest prompt is this one, of this length.
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
    """Like :func:`batches_of`, for requests that are already built, each paired with any object."""
    lengths = {id(request): length_of(request.prompts[0], request.images) for _, request in some}
    left = sorted(some, key=lambda pair: -lengths[id(pair[1])])
    while left:
        longest = left[0][1]
        size = size_of(longest.prompts[0], lengths[id(longest)])
        yield left[:size]
        left = left[size:]
