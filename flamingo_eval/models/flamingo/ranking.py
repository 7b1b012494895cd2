"""Log-likelihoods of class names after a prompt: one prefill, then all names side by side.

The names of a chunk follow the prompt as one sequence of tokens. Each token attends to the prompt and to the tokens
before it in its own name, and has the position that it would have if its name were alone. So the prompt's keys and
values are computed once and never copied, and names of several tokens attend to no padding (in the reference's cached
path they do).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flamingo_eval.models.flamingo.prefix import Prefix

CHUNK_TOKENS = 512
"""Maximum number of name tokens scored in one pass; bounds memory, does not change results."""


@dataclass(frozen=True)
class Chunk:
    """Names one after another, each without its last token, which predicts nothing.

    Attributes:
        ids: (tokens,).
        offsets: (tokens,), position of each token within its name.
        owner: (tokens,), index, within the chunk, of the name that each token belongs to.
    """

    ids: Tensor
    offsets: Tensor
    owner: Tensor

    def sees(self) -> Tensor:
        """(tokens, tokens): which of the chunk's tokens each token may attend to."""
        same = self.owner[:, None] == self.owner[None, :]
        return same & (self.offsets[:, None] >= self.offsets[None, :])


def score_names(prefix: Prefix, names: Sequence[Sequence[int]], logits_at_once: int = 1 << 26) -> Tensor:
    """Mean log-likelihood of each name's tokens after each prompt.

    Args:
        prefix: the prompts, with room for ``room_needed(names)`` tokens.
        names: token ids of each name, without leading space, special tokens or ``<|endofchunk|>``.
        logits_at_once: maximum number of logits in memory; a thousand names after many prompts have billions.

    Returns:
        (rows, names), float32.
    """
    first = prefix.logits.float()  # (rows, vocabulary)
    totals = first[:, [name[0] for name in names]] - first.logsumexp(-1, keepdim=True)
    start = 0
    for count in _chunk_sizes(names, logits_at_once // first.numel()):
        chunk_names = names[start : start + count]
        chunk = _layout(chunk_names, totals.device)
        if len(chunk.ids):
            rows = totals.shape[0]
            logits = prefix.extend(chunk.ids.expand(rows, -1), chunk.offsets, chunk.sees().expand(rows, -1, -1))
            prefix.forget()
            totals[:, start : start + count] += _sum_of_rest(logits, chunk, chunk_names)
        start += count
    means: Tensor = totals / torch.tensor([len(name) for name in names], device=totals.device)
    return means


def room_needed(names: Sequence[Sequence[int]]) -> int:
    """Maximum number of tokens that ranking appends to a prompt at the same time."""
    sizes, start = [0], 0
    for count in _chunk_sizes(names):
        sizes.append(sum(len(name) - 1 for name in names[start : start + count]))
        start += count
    return max(sizes)


def _chunk_sizes(names: Sequence[Sequence[int]], most: int = CHUNK_TOKENS) -> Iterator[int]:
    """Sizes of consecutive groups of names with at most ``most`` tokens each (but at least one name)."""
    most = min(most, CHUNK_TOKENS)
    count = tokens = 0
    for name in names:
        if count and tokens + len(name) - 1 > most:
            yield count
            count = tokens = 0
        count, tokens = count + 1, tokens + len(name) - 1
    if count:
        yield count


def _layout(names: Sequence[Sequence[int]], device: torch.device) -> Chunk:
    rows = [(id, k, i) for i, name in enumerate(names) for k, id in enumerate(name[:-1])]
    table = torch.tensor(rows, dtype=torch.long, device=device).reshape(-1, 3)
    return Chunk(table[:, 0], table[:, 1], table[:, 2])


def _sum_of_rest(logits: Tensor, chunk: Chunk, names: Sequence[Sequence[int]]) -> Tensor:
    """(rows, names): summed log-likelihood of every token but the first of each name."""
    targets = torch.tensor([id for name in names for id in name[1:]], device=logits.device)
    chosen = logits.gather(-1, targets[None, :, None].expand(logits.shape[0], -1, 1)).squeeze(-1).float()
    # one row at a time: float32 and exponentials are further copies
    picked = chosen - torch.stack([row.float().logsumexp(-1) for row in logits])
    sums = torch.zeros(logits.shape[0], len(names), device=logits.device)
    return sums.index_add(1, chunk.owner, picked)
