"""How many prompts are answered together: by their tokens, and by what the device's memory holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_BATCH_TOKENS, _MOST = {"cpu": 8192, "gpu": 65536}, {"cpu": 32, "gpu": 256}
"""Tokens of prompts per batch, and prompts per batch, that keep a kind of device busy."""

_PASS_TOKENS = {"cpu": 1024, "gpu": 16384}
"""Tokens read in one pass. On a CPU a long prompt is read alone: without padding attention skips what comes later, and
what one layer writes is still in the cache when the next one reads it."""

_USED = 0.8
"""Share of the free memory that is planned with; the rest is for what nobody counts."""

_ACTIVATIONS = 24
"""Numbers of a token's width that a decoder layer holds at once, roughly: states, queries, a four times wider MLP."""


@dataclass(frozen=True)
class Footprint:
    """What answering takes of the device's memory, in bytes.

    Attributes:
        token: keys and values of a token, in all layers, and what one layer computes of it.
        cache: the former of these alone.
        prompt: logits of a prompt's next token.
    """

    token: int
    cache: int
    prompt: int

    @staticmethod
    def of(config: Any, precision: str) -> Footprint:
        """A model's, by its configuration."""
        text = config.get_text_config()
        size = 4 if precision == "fp32" else 2
        heads = getattr(text, "num_attention_heads", 1) or 1
        width = getattr(text, "hidden_size", 1024)
        head = getattr(text, "head_dim", None) or width // heads
        shared = getattr(text, "num_key_value_heads", None) or heads
        cache = 2 * getattr(text, "num_hidden_layers", 1) * shared * head
        return Footprint(
            (cache + _ACTIVATIONS * width) * size, cache * size, getattr(text, "vocab_size", 1 << 17) * (size + 8)
        )


def pass_tokens(device: torch.device) -> int:
    """Tokens that are read in one pass."""
    return _PASS_TOKENS["cpu" if device.type == "cpu" else "gpu"]


def suggested(device: torch.device, footprint: Footprint, tokens: int, beams: int, free: int | None) -> int:
    """Prompts per batch: few long ones, many short ones.

    Args:
        device: where they are answered.
        footprint: what answering takes.
        tokens: of a prompt, and of what is laid out behind it.
        beams: how many go on from each prompt.
        free: bytes that the device has free; None for one without memory of its own.
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    busy = min(_MOST[kind], max(1, _BATCH_TOKENS[kind] // max(1, tokens)))
    if free is None:
        return busy
    each = beams * (tokens * footprint.token + footprint.prompt)
    return max(1, min(busy, int(_USED * free // max(1, each))))
