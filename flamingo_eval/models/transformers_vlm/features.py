"""Image features for the language model: computed once, cached in memory up to a budget, and on the disk.

The vision tower's result is passed to the model in place of pixels (transformers, ``mm_encoder_outputs``). This module
splits a result into the parts of each image, and joins the parts again for the images of a batch.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flamingo_eval.core.errors import CheckpointError, StorageError
from flamingo_eval.core.progress import warn
from flamingo_eval.models.transformers_vlm.foreign import Arguments
from flamingo_eval.models.transformers_vlm.reading import ImageText, ProcessedImage
from flamingo_eval.storage.blobs import BlobStore

_FIELDS = ("pooler_output", "deepstack_features")
"""The fields of a vision tower's result that models read (transformers, ``modeling_*.py``)."""

_SAVED_AT_ONCE = 32


@dataclass(frozen=True)
class Features:
    """The features of an image, as the language model gets them.

    Attributes:
        text: what the text half of the processor needs to know about the image.
        tensors: this image's part of each field of the vision tower's result, and of each layer of the field.
    """

    text: ImageText
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to_bytes(self) -> bytes:
        """Returns the features in the safetensors format."""
        about = {"replacement": self.text.replacement, "rows": json.dumps(dict(self.text.rows))}
        small = {f"about.{name}": tensor.contiguous() for name, tensor in self.text.about.items()}
        return save({**small, **{f"part.{i}": t.contiguous() for i, t in enumerate(self.tensors)}}, about)

    @staticmethod
    def from_bytes(content: bytes) -> Features:
        """Reads what :meth:`to_bytes` has written. Raises SafetensorError, KeyError, ValueError."""
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load(content)
        parts = sorted((int(name[5:]), tensor) for name, tensor in tensors.items() if name.startswith("part."))
        small = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("about.")}
        text = ImageText(about["replacement"], small, json.loads(about["rows"]))
        return Features(text, tuple(tensor for _, tensor in sorted(parts, key=lambda pair: pair[0])))


@dataclass(frozen=True)
class Layout:
    """The structure of a vision tower's result.

    Attributes:
        kind: its class.
        layers: for each field, its number of layers; None for a field without layers.
        lists: for each field, whether the parts of images are in a list; else they are one tensor.
    """

    kind: type[Any]
    layers: Mapping[str, int | None]
    lists: Mapping[str, bool]

    @staticmethod
    def of(result: Any) -> Layout:
        """The layout of a result. Raises CheckpointError for an unknown structure."""
        layers, lists = dict[str, int | None](), dict[str, bool]()
        for name in _FIELDS:
            value = getattr(result, name, None)
            if value is None:
                continue
            if name == "deepstack_features":
                first = value[0]
                layers[name], lists[name] = len(value), not isinstance(first, Tensor)
                known = isinstance(first, Tensor) or all(isinstance(one, Tensor) for one in first)
            else:
                layers[name], lists[name] = None, not isinstance(value, Tensor)
                known = isinstance(value, Tensor) or all(isinstance(one, Tensor) for one in value)
            if not known:
                raise CheckpointError(f"{type(result).__name__}.{name} is made up in a way that is not known")
        if "pooler_output" not in layers:
            raise CheckpointError(f"{type(result).__name__} has no pooler_output")
        return Layout(type(result), layers, lists)

    def split(self, result: Any, images: int) -> list[tuple[Tensor, ...]]:
        """Splits a result for images of one shape into the parts of each image."""
        columns = []
        for name, layers in self.layers.items():
            value = getattr(result, name)
            for one in [value] if layers is None else value:
                columns.append(_chunks(one, images))
        # copies, since a view would keep the full batch in memory
        return [tuple(part.detach().cpu().clone() for part in row) for row in zip(*columns, strict=True)]

    def join(self, images: Sequence[Features], place: Callable[[Tensor], Tensor]) -> Any:
        """Joins the parts of several images into a result, in order.

        Args:
            images: the images.
            place: puts a tensor onto the device, in the right type.
        """
        columns = iter([*zip(*(image.tensors for image in images), strict=True)])
        fields: Arguments = {}
        for name, layers in self.layers.items():
            joined = [self._joined(name, next(columns), place) for _ in range(1 if layers is None else layers)]
            fields[name] = joined[0] if layers is None else joined
        return self.kind(**fields)

    def _joined(self, name: str, parts: Sequence[Tensor], place: Callable[[Tensor], Tensor]) -> Any:
        joined = place(torch.cat([*parts]))
        return [*joined.split([len(part) for part in parts])] if self.lists[name] else joined


def _chunks(value: Any, images: int) -> list[Tensor]:
    """A tensor, or a list of tensors, as one tensor per image. Raises CheckpointError if it can't be split equally."""
    if len(value) % images:
        raise CheckpointError(f"a vision tower gave {len(value)} parts of {images} images")
    each = len(value) // images
    if isinstance(value, Tensor):
        return [*value.split(each)]
    return [torch.cat([*value[i : i + each]]) for i in range(0, len(value), each)]


class FeatureCache:
    """A cache of features by key.

    Args:
        budget: bytes in memory; the least recently used features are dropped.
        disk: where all features are kept; None to keep them in memory only.
    """

    def __init__(self, budget: int, disk: BlobStore | None) -> None:
        self._budget, self._disk = budget, disk
        self._known: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1)
        self._writing: list[Future[None]] = []

    def get(self, key: str) -> Features | None:
        """From memory, else from the disk; None if missing or damaged."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        disk = self._disk
        content = None if disk is None else disk.read(key)
        if content is None:
            return None
        try:
            found = Features.from_bytes(content)
        except (SafetensorError, KeyError, ValueError):
            return None
        self._remember(key, found)
        return found

    def keep(self, made: Iterable[tuple[str, Features]]) -> None:
        """Caches features and writes them in a thread; waits if many are not written yet, to bound memory."""
        for key, features in made:
            self._remember(key, features)
            if self._disk is not None:
                self._writing = [one for one in self._writing if not one.done()]
                if len(self._writing) >= _SAVED_AT_ONCE:
                    self._writing[0].result()
                self._writing.append(self._writer.submit(self._write, self._disk, key, features))

    def _write(self, disk: BlobStore, key: str, features: Features) -> None:
        if self._disk is None:
            return
        try:
            disk.write(key, features.to_bytes())
        except StorageError as error:  # the files only save time
            warn(f"encoded images are not kept on the disk any more: {error}")
            self._disk = None

    def _remember(self, key: str, features: Features) -> None:
        with self._lock:
            if key not in self._known:
                self._known[key] = features
                self._bytes += features.nbytes
            while self._bytes > self._budget and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Writes what is not written yet, and releases the memory."""
        self._writer.shutdown()
        with self._lock:
            self._known.clear()
            self._bytes = 0


def same_shape(images: Sequence[ProcessedImage]) -> list[list[int]]:
    """Groups indices of images whose pixels have the same shapes, and whose small tensors are equal."""
    groups: dict[object, list[int]] = {}
    for number, image in enumerate(images):
        shapes = tuple((name, tuple(t.shape)) for name, t in sorted(image.pixels.items()))
        about = tuple((name, tuple(t.flatten().tolist())) for name, t in sorted(image.text.about.items()))
        groups.setdefault((shapes, about), []).append(number)
    return [*groups.values()]
