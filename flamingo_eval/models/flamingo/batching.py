"""Batch sizes: how many prompts are answered together, given their tokens and the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flamingo_eval.core.records import Decoding, Ranking, Task
from flamingo_eval.models.flamingo.model import Flamingo


class Sizes(NamedTuple):
    """Sizes that keep a kind of device busy.

    Attributes:
        batch_tokens: tokens per batch, of prompts and their answers.
        least: minimum number of prompts per batch, if they fit into memory.
        most: maximum number of prompts per batch.
        pass_tokens: prompt tokens per prefill pass.
        logits: maximum number of logits in memory when class names are scored.
    """

    batch_tokens: int
    least: int
    most: int
    pass_tokens: int
    logits: int


_SIZES = {"cpu": Sizes(8192, 4, 64, 2048, 1 << 26), "gpu": Sizes(65536, 16, 256, 16384, 1 << 29)}
"""Passes on a CPU are short: the output of one layer is still in the processor's cache when the next layer reads it."""
_USED = 0.85
"""Share of the free memory that batches may use; the rest is for memory that is not estimated."""
_ACTIVATIONS = 24
"""Vectors of the model's width that a layer holds per token, roughly: states, queries, a four times wider MLP."""


def sizes_for(device: torch.device) -> Sizes:
    """The sizes for a device, by its kind."""
    return _SIZES["cpu" if device.type == "cpu" else "gpu"]


@dataclass(frozen=True)
class Footprint:
    """Device memory that answering needs, in bytes.

    Attributes:
        token: keys and values of one token, in all layers.
        row: keys and values of a prompt's last image, in all cross-attention blocks.
        logit: one logit, and the values computed from it when a token is chosen.
        vocabulary: number of logits per position (not bytes).
        reading: activations of one prefill pass.
    """

    token: int
    row: int
    logit: int
    vocabulary: int
    reading: int

    @staticmethod
    def of(model: Flamingo, precision: str, token: int, pass_tokens: int) -> Footprint:
        """Estimates a model's footprint.

        Args:
            model: the Flamingo.
            precision: the precision it computes in.
            token: bytes of keys and values of one token in the cache.
            pass_tokens: prompt tokens per prefill pass.
        """
        size = 4 if precision == "fp32" else 2
        vocabulary, width = model.language.get_input_embeddings().weight.shape
        latents = model.perceiver.latents.shape[0]
        blocks: Any = model.blocks.values()
        image = sum(2 * latents * block.attn.to_q.weight.shape[0] for block in blocks)
        return Footprint(
            token=token,
            row=image * size,
            logit=size + 9 * 4,  # float32 copies, exponentials, integers to sort by
            vocabulary=vocabulary,
            reading=pass_tokens * width * _ACTIVATIONS * size,
        )

    def prompts(self, tokens: int, behind: int, positions: int, free: int) -> int:
        """How many prompts fit.

        Args:
            tokens: tokens of one prompt.
            behind: tokens that follow it at the same time, over all beams or the names of a chunk.
            positions: number of positions whose logits are in memory at the same time.
            free: free bytes.
        """
        each = (tokens + behind) * self.token + self.row + positions * self.vocabulary * self.logit
        return max(1, int((_USED * free - self.reading) // each))


def suggested(sizes: Sizes, footprint: Footprint | None, task: Task, tokens: int, room: int, free: int) -> int:
    """Suggests the number of prompts per batch: few long prompts, or many short ones.

    Args:
        sizes: sizes that keep the device busy.
        footprint: memory that answering needs; None for a device without its own memory.
        task: the task.
        tokens: tokens of one prompt.
        room: tokens that follow it at the same time, over all beams or the names of a chunk.
        free: free bytes on the device.
    """
    alone = task.max_new_tokens if isinstance(task, Decoding) else room  # names are scored in one pass
    busy = max(sizes.least, min(sizes.most, sizes.batch_tokens // (tokens + alone)))
    if footprint is None:
        return busy
    logits = min(sizes.logits, busy * room * footprint.vocabulary) * footprint.logit if isinstance(task, Ranking) else 0
    positions = task.num_beams if isinstance(task, Decoding) else 1
    return min(busy, footprint.prompts(tokens, room, positions, max(0, free - logits)))
