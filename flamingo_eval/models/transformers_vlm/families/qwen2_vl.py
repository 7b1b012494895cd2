"""Qwen2-VL: what stands for an image in a text, for base models without a chat template."""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.base import Family


class Qwen(Family):
    """Its processor's image token is between two other tokens (as in the family's chat templates)."""

    image_text = "<|vision_start|><|image_pad|><|vision_end|>"


FAMILY = Qwen()
