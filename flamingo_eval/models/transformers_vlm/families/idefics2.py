"""Idefics2: every image has the same number of tokens; the processor writes them itself (processing_idefics2.py)."""

from __future__ import annotations

from typing import Any

from flamingo_eval.models.transformers_vlm.families.base import Family
from flamingo_eval.models.transformers_vlm.foreign import Inputs


class Idefics2(Family):
    """Its processor accepts a text without images."""

    @staticmethod
    def texts(processor: Any, text: str, **settings: Any) -> Inputs:
        """The text's tokens, the same as with images."""
        tokens: Inputs = processor(text=text, **settings)
        return tokens


FAMILY = Idefics2()
