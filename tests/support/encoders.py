"""An image encoder that counts what it is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelInfo
from flamingo_eval.core.source import Source
from flamingo_eval.models.scripted import ThumbnailEncoder, ThumbnailSource


class CountingSource(ThumbnailSource):
    """Thumbnails, with a count of how often each file was read and each batch encoded."""

    def __init__(self, digest: str = "counting") -> None:
        self.reads: Counter[str] = Counter()
        self.encoded = self.loads = 0
        self.digest = digest

    def info(self) -> ModelInfo:
        return ModelInfo("counting", self.digest, {})

    def load(self, device: str) -> ThumbnailEncoder:
        outer = self
        self.loads += 1

        class Encoder(ThumbnailEncoder):
            def prepare(self, image: str, rgb: bool, images: Images) -> NDArray[np.float32]:
                outer.reads[image] += 1
                return super().prepare(image, rgb, images)

            def encode(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
                outer.encoded += len(prepared)
                return super().encode(prepared)

        return Encoder()


def images_of(source: Source) -> list[str]:
    return [example.image for example in (*source.data.train, *source.data.test)]
