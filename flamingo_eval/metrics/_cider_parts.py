"""What a caption's n-grams add to its CIDEr, for each n; pycocoevalcap returns only the sum.

Source: pycocoevalcap (cider/cider_scorer.py, ``compute_cider``): the same weights, clipping and length penalty, kept
apart by n. Scores still come from that package; a test checks that the sum of these parts equals them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

_N = 4
_SIGMA = 6.0

Gram = tuple[str, ...]


def _grams(caption: str) -> Counter[Gram]:
    words = caption.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, _N + 1) for i in range(len(words) - n + 1))


class DocumentFrequencies:
    """The number of images in whose references each n-gram occurs.

    Args:
        references: for each image, its tokenized references.
    """

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        self._counts: Counter[Gram] = Counter()
        self._images = 0
        for texts in references:
            self._images += 1
            self._counts.update({gram for text in texts for gram in _grams(text)})

    def parts(self, caption: str, references: Sequence[str]) -> list[float]:
        """What 1-grams, 2-grams, 3-grams and 4-grams add to a caption's CIDEr (not x 100); their sum is its score."""
        sums = [0.0] * _N
        own = self._vectors(caption)
        for reference in references:
            other = self._vectors(reference)
            penalty = math.exp(-((_bigrams(caption) - _bigrams(reference)) ** 2) / (2 * _SIGMA**2))
            for n in range(_N):
                dot = sum(
                    min(value, other[n].get(gram, 0.0)) * other[n].get(gram, 0.0) for gram, value in own[n].items()
                )
                norm = _norm(own[n]) * _norm(other[n])
                sums[n] += penalty * (dot / norm if norm else dot)
        return [10 * total / len(references) / _N for total in sums]

    def _vectors(self, caption: str) -> list[dict[Gram, float]]:
        """A weight for each n-gram, by n."""
        vectors: list[dict[Gram, float]] = [{} for _ in range(_N)]
        for gram, count in _grams(caption).items():
            rarity = math.log(self._images) - math.log(max(1.0, self._counts[gram]))
            vectors[len(gram) - 1][gram] = count * rarity
        return vectors


def _norm(vector: dict[Gram, float]) -> float:
    return math.sqrt(sum(value**2 for value in vector.values()))


def _bigrams(caption: str) -> int:
    return max(0, len(caption.split()) - 1)
