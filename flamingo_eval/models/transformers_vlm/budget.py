"""``--image-tokens`` and ``--max-pixels``, as far as an image processor has settings for them."""

from __future__ import annotations

import math
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.models.transformers_vlm.foreign import Arguments, Inputs

_TILING = {"do_image_splitting": False, "crop_to_patches": False, "do_pan_and_scan": False}
"""Switches that split one image into several tiles, and their value for off."""


def image_settings(processor: Any, image_tokens: int | None, max_pixels: int | None) -> Inputs:
    """Settings for a processor's image half.

    Tiling is off if it can be switched off; a processor that keeps an image's aspect ratio gets a maximum size.

    Args:
        processor: a processor of transformers.
        image_tokens: the most tokens that an image may have; None for no limit.
        max_pixels: the most pixels that an image may have; None for no limit.

    Raises:
        UserError: the processor has no such setting, or the limit is less than one token.
    """
    if image_tokens is None and max_pixels is None:
        return {}
    images = processor.image_processor
    settings: Arguments = {name: off for name, off in _TILING.items() if hasattr(images, name)}
    size, patch = getattr(images, "size", None) or {}, getattr(images, "patch_size", None)
    merge = getattr(images, "merge_size", None) or getattr(processor, "spatial_merge_size", None) or 1
    patch = patch.get("height") if isinstance(patch, dict) else patch
    edge = size.get("longest_edge") if hasattr(size, "get") else None
    if isinstance(patch, int) and edge:
        side = patch * merge
        pixels = min(n for n in (max_pixels, image_tokens and image_tokens * side * side) if n)
        if size.get("shortest_edge"):  # Qwen2-VL and related models: these are numbers of pixels, not edges
            if pixels < side * side:
                raise UserError(f"--max-pixels {pixels}: an image has {side * side} pixels at least, one token")
            settings["size"] = {"shortest_edge": min(size["shortest_edge"], pixels), "longest_edge": min(edge, pixels)}
        elif not any(name in settings for name in _TILING):
            # one more token for each row (Pixtral's break and end tokens)
            rows = math.isqrt(pixels) // side
            while image_tokens and rows > 1 and rows * (rows + 1) > image_tokens:
                rows -= 1
            settings["size"] = {"longest_edge": min(edge, max(1, rows) * side)}
    if not settings:
        raise UserError(
            f"{'--image-tokens' if image_tokens else '--max-pixels'}: {type(images).__name__} has no setting for the "
            "size of an image, and does not cut it into tiles that could be left out"
        )
    return settings
