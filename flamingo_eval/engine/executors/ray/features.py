"""Image features for retrieval, computed by workers; only this process adds them to the store."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.images import Images
from flamingo_eval.core.progress import note
from flamingo_eval.core.protocols import EncoderSource, ImageEncoder, ModelInfo, Retrieval
from flamingo_eval.core.workers import WORKERS, bound_spinning
from flamingo_eval.engine.executors.ray.cluster import ActorCrew, Room
from flamingo_eval.engine.executors.ray.driving import Drive
from flamingo_eval.engine.executors.ray.shipping import Packing
from flamingo_eval.engine.executors.ray.worker import Place, check_versions, here, same_digest
from flamingo_eval.engine.identity import versions
from flamingo_eval.engine.retrieval import BATCH, Encoded, encoded, prepared_image

Item = tuple[str, str]
"""Key of an image in the store, and its path."""


@dataclass(frozen=True)
class FeatureOrder:
    """The instructions for a worker.

    Attributes:
        encoder: name of the image encoder.
        options: the encoder's settings.
        digest: the digest that the encoder must have there too.
        rgb: convert images to RGB before the transform.
        device: the encoder's device; the worker resolves ``auto``.
        versions: package -> version where the run was started.
    """

    encoder: str
    options: Mapping[str, Any]
    digest: str
    rgb: bool
    device: str
    versions: Mapping[str, str]


class FeatureWorker:
    """Encodes images.

    Args:
        order: its instructions.
    """

    def __init__(self, order: FeatureOrder) -> None:
        self._order, self._lock, self._busy = order, threading.Lock(), threading.Lock()
        self._encoder: ImageEncoder | None = None

    def place(self) -> Place:
        """The host and process of this worker."""
        return here()

    def ready(self) -> None:
        """Loads the encoder. Raises UserError, CheckpointError."""
        self._loaded()

    def do(self, items: Sequence[Item], images: Images) -> Encoded:
        """Encodes images."""
        encoder = self._loaded()
        with ThreadPoolExecutor(WORKERS) as pool:
            prepare = partial(prepared_image, encoder, self._order.rgb, images)
            prepared = list(pool.map(prepare, [at for _, at in items]))
        with self._busy:
            return encoded(encoder, [key for key, _ in items], prepared)

    def _loaded(self) -> ImageEncoder:
        from flamingo_eval.devices import pick_device

        with self._lock:
            if self._encoder is None:
                bound_spinning()
                check_versions(self._order.versions)
                source = registry.image_encoder(self._order.encoder, self._order.options)
                same_digest(self._order.encoder, source.info().digest, self._order.digest)
                self._encoder = source.load(pick_device(self._order.device))
            return self._encoder


class RaySource:
    """An image encoder whose features are computed by workers.

    Args:
        source: the encoder.
        rules: the retrieval rules, with the encoder's name and settings.
        device: the encoder's device on a worker.
        room: the number of workers, and what each uses.
        packing: packs the images for a worker.
    """

    def __init__(self, source: EncoderSource, rules: Retrieval, device: str, room: Room, packing: Packing) -> None:
        self._source, self._rules, self._device, self._room, self._packing = source, rules, device, room, packing

    def info(self) -> ModelInfo:
        """The encoder's name and digest."""
        return self._source.info()

    def load(self, device: str) -> ImageEncoder:
        """Loads the encoder in this process."""
        return self._source.load(device)

    def embed(self, wanted: Mapping[str, str], rgb: bool) -> Iterator[Encoded]:
        """See :class:`flamingo_eval.engine.retrieval.Embeds`."""
        order = FeatureOrder(
            encoder=self._rules.encoder,
            options=self._rules.options,
            digest=self.info().digest,
            rgb=rgb,
            device=self._device,
            versions=versions(),
        )
        crew = ActorCrew[Item, Encoded](FeatureWorker, order, self._room, self._pack)
        with closing(crew):
            for done in Drive[Item, Encoded](crew, _batches(wanted), note).run():
                for part in done:
                    lost = dict.fromkeys((key for key, _ in part.items), part.reason)
                    yield Encoded([], None, lost) if part.result is None else part.result

    def _pack(self, items: Sequence[Item]) -> tuple[Sequence[Item], Images]:
        return items, self._packing.some([image for _, image in items])


def _batches(wanted: Mapping[str, str]) -> Iterator[list[Item]]:
    items = iter(wanted.items())
    while some := list(islice(items, BATCH)):
        yield some
