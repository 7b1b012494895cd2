"""How many prompts are answered together, depending on their tokens and on the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_BATCH_TOKENS, _MOST = {"cpu": 8192, "gpu": 65536}, {"cpu": 32, "gpu": 256}
"""Tokens per batch, of prompts and answers, and the most prompts per batch, that keep a kind of device busy."""

_PASS_TOKENS = {"cpu": 1024, "gpu": 16384}
"""Tokens read in one pass. On a CPU a long prompt is read alone: without padding, attention skips later tokens. Also,
what one layer writes is then still in the CPU's cache when the next layer reads it."""

_USED = 0.8
"""Share of the free memory that is used for planning; the rest is a reserve for what is not counted."""

_ACTIVATIONS = 24
"""Vectors of the model's width that a layer holds per token, roughly: states, queries, a four times wider MLP."""


@dataclass(frozen=True)
class Footprint:
    """How much of the device's memory answering takes, in bytes.

    Attributes:
        token: for a token, its keys and values in all layers, and its activations in one layer.
        cache: for a token, its keys and values alone.
        prompt: for a prompt, the logits of its next token.
    """

    token: int
    cache: int
    prompt: int

    @staticmethod
    def of(config: Any, precision: str) -> Footprint:
        """The footprint of a model, from its configuration."""
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
    """Prompts per batch: the longer they are, the fewer.

    Args:
        device: where they are answered.
        footprint: how much memory answering takes.
        tokens: tokens of a prompt, and of the answer or class name after it.
        beams: how many beams each prompt has.
        free: free bytes on the device; None for a device without its own memory.
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    busy = min(_MOST[kind], max(1, _BATCH_TOKENS[kind] // max(1, tokens)))
    if free is None:
        return busy
    each = beams * (tokens * footprint.token + footprint.prompt)
    return max(1, min(busy, int(_USED * free // max(1, each))))
