"""Qwen3-VL: an image in a text as in Qwen2-VL."""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.qwen2_vl import FAMILY

__all__ = ["FAMILY"]
