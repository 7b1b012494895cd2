"""Idefics2: every image is as long in the text; the processor writes that itself (processing_idefics2.py)."""

from __future__ import annotations

from typing import Any

from flamingo_eval.models.transformers_vlm.families.base import Family
from flamingo_eval.models.transformers_vlm.foreign import Inputs


class Idefics2(Family):
    """Its processor takes a text without images."""

    @staticmethod
    def texts(processor: Any, text: str, **settings: Any) -> Inputs:
        """As it would be with them."""
        tokens: Inputs = processor(text=text, **settings)
        return tokens


FAMILY = Idefics2()
