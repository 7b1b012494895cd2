"""Gated cross-attention: how text tokens read the latents of the image before them.

Source: Flamingo (arXiv 2204.14198, section 3.1.2) with OpenFlamingo's choices: each text token sees only the
latest image before it, tokens before any image get zeros, tanh gates that start at zero.
Parameter names are those of the released checkpoints (``gated_cross_attn_layer.*``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamingo_eval.models.flamingo.perceiver import feed_forward, join_heads, split_heads


@dataclass(frozen=True)
class Media:
    """What the cross-attention blocks may look at during one forward pass or one generation.

    Attributes:
        latents: (rows, images, n_latents, width).
        image_index: (rows, prompt length); for each token of the prompt the number, from 1, of the latest image
            before or at it, 0 where there is none. Tokens generated later go on attending to the last one: a
            generated ``<image>`` moves nothing (the reference re-reads positions there and thereby lets
            one sequence change the text of others in its batch).
    """

    latents: Tensor
    image_index: Tensor

    @staticmethod
    def of(latents: Tensor, input_ids: Tensor, image_token_id: int) -> Media:
        """Media for prompts ``input_ids`` (rows, length), whose i-th ``<image>`` stands for the i-th image."""
        return Media(latents, (input_ids == image_token_id).cumsum(dim=-1))

    def repeat(self, times: int) -> Media:
        """Each row ``times`` times in a row, as beam search lays out its beams."""
        if times == 1:
            return self
        return Media(self.latents.repeat_interleave(times, dim=0), self.image_index.repeat_interleave(times, dim=0))

    def after_prompt(self) -> Media:
        """The same for one generated token a row: only the prompt's last image is left, if there is one."""
        last = self.image_index[:, -1]
        rows = torch.arange(last.shape[0], device=last.device)
        return Media(self.latents[rows, (last - 1).clamp(min=0)].unsqueeze(1), last.clamp(max=1).unsqueeze(1))


class MaskedCrossAttention(nn.Module):
    """Multi-head attention from text tokens to the latents of their image; no biases."""

    def __init__(self, width: int, media_width: int, inner: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, media: Media) -> Tensor:
        """x (rows, length, width) -> (rows, length, width)."""
        images, n_latents = media.latents.shape[1:3]
        keys, values = self.to_kv(media.latents.flatten(1, 2)).chunk(2, dim=-1)
        q, k, v = (split_heads(t, self.head_width) for t in (self.to_q(self.norm(x)), keys, values))
        owner = torch.arange(1, images + 1, device=x.device).repeat_interleave(n_latents)  # (images * n_latents,)
        index = media.image_index.unsqueeze(-1)  # (rows, length, 1)
        # a token without an image would have an empty row, hence NaN: let it see all, then zero its result
        visible = (index == owner) | (index == 0)
        out = join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=visible.unsqueeze(1)))
        out = torch.where(index == 0, torch.zeros((), dtype=out.dtype, device=out.device), out)
        projected: Tensor = self.to_out(out)
        return projected


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward, each added through a tanh gate, before a frozen decoder layer."""

    def __init__(self, *, width: int, media_width: int, inner: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(width, media_width, inner, head_width)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width, hidden)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: Media) -> Tensor:
        x = self.attn(x, media) * self.attn_gate.tanh() + x
        out: Tensor = self.ff(x) * self.ff_gate.tanh() + x
        return out
