"""Images of prompts before the vision tower: read and processed ahead, in threads, up to a memory budget."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Prompt
from flamingo_eval.core.workers import WORKERS
from flamingo_eval.models.transformers_vlm.processor import opened_as_transformers_does
from flamingo_eval.models.transformers_vlm.reading import ImageText, ProcessedImage, Reader

_AHEAD = 2 << 30
"""Bytes of processed images that may wait; images beyond that are processed when they are needed."""


@dataclass(frozen=True)
class ShownImage:
    """An image of a prompt.

    Attributes:
        key: identifies its content (by digest), and how it is processed.
        path: its path among ``images``.
        variant: what determines how the images of its prompt are processed.
        images: where it is read from.
    """

    key: str
    path: str
    variant: str
    images: Images


def images_of(reader: Reader, prompt: Prompt, images: Images) -> tuple[ShownImage, ...]:
    """The images of a prompt, except withheld ones. Raises QueryError if one is missing."""
    paths = [path for path in prompt.images if path != WITHHELD]
    variant = reader.variant(len(paths))
    suffix = f"-{variant.replace(' ', '-')}" if variant else ""
    return tuple(ShownImage(images.digest(path) + suffix, path, variant, images) for path in paths)


def texts_of(reader: Reader, prompt: Prompt, images: Images) -> list[ImageText]:
    """What texts need to know about a prompt's images, from their sizes. Raises QueryError if one can't be read."""
    paths = [path for path in prompt.images if path != WITHHELD]
    variant = reader.variant(len(paths))
    return [reader.text_of_size(images.size(path), variant) for path in paths]


class Pixels:
    """Processed images that wait for the tower.

    Args:
        reader: the processor.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._waiting: dict[str, ProcessedImage] = {}
        self._bytes = 0
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor(WORKERS)

    def prefetch(self, images: Iterable[ShownImage]) -> None:
        """Processes images as far as the budget allows; :meth:`read` reports an image that can't be read."""
        for _ in self._pool.map(self._ahead, images):
            pass

    def _ahead(self, image: ShownImage) -> None:
        with self._lock:
            if image.key in self._waiting or self._bytes > _AHEAD:
                return
        with contextlib.suppress(QueryError):
            self.read(image)

    def read(self, image: ShownImage) -> None:
        """Processes an image unless it is waiting already, and keeps it if the budget allows. Raises QueryError."""
        with self._lock:
            if image.key in self._waiting:
                return
        self._put(image.key, self._made(image))

    def _made(self, image: ShownImage) -> ProcessedImage:
        return image.images.decode(
            image.path, lambda opened: self._reader.process(opened_as_transformers_does(opened), image.variant)
        )

    def _put(self, key: str, made: ProcessedImage) -> None:
        with self._lock:
            if key not in self._waiting and self._bytes <= _AHEAD:
                self._waiting[key] = made
                self._bytes += made.nbytes

    def take(self, image: ShownImage) -> ProcessedImage:
        """Returns a processed image, and no longer keeps it. Raises QueryError."""
        return self._pop(image.key) or self._made(image)

    def drop(self, images: Iterable[ShownImage]) -> None:
        """Drops images that are no longer needed."""
        for image in images:
            self._pop(image.key)

    def _pop(self, key: str) -> ProcessedImage | None:
        with self._lock:
            found = self._waiting.pop(key, None)
            self._bytes -= 0 if found is None else found.nbytes
            return found

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Ends the threads, and drops all images."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            self._waiting.clear()
            self._bytes = 0
