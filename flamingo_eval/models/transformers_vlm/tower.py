"""The vision tower: processed images in, features out. Images of one shape are encoded together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.devices import is_out_of_memory, to_device
from flamingo_eval.models.transformers_vlm.features import Features, Layout, same_shape
from flamingo_eval.models.transformers_vlm.reading import ProcessedImage

_PIXELS_AT_ONCE = {"cpu": 1 << 20, "gpu": 64 << 20}
"""Values of images (three per pixel) that go through the tower together, by kind of device. On a CPU there are few, so
that what one layer writes is still in the CPU's cache when the next layer reads it."""


class Tower:
    """A model's vision tower, with the layers that connect it to the language model.

    Args:
        model: a model of transformers, on its device.

    Attributes:
        encoded: how many images were encoded.

    Raises:
        CheckpointError: the model does not return image features separately, or does not accept them as input.
    """

    def __init__(self, model: Any) -> None:
        features = getattr(model.base_model, "get_image_features", None)
        if features is None or "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            raise CheckpointError(f"{type(model).__name__} does not take image features in place of pixels")
        self._model, self._features = model, features
        self._takes = frozenset(inspect.signature(features).parameters)
        self._layout: Layout | None = None
        self.encoded = 0

    @property
    def layout(self) -> Layout:
        """The structure of its results; known once it has encoded something."""
        assert self._layout is not None
        return self._layout

    def run(self, images: Sequence[ProcessedImage]) -> Any:
        """The tower's result for images of one shape."""
        names = images[0].tensors.keys() & self._takes
        joined = {name: torch.cat([one.tensors[name] for one in images]) for name in names}
        return self._features(**{name: self._placed(tensor) for name, tensor in joined.items()}, return_dict=True)

    def _placed(self, tensor: Tensor) -> Tensor:
        placed = to_device(tensor, self._model.device)
        return placed.to(self._model.dtype) if placed.is_floating_point() else placed

    def encode(self, images: Sequence[ProcessedImage]) -> list[Features]:
        """The features of images, in order."""
        found: list[Features | None] = [None] * len(images)
        kind = "cpu" if self._model.device.type == "cpu" else "gpu"
        for group in same_shape(images):
            pixels = sum(t.numel() for t in images[group[0]].pixels.values())
            at_once = max(1, _PIXELS_AT_ONCE[kind] // max(1, pixels))
            start = 0
            while start < len(group):
                some = group[start : start + at_once]
                try:
                    result = self.run([images[i] for i in some])
                except RuntimeError as error:
                    if not is_out_of_memory(error) or len(some) == 1:
                        raise
                    at_once = len(some) // 2
                    continue
                layout = self._layout = self._layout or Layout.of(result)
                for i, tensors in zip(some, layout.split(result, len(some)), strict=True):
                    found[i] = Features(images[i].text, tensors)
                self.encoded += len(some)
                start += len(some)
        return [one for one in found if one is not None]

    def join(self, images: Sequence[Features]) -> Any:
        """The input of the model for the images of a batch, in order."""
        device, dtype = self._model.device, self._model.dtype
        return self.layout.join(images, lambda tensor: to_device(tensor.to(dtype), device))
