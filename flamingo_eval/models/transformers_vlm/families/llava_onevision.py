"""LLaVA-OneVision: an image is cut into tiles only if it is the only image of its prompt.

Source: image_processing_llava_onevision.py, ``batch_num_images``.
"""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.base import Family


class LlavaOnevision(Family):
    """An image is processed differently alone and among several."""

    def variant(self, images: int) -> str:
        """``alone`` or ``among several``."""
        return "alone" if images == 1 else "among several"

    def companions(self, variant: str) -> int:
        """One for ``among several``, else none."""
        return 0 if variant == "alone" else 1


FAMILY = LlavaOnevision()
