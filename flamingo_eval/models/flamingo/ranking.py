"""Log-likelihoods of class names after a prompt: one prefill, then all names side by side.

The names of a chunk follow the prompt as one sequence of tokens, in which each token sees the prompt and the tokens
before it in its own name, at the position it would have if its name stood there alone. So the prompt's keys and
values are computed once and never copied, and names of several tokens attend to no padding (in the reference's cached
path they do).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from flamingo_eval.models.flamingo.cross_attention import Media
from flamingo_eval.models.flamingo.model import Flamingo

CHUNK_TOKENS = 512
"""Tokens of names scored in one pass; bounds memory, does not change results."""


@dataclass(frozen=True)
class Chunk:
    """Names laid out one after the other, without the last token of each, which predicts nothing.

    Attributes:
        ids: (tokens,).
        offsets: (tokens,), position of each token within its name.
        owner: (tokens,), number of the name each token belongs to, within the chunk.
    """

    ids: Tensor
    offsets: Tensor
    owner: Tensor

    def sees(self) -> Tensor:
        """(tokens, tokens): which tokens each token may attend to among the chunk's."""
        same = self.owner[:, None] == self.owner[None, :]
        return same & (self.offsets[:, None] >= self.offsets[None, :])


def score_names(model: Flamingo, ids: Tensor, mask: Tensor, media: Media, names: Sequence[Sequence[int]]) -> Tensor:
    """Mean log-likelihood of each name's tokens after each prompt.

    Args:
        ids: (rows, length), left-padded prompts.
        mask: (rows, length), 0 where padding is.
        media: what the prompts' tokens look at.
        names: token ids of each name, without leading space, special tokens or ``<|endofchunk|>``.

    Returns:
        (rows, names), float32.
    """
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.language.config)
    with model.looking_at(media):
        first = model.language(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
    first_logprobs = first.float().log_softmax(-1)  # (rows, vocabulary)
    totals = first_logprobs[:, [name[0] for name in names]]
    start = 0
    for count in _chunk_sizes(names):
        chunk_names = names[start : start + count]
        chunk = _layout(chunk_names, ids.device)
        if len(chunk.ids):
            logits = _forward(model, chunk, mask, positions[:, -1], media, cache)
            cache.crop(-len(chunk.ids))  # back to the prompt
            totals[:, start : start + count] += _sum_of_rest(logits, chunk, chunk_names)
        start += count
    means: Tensor = totals / torch.tensor([len(name) for name in names], device=totals.device)
    return means


def _chunk_sizes(names: Sequence[Sequence[int]]) -> Iterator[int]:
    """Sizes of consecutive groups of names with at most ``CHUNK_TOKENS`` tokens each (but at least one name)."""
    count = tokens = 0
    for name in names:
        if count and tokens + len(name) - 1 > CHUNK_TOKENS:
            yield count
            count = tokens = 0
        count, tokens = count + 1, tokens + len(name) - 1
    if count:
        yield count


def _layout(names: Sequence[Sequence[int]], device: torch.device) -> Chunk:
    rows = [(id, k, i) for i, name in enumerate(names) for k, id in enumerate(name[:-1])]
    table = torch.tensor(rows, dtype=torch.long, device=device).reshape(-1, 3)
    return Chunk(table[:, 0], table[:, 1], table[:, 2])


def _forward(
    model: Flamingo, chunk: Chunk, mask: Tensor, last_position: Tensor, media: Media, cache: DynamicCache
) -> Tensor:
    """Logits (rows, tokens, vocabulary) of a chunk's tokens after every prompt."""
    rows, tokens = mask.shape[0], len(chunk.ids)
    visible = torch.cat(
        (mask.bool()[:, None, :].expand(-1, tokens, -1), chunk.sees()[None].expand(rows, -1, -1)), dim=-1
    )
    dtype = next(model.language.parameters()).dtype
    bias = torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill(~visible, torch.finfo(dtype).min)
    with model.looking_at(media.after_prompt()):
        logits: Tensor = model.language(
            input_ids=chunk.ids.expand(rows, -1),
            attention_mask=bias.unsqueeze(1),
            position_ids=last_position[:, None] + 1 + chunk.offsets,
            past_key_values=cache,
            use_cache=True,
        ).logits
    return logits


def _sum_of_rest(logits: Tensor, chunk: Chunk, names: Sequence[Sequence[int]]) -> Tensor:
    """(rows, names): summed log-likelihood of every token but the first of each name."""
    targets = torch.tensor([id for name in names for id in name[1:]], device=logits.device)
    logprobs = logits.float().log_softmax(-1)
    picked = logprobs.gather(-1, targets[None, :, None].expand(logits.shape[0], -1, 1)).squeeze(-1)
    sums = torch.zeros(logits.shape[0], len(names), device=logits.device)
    return sums.index_add(1, chunk.owner, picked)
