"""Qwen3-VL: images in a text are written as in Qwen2-VL."""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.qwen2_vl import FAMILY

__all__ = ["FAMILY"]
