"""Finds the training rows most similar to each query: exactly, for all queries at once, in bounded memory.

Similarities are computed in float32 on the device to find candidates, with a margin wider than float32's rounding.
Candidates are then compared in float64, so the order does not depend on the device or on how the work was divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamingo_eval.devices import memory_errors, numerics
from flamingo_eval.storage.vectors import Vectors

TRAIN_TILE, QUERY_TILE = 1 << 17, 512
"""Similarities in memory at once: at most this many training images by this many queries, 256 MiB."""


_SPARE = 16


_KEPT = 1 << 23
"""Candidates of all queries in memory at once, 96 MiB."""


_GATHERED = 1 << 23
"""Numbers of candidates' vectors in memory at once when they are compared in float64, 64 MiB."""


@dataclass(frozen=True)
class Pool:
    """The training images that are searched.

    Attributes:
        vectors: one per distinct image, (images, width), of length 1.
        rows: for each image, the numbers of the training rows that show it, ascending.
    """

    vectors: Vectors
    rows: Sequence[Sequence[int]]


def nearest_rows(
    pool: Pool, queries: Vectors, k: int, *, excluded: Sequence[int | None] | None = None, device: str = "cpu"
) -> list[list[int]]:
    """For each query, the k training rows of highest cosine similarity, most similar first; ties by lower row.

    Args:
        pool: the training images.
        queries: (queries, width), of length 1.
        k: rows wanted; fewer are returned if there are no more.
        excluded: for each query, the number of an image that must not be shown, or None.
        device: where similarities are computed.
    """
    excluded = excluded if excluded is not None else [None] * len(queries)
    found: list[list[int]] = [[] for _ in queries]
    todo, wanted = np.arange(len(queries)), k + 1 + _SPARE  # one more: it may be the excluded one
    margin = 4 * queries.shape[1] * 2.0**-24  # twice the worst rounding error of a float32 dot product, on both sides
    while len(todo):
        wanted = min(wanted, len(pool.vectors))
        complete = np.ones(len(todo), bool)
        for some in _tiles(len(todo), max(1, _KEPT // wanted)):
            numbers = todo[some]
            with numerics(device), memory_errors(f"the similarities of {len(numbers)} images do not fit on {device}"):
                values, images = _best(pool.vectors, queries[numbers], wanted, device)
            for part in _parts(len(numbers), wanted * queries.shape[1]):
                exact = _similarities(pool.vectors, queries[numbers[part]], images[part])
                for i in range(part.start, part.stop):
                    rows, last = _first_rows(pool.rows, exact[i - part.start], images[i], k, excluded[numbers[i]])
                    complete[some.start + i] = wanted == len(pool.vectors) or last > values[i, -1] + margin
                    found[numbers[i]] = rows
        todo, wanted = todo[~complete], 4 * wanted
    return found


def _first_rows(
    rows: Sequence[Sequence[int]], similarities: NDArray[np.float64], images: NDArray[np.int64], k: int,
    excluded: int | None,
) -> tuple[list[int], float]:  # fmt: skip
    """The first k rows of the candidates, and the similarity of the last of them; -inf if there are fewer."""
    order = np.argsort(-similarities, kind="stable")
    found: list[int] = []
    tied: list[int] = []
    level = np.inf
    for i in order.tolist():
        if similarities[i] < level:
            found += sorted(tied)
            if len(found) >= k:
                return found[:k], level
            tied, level = [], float(similarities[i])
        if images[i] != excluded:
            tied += rows[images[i]][:k]
    found += sorted(tied)
    return found[:k], level if len(found) >= k else -np.inf


def _similarities(vectors: Vectors, queries: Vectors, images: NDArray[np.int64]) -> NDArray[np.float64]:
    """Similarities in float64, each computed by itself: (queries, candidates). Equal vectors give equal numbers."""
    products: NDArray[np.float64] = vectors[images].astype(np.float64)
    products *= queries[:, None, :].astype(np.float64)
    total: NDArray[np.float64] = products.sum(axis=-1)
    return total


def _best(vectors: Vectors, queries: Vectors, count: int, device: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``count`` highest float32 similarities of each query, descending, and the numbers of their images."""
    best = torch.zeros((len(queries), 0))
    whose = torch.zeros((len(queries), 0), dtype=torch.int64)
    for tile in _tiles(len(vectors), TRAIN_TILE):
        some = torch.from_numpy(np.ascontiguousarray(vectors[tile])).to(device)
        values, numbers = [], []
        for part in _tiles(len(queries), QUERY_TILE):
            scores = torch.from_numpy(queries[part]).to(device) @ some.T
            top = scores.topk(min(count, scores.shape[1]), dim=1)
            values.append(top.values.cpu())
            numbers.append(top.indices.cpu() + tile.start)
        best, whose = _merge(best, whose, torch.cat(values), torch.cat(numbers), count)
    return best.numpy(), whose.numpy()


def _merge(best: Tensor, whose: Tensor, values: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merges the highest similarities of two tiles."""
    if not best.shape[1]:
        return values, numbers
    best, whose = torch.cat([best, values], dim=1), torch.cat([whose, numbers], dim=1)
    top = best.topk(min(count, best.shape[1]), dim=1)
    return top.values, whose.gather(1, top.indices)


def _tiles(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _parts(count: int, numbers_each: int) -> Iterator[slice]:
    return _tiles(count, max(1, _GATHERED // max(1, numbers_each)))
