"""Qwen2-VL: how a text has an image in it, for base models without a chat template."""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.base import Family


class Qwen(Family):
    """Its processor's image token stands between two others (the family's chat templates)."""

    image_text = "<|vision_start|><|image_pad|><|vision_end|>"


FAMILY = Qwen()
