"""How many prompts are read and answered together: by their tokens, and by what the device's memory holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flamingo_eval.core.records import Decoding, Ranking, Task
from flamingo_eval.models.flamingo.model import Flamingo


class Sizes(NamedTuple):
    """What keeps a kind of device busy.

    Attributes:
        batch_tokens: tokens of prompts per batch.
        least: prompts per batch, where memory holds them.
        most: prompts per batch.
        pass_tokens: tokens read in one pass.
        logits: logits in memory at once when names are scored.
    """

    batch_tokens: int
    least: int
    most: int
    pass_tokens: int
    logits: int


_SIZES = {"cpu": Sizes(8192, 4, 64, 2048, 1 << 26), "gpu": Sizes(65536, 16, 256, 16384, 1 << 29)}
"""Passes on a CPU are short: what one layer writes is still in the processor's cache when the next one reads it."""
_USED = 0.85
"""Share of the free memory that is planned with; the rest is for what nobody counts."""
_ACTIVATIONS = 24
"""Numbers of a token's width that a decoder layer holds at once, roughly: states, queries, a four times wider MLP."""


def sizes_for(device: torch.device) -> Sizes:
    """Those of a kind of device."""
    return _SIZES["cpu" if device.type == "cpu" else "gpu"]


@dataclass(frozen=True)
class Footprint:
    """What answering takes of the device's memory, in bytes.

    Attributes:
        token: keys and values of a token, in all layers.
        row: keys and values of the last image of a prompt, in all cross-attention blocks.
        logit: what is computed from a logit on the way to a choice.
        vocabulary: logits per position.
        reading: what one pass over prompts needs besides.
    """

    token: int
    row: int
    logit: int
    vocabulary: int
    reading: int

    @staticmethod
    def of(model: Flamingo, precision: str, token: int, pass_tokens: int) -> Footprint:
        """A model's.

        Args:
            model: the Flamingo.
            precision: in which it computes.
            token: bytes of keys and values of a token, as the cache has them.
            pass_tokens: tokens read in one pass.
        """
        size = 4 if precision == "fp32" else 2
        vocabulary, width = model.language.get_input_embeddings().weight.shape
        latents = model.perceiver.latents.shape[0]
        blocks: Any = model.blocks.values()
        image = sum(2 * latents * block.attn.to_q.weight.shape[0] for block in blocks)
        return Footprint(
            token=token,
            row=image * size,
            logit=size + 9 * 4,  # in float32, exponentiated, as whole numbers to be sorted
            vocabulary=vocabulary,
            reading=pass_tokens * width * _ACTIVATIONS * size,
        )

    def prompts(self, tokens: int, behind: int, positions: int, free: int) -> int:
        """How many prompts fit.

        Args:
            tokens: of a prompt.
            behind: tokens laid out behind it.
            positions: at how many of them logits are in memory at once.
            free: bytes.
        """
        each = (tokens + behind) * self.token + self.row + positions * self.vocabulary * self.logit
        return max(1, int((_USED * free - self.reading) // each))


def suggested(sizes: Sizes, footprint: Footprint | None, task: Task, tokens: int, room: int, free: int) -> int:
    """Prompts per batch: few long ones, many short ones.

    Args:
        sizes: what keeps the device busy.
        footprint: what answering takes; None for a device without memory of its own.
        task: what is asked.
        tokens: of a prompt.
        room: tokens laid out behind it.
        free: bytes that the device has free.
    """
    alone = task.max_new_tokens if isinstance(task, Decoding) else room  # names are scored in one pass
    busy = max(sizes.least, min(sizes.most, sizes.batch_tokens // (tokens + alone)))
    if footprint is None:
        return busy
    logits = min(sizes.logits, busy * room * footprint.vocabulary) * footprint.logit if isinstance(task, Ranking) else 0
    positions = task.num_beams if isinstance(task, Decoding) else 1
    return min(busy, footprint.prompts(tokens, room, positions, max(0, free - logits)))
