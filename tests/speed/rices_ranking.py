"""RICES ranking at COCO's size beside the bare matrix product: ``python tests/speed/rices_ranking.py``.

82,783 made-up feature vectors of width 768 against 5,000 queries at k = 32. Prints seconds of both, alternating, the
best of each, their ratio, and peak memory.
"""

from __future__ import annotations

import platform
import resource
import time

import numpy as np
import torch

from flamingo_eval.engine import nearest as ranking

TRAIN, QUERIES, WIDTH, K, ROUNDS = 82_783, 5_000, 768, 32, 3


def unit_vectors(count: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Random directions."""
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def bare_product(train: torch.Tensor, queries: torch.Tensor) -> None:
    """The same products in the same pieces, thrown away."""
    for part in queries.split(ranking.QUERY_TILE):
        part @ train.T


def main() -> None:
    """Measures and prints."""
    train, queries = unit_vectors(TRAIN, 1), unit_vectors(QUERIES, 2)
    pool = ranking.Pool(train, [[i] for i in range(TRAIN)])
    bare, ours = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        bare_product(torch.from_numpy(train), torch.from_numpy(queries))
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        ranking.nearest_rows(pool, queries, K)
        ours.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"matrix product {min(bare):.2f} s ({2e-9 * TRAIN * QUERIES * WIDTH / min(bare):.0f} GFLOP/s)")
    print(f"ranking        {min(ours):.2f} s, {min(ours) / min(bare):.2f} times as long; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
