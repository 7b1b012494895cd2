"""Gated cross-attention: how text tokens read the latents of the image before them.

Source: Flamingo (arXiv 2204.14198, section 3.1.2) with OpenFlamingo's choices: each text token sees only the
latest image before it, tokens before any image get zeros, tanh gates that start at zero.
Parameter names are those of the released checkpoints (``gated_cross_attn_layer.*``).

Three classes decide what tokens attend to, and give the same numbers. :class:`Media` is plain and dense, as in the
formula. :class:`Spans` is for prompts: each text span attends only to its own latents. :class:`LastImages` is for
tokens after a prompt: it reuses the keys and values of the prompt's pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamingo_eval.devices import to_device
from flamingo_eval.models.flamingo.perceiver import feed_forward, join_heads, split_heads


class MediaAttention(Protocol):
    """What the cross-attention blocks attend to during a forward pass."""

    def attend(self, attention: MaskedCrossAttention, x: Tensor) -> Tensor:
        """x (rows, length, width) -> attention output of its tokens, (rows, length, width)."""


@dataclass(frozen=True)
class Media:
    """Plain and dense: every token is scored against all images of its row, and all but its own image are masked.

    Attributes:
        latents: (rows, images, n_latents, width).
        image_index: (rows, prompt length); for each token of the prompt the number, from 1, of the latest image
            before or at it, 0 if there is none. Generated tokens attend to the prompt's last image, even after a
            generated ``<image>``. (The reference computes positions again there, so one sequence can change the text
            of others in its batch.)
    """

    latents: Tensor
    image_index: Tensor

    @staticmethod
    def of(latents: Tensor, input_ids: Tensor, image_token_id: int) -> Media:
        """Media for prompts ``input_ids`` (rows, length), whose i-th ``<image>`` stands for the i-th image."""
        return Media(latents, (input_ids == image_token_id).cumsum(dim=-1))

    def repeat(self, times: int) -> Media:
        """Repeats each row ``times`` times, copies next to each other, as beam search arranges its beams."""
        if times == 1:
            return self
        return Media(self.latents.repeat_interleave(times, dim=0), self.image_index.repeat_interleave(times, dim=0))

    def after_prompt(self) -> Media:
        """Media for generated tokens: only the prompt's last image, if there is one."""
        last = self.image_index[:, -1]
        rows = torch.arange(last.shape[0], device=last.device)
        return Media(self.latents[rows, (last - 1).clamp(min=0)].unsqueeze(1), last.clamp(max=1).unsqueeze(1))

    def attend(self, attention: MaskedCrossAttention, x: Tensor) -> Tensor:
        """See :class:`MediaAttention`. ``x`` is the full prompt or, at any other length, tokens after it."""
        if x.shape[1] != self.image_index.shape[1] != 1:
            return self.after_prompt().attend(attention, x)
        images, n_latents = self.latents.shape[1:3]
        q, (k, v) = attention.queries(x), attention.keys_and_values(self.latents.flatten(1, 2))
        owner = torch.arange(1, images + 1, device=x.device).repeat_interleave(n_latents)  # (images * n_latents,)
        index = self.image_index.unsqueeze(-1)  # (rows, length, 1)
        # a token without an image would have an empty row, hence NaN: let it see all, then zero its result
        visible = (index == owner) | (index == 0)
        out = join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=visible.unsqueeze(1)))
        out = torch.where(index == 0, torch.zeros((), dtype=out.dtype, device=out.device), out)
        return attention.project(out)


@dataclass(frozen=True)
class Spans:
    """Prompts cut into spans, each an ``<image>`` and the text up to the next one. Memory is linear in prompt length.

    Attributes:
        latents: (images, n_latents, width), each distinct image of the batch once.
        image: (spans,), index in ``latents`` of the image that each span attends to.
        tokens: (spans, longest span), indices of its tokens among all (rows * length); arbitrary after its end.
        filled: indices of the places in ``tokens``, flattened, that hold tokens.
        last: (rows,), index of each row's last span; -1 for a row without images.
        in_order: whether the i-th span attends to the i-th image, so that no gathering is needed.
        remembered: ``id`` of a block's attention -> keys and values of every row's last image, filled by
            :meth:`attend`.
    """

    latents: Tensor
    image: Tensor
    tokens: Tensor
    filled: Tensor
    last: Tensor
    in_order: bool
    remembered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(latents: Tensor, images: Sequence[Sequence[int]], ids: Tensor, image_token_id: int) -> Spans:
        """Spans of left-padded prompts.

        Args:
            latents: (images, n_latents, width), on the device.
            images: for each row, the index in ``latents`` of the image that its i-th ``<image>`` stands for.
            ids: (rows, length), on the CPU.
            image_token_id: token id of ``<image>``.
        """
        index = (ids == image_token_id).cumsum(dim=-1)  # (rows, length)
        counts = index[:, -1]
        offset = counts.cumsum(0) - counts  # number of spans in the rows before
        token = index.flatten().nonzero().squeeze(1)  # tokens that see an image, in order, so span by span
        span = (index - 1 + offset[:, None]).flatten()[token]
        lengths = torch.bincount(span, minlength=int(counts.sum()))
        place = torch.arange(len(token)) - (lengths.cumsum(0) - lengths)[span]
        longest = int(lengths.max()) if len(lengths) else 0
        tokens = torch.zeros(len(lengths), longest, dtype=torch.long)
        tokens[span, place] = token
        image = torch.tensor([n for row, count in zip(images, counts.tolist(), strict=True) for n in row[:count]])
        last = torch.where(counts > 0, offset + counts - 1, -1)
        in_order = image.tolist() == list(range(len(image)))
        places = span * longest + place
        image, tokens, places, last = (to_device(part, latents.device) for part in (image.long(), tokens, places, last))
        return Spans(latents, image, tokens, places, last, in_order)

    def attend(self, attention: MaskedCrossAttention, x: Tensor) -> Tensor:
        """See :class:`MediaAttention`; stores the last images' keys and values in ``remembered``."""
        k, v = attention.keys_and_values(self.latents)  # (images, heads, n_latents, head width)
        if not len(self.image):
            self.remembered[id(attention)] = (nothing := k.new_zeros(len(self.last), *k.shape[1:]), nothing)
            return torch.zeros_like(x)
        seen = self.image[self.last.clamp(min=0)]
        self.remembered[id(attention)] = (k[seen], v[seen])
        q = attention.queries(x.flatten(0, 1)[self.tokens])  # (spans, heads, longest, head width)
        spans = len(self.image)
        k, v = (k[:spans], v[:spans]) if self.in_order else (k[self.image], v[self.image])
        seen_by_span = F.scaled_dot_product_attention(q, k, v)
        out = seen_by_span.new_zeros(x.shape[0] * x.shape[1], q.shape[1] * q.shape[3])
        places = join_heads(seen_by_span).flatten(0, 1)
        out[self.tokens.flatten()[self.filled]] = places[self.filled]
        return attention.project(out.unflatten(0, x.shape[:2]))


@dataclass(frozen=True)
class LastImages:
    """What any number of tokens after a prompt attend to: the prompt's last image, or nothing."""

    remembered: dict[int, tuple[Tensor, Tensor]]
    any_image: Tensor

    @staticmethod
    def after(parts: Sequence[Spans]) -> LastImages:
        """For tokens after prompts that have been read in one or more passes."""
        remembered = {}
        for block in parts[0].remembered:
            keys, values = zip(*(part.remembered[block] for part in parts), strict=True)
            remembered[block] = (torch.cat(keys), torch.cat(values))
        return LastImages(remembered, (torch.cat([part.last for part in parts]) >= 0)[:, None, None])

    def attend(self, attention: MaskedCrossAttention, x: Tensor) -> Tensor:
        """See :class:`MediaAttention`."""
        k, v = self.remembered[id(attention)]
        out = join_heads(F.scaled_dot_product_attention(attention.queries(x), k, v))
        return attention.project(torch.where(self.any_image, out, torch.zeros((), dtype=out.dtype, device=out.device)))


class MaskedCrossAttention(nn.Module):
    """Multi-head attention from text tokens to the latents of their image; no biases."""

    def __init__(self, width: int, media_width: int, inner: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """(..., length, width) -> (..., heads, length, head width)."""
        return split_heads(self.to_q(self.norm(x)), self.head_width)

    def keys_and_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(..., latents, media width) -> twice (..., heads, latents, head width)."""
        keys, values = self.to_kv(latents).chunk(2, dim=-1)
        return split_heads(keys, self.head_width), split_heads(values, self.head_width)

    def project(self, out: Tensor) -> Tensor:
        """Projects the attention output, (..., heads * head width) -> (..., width)."""
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

    def forward(self, x: Tensor, media: MediaAttention) -> Tensor:
        x = media.attend(self.attn, x) * self.attn_gate.tanh() + x
        out: Tensor = self.ff(x) * self.ff_gate.tanh() + x
        return out
