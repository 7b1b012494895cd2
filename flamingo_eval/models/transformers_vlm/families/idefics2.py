"""Idefics2: every image is as long in the text; the processor writes that itself (processing_idefics2.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_eval.models.transformers_vlm.families.base import Family


class Idefics2(Family):
    """Its processor takes a text without images."""

    processes_images = False

    def texts(self, processor: Any, text: str, **settings: Any) -> Mapping[str, Any]:
        """As it would be with them."""
        tokens: Mapping[str, Any] = processor(text=text, **settings)
        return tokens


FAMILY = Idefics2()
