"""A CLIP's image embeddings, for retrieval; always float32, whatever the model's precision (docs/demonstrations.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamingo_eval.core.images import Images
from flamingo_eval.devices import memory_errors, numerics, pinned
from flamingo_eval.libraries import host_as_it_was
from flamingo_eval.models.flamingo.spec import VisionSpec
from flamingo_eval.models.flamingo.vision import load_clip, read_image


class ClipEncoder:
    """The image encoder of an open_clip model.

    Source: open_flamingo/eval/rices.py (``encode_image``: pooled and projected).
    """

    def __init__(self, spec: VisionSpec, device: str) -> None:
        with (
            host_as_it_was(),
            numerics(device),
            memory_errors(f"the image encoder {spec.model} does not fit on {device}"),
        ):
            clip, self._transform = load_clip(spec)
            self._clip: Any = clip.requires_grad_(False).to(device)
        self._device = torch.device(device)

    def prepare(self, image: str, rgb: bool, images: Images) -> Tensor:
        """Reads an image as (3, height, width), in pinned memory if the device is CUDA. Raises QueryError."""
        pixels = read_image(images, image, self._transform, rgb=rgb)
        return pinned(pixels, self._device)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> NDArray[np.float32]:
        """Embeddings (images, width), not normalised."""
        with numerics(self._device), memory_errors(f"{len(prepared)} images do not fit on {self._device}"):
            pixels = torch.stack([p.to(self._device, non_blocking=p.is_pinned()) for p in prepared])
            features: Tensor = self._clip.encode_image(pixels)
            vectors: NDArray[np.float32] = features.float().cpu().numpy()
        return vectors
