"""BLIP: one image per prompt."""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.base import Family


class OneImage(Family):
    """Its processor pairs each text with one image."""

    images = 1
    reason = "its processor pairs each text with one image"


FAMILY = OneImage()
