"""Latents of images: each distinct image is read, transformed and encoded once.

Latents are kept in memory up to a budget, and all of them on disk. Their key is the image's content and everything
else that determines them. The disk has the latents that did not fit into memory, and later runs of the same checkpoint
reuse them.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import QueryError, StorageError
from flamingo_eval.core.images import Images
from flamingo_eval.core.progress import warn
from flamingo_eval.core.workers import WORKERS
from flamingo_eval.models.flamingo.vision import Transform, read_image
from flamingo_eval.storage.vectors import FeatureStore

ENCODED_AT_ONCE = 32
"""Images in one pass of vision tower and resampler; bounds memory."""

SAVED_AT_ONCE = 256
"""Images whose latents are written to disk together, while others are being encoded; a kill loses about as many."""

SPARE_DISK = 2 << 30
"""Bytes left free on the disk: latents only save time, and must not take the space of a run's answers."""


@dataclass(frozen=True)
class StoredImage:
    """An image that a prompt shows.

    Attributes:
        key: digest of its content, and how it is read.
        image: its path among ``images``.
        rgb: whether it is converted to RGB before the transform.
        images: where it is read from; None for an image in memory.
    """

    key: str
    image: str
    rgb: bool
    images: Images | None = None


class LatentStore:
    """Reads and encodes images, and keeps their latents.

    Args:
        transform: the vision model's.
        encode: pixels (images, 3, height, width), on the CPU -> latents (images, n_latents, width), on any device.
        like: a tensor with the shape, (n_latents, width), and the type of one image's latents.
        budget: bytes of latents kept in memory.
        disk: store on disk for all latents; None to keep them in memory only.
    """

    def __init__(
        self,
        transform: Transform,
        encode: Callable[[Tensor], Tensor],
        like: Tensor,
        *,
        budget: int,
        disk: FeatureStore | None,
    ) -> None:
        self._transform, self._encode, self._budget, self._disk = transform, encode, budget, disk
        self._shape, self._dtype = like.shape, like.dtype
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._pixels: dict[str, Tensor] = {}
        self._encoding: set[str] = set()
        self._damaged: set[str] = set()
        self._unsaved: dict[str, Tensor] = {}
        self._being_saved: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._pool, self._writer = ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.encoded = 0
        """How many images were encoded."""

    def find(self, image: str | Path, rgb: bool, images: Images) -> StoredImage:
        """The image at a path among images. Raises QueryError if there is none."""
        return StoredImage(images.digest(str(image)) + ("-rgb" if rgb else ""), str(image), rgb, images)

    def adopt(self, image: Image.Image | str | Path) -> StoredImage:
        """Takes an image that is in memory, or at a path, as it is now. Raises QueryError if it can't be read."""
        if isinstance(image, Image.Image):
            try:
                image.load()
                pixels = self._transform(image)
            except Exception as error:  # Pillow's decoders raise errors of any type, and images may be lazy
                raise QueryError(f"an image can't be read: {str(error) or type(error).__name__}") from error
        else:  # with Images of its own: what an earlier call read from this path does not count
            pixels = read_image(Images(Path()), str(image), self._transform, rgb=False)
        key = "pixels-" + hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).hexdigest()
        with self._lock:
            self._pixels[key] = pixels  # there is no file to read it from again
        return StoredImage(key, "", rgb=False)

    def read(self, images: Sequence[StoredImage]) -> None:
        """Reads and transforms the images whose latents are not known, in threads; one thread may call it ahead.

        Raises:
            QueryError: an image can't be read.
        """
        with self._lock:
            missing = {p.key: p for p in images if p.key not in self._pixels and not self._has(p.key)}
        problems: list[QueryError] = []
        for key, read in zip(missing, self._pool.map(self._try, missing.values()), strict=True):
            if isinstance(read, QueryError):
                problems.append(read)
                continue
            with self._lock:
                if not self._has(key):  # else it was encoded meanwhile, for another prompt
                    self._pixels[key] = read
        if problems:
            raise problems[0]

    def drop(self, images: Sequence[StoredImage]) -> None:
        """Discards the pixels of images that were read and are not encoded yet."""
        with self._lock:
            for image in images:
                self._pixels.pop(image.key, None)

    def _try(self, image: StoredImage) -> Tensor | QueryError:
        try:
            return self.pixels(image)
        except QueryError as error:
            return error

    def close(self) -> None:
        """Writes unsaved latents to the disk, and frees everything."""
        self._save_soon()
        self._pool.shutdown(cancel_futures=True)
        self._writer.shutdown()
        with self._lock:
            self._known.clear()
            self._pixels.clear()
            self._bytes = 0

    def pixels(self, image: StoredImage) -> Tensor:
        """Reads the image again, as (3, height, width). Raises QueryError."""
        if image.images is None:
            raise QueryError("an image that was given in memory is not there any more")
        return read_image(image.images, image.image, self._transform, rgb=image.rgb)

    def latents(self, images: Sequence[StoredImage]) -> Tensor:
        """Latents (images, n_latents, width) of distinct images, on the CPU; unknown images are encoded together."""
        with self._lock:
            self._encoding = {p.key for p in images}
        try:
            found = self._found_or_encoded(images)
        finally:
            with self._lock:
                self._encoding = set()
        with self._lock:
            for key in found:  # read a second time meanwhile, and not needed
                self._pixels.pop(key, None)
        return torch.stack([found[p.key] for p in images])

    def _found_or_encoded(self, images: Sequence[StoredImage]) -> dict[str, Tensor]:
        """Latents by key. New latents are remembered at once, in case the rest does not fit into memory."""
        known = {p.key: self._recall(p.key) for p in images}
        found = {key: row for key, row in known.items() if row is not None}
        missing = [p for p in images if known[p.key] is None]
        self._remember(found)
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            part = missing[start : start + ENCODED_AT_ONCE]
            encoded = self._encode(torch.stack([self._take_pixels(p) for p in part])).to(self._dtype).cpu()
            self.encoded += len(part)
            # copies: a row of a batch would keep the full batch in memory
            fresh = {p.key: row.clone() for p, row in zip(part, encoded, strict=True)}
            found |= fresh
            self._remember(fresh)
            if self._disk is not None:
                self._unsaved |= fresh
                if len(self._unsaved) >= SAVED_AT_ONCE:
                    self._save_soon()
        return found

    def _recall(self, key: str) -> Tensor | None:
        """Latents from memory, else from the disk, where damaged ones count as missing."""
        with self._lock:
            for kept in (self._known, self._unsaved, self._being_saved):
                if key in kept:
                    return kept[key]
        disk = self._disk
        if disk is None or key not in disk or key in self._damaged:
            return None
        try:
            return torch.from_numpy(disk.read([key])).reshape(self._shape).to(self._dtype)
        except (KeyError, OSError, ValueError):  # damaged, or another process has emptied the cache
            self._damaged.add(key)
            return None

    def _remember(self, latents: Mapping[str, Tensor]) -> None:
        """Keeps latents in memory; over budget, the least recently used ones are dropped."""
        with self._lock:
            for key, row in latents.items():
                if key not in self._known:
                    self._known[key] = row
                    self._bytes += row.nbytes
                self._known.move_to_end(key)
            if self._bytes > self._budget:
                while self._bytes > 0.9 * self._budget and self._known:
                    self._bytes -= self._known.popitem(last=False)[1].nbytes

    def _save_soon(self) -> None:
        """Passes unsaved latents to the writing thread; waits while that is still busy, so that memory is bounded."""
        if self._writing is not None:
            self._writing.result()
        if self._disk is not None and self._unsaved:
            with self._lock:
                self._being_saved, self._unsaved = self._unsaved, {}
            self._writing = self._writer.submit(self._save, self._disk, self._being_saved)

    def _save(self, disk: FeatureStore, latents: Mapping[str, Tensor]) -> None:
        try:
            with disk.building():
                room = shutil.disk_usage(disk.folder).free - SPARE_DISK
                fresh = {key: row for key, row in latents.items() if key not in disk or key in self._damaged}
                if sum(4 * row.numel() for row in fresh.values()) > room:
                    raise StorageError(f"the disk of {disk.folder} has less than {SPARE_DISK >> 30} GiB to spare")
                if fresh:
                    rows = torch.stack([*fresh.values()]).flatten(1).float().numpy()
                    disk.append([*fresh], rows, {"latents": list(self._shape)})
                    self._damaged -= fresh.keys()
        except (StorageError, OSError) as error:  # latents on disk only save time
            warn(f"encoded images are not kept on the disk any more: {error}")
            self._disk = None
        finally:
            with self._lock:
                self._being_saved = {}

    def _has(self, key: str) -> bool:
        disk = self._disk
        known = any(key in kept for kept in (self._known, self._unsaved, self._being_saved, self._encoding))
        return known or (disk is not None and key in disk and key not in self._damaged)

    def _take_pixels(self, image: StoredImage) -> Tensor:
        with self._lock:
            pixels = self._pixels.pop(image.key, None)
        return self.pixels(image) if pixels is None else pixels
