"""Gated cross-attention: how text tokens read the latents of the image before them.

Source: Flamingo (arXiv 2204.14198, section 3.1.2) with OpenFlamingo's choices: each text token sees only the
latest image before it, tokens before any image get zeros, tanh gates that start at zero.
Parameter names are those of the released checkpoints (``gated_cross_attn_layer.*``).

What tokens look at is one of three things, which give the same numbers: :class:`Media`, plain and dense, as the
formula reads; :class:`Spans`, for a prompt, each text span beside its own latents only; :class:`LastImages`, for what
comes after a prompt, with keys and values that the prompt's pass left behind.
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
    """What the cross-attention blocks may look at during a forward pass."""

    def attend(self, attention: MaskedCrossAttention, x: Tensor) -> Tensor:
        """x (rows, length, width) -> what its tokens see, (rows, length, width)."""


@dataclass(frozen=True)
class Media:
    """Plain and dense: every token is scored against all images of its row, and all but its own are masked.

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
        """The same for generated tokens: only the prompt's last image is left, if there is one."""
        last = self.image_index[:, -1]
        rows = torch.arange(last.shape[0], device=last.device)
        return Media(self.latents[rows, (last - 1).clamp(min=0)].unsqueeze(1), last.clamp(max=1).unsqueeze(1))

    def attend(self, attention: MaskedCrossAttention, x: Tensor) -> Tensor:
        """See :class:`MediaAttention`. The prompt is read in one piece; any other length is what comes after it."""
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
    """Prompts cut into spans, one for each ``<image>`` and the text up to the next: memory linear in the prompt.

    Attributes:
        latents: (images, n_latents, width), each distinct image of the batch once.
        image: (spans,), which of them each span sees.
        tokens: (spans, longest span), numbers of its tokens among all (rows * length); anything behind its end.
        filled: numbers of the places in ``tokens``, flattened, that hold tokens.
        last: (rows,), each row's last span; -1 for a row without images.
        in_order: whether the i-th span sees the i-th image, so that nothing has to be gathered.
        remembered: keys and values of the last image of every row, by block, once the prompt has been read.
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
            images: for each row which of them its i-th ``<image>`` stands for.
            ids: (rows, length), on the CPU.
            image_token_id: of ``<image>``.
        """
        index = (ids == image_token_id).cumsum(dim=-1)  # (rows, length)
        counts = index[:, -1]
        offset = counts.cumsum(0) - counts  # spans of the rows before
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
        """See :class:`MediaAttention`; remembers the last images' keys and values."""
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
    """For tokens after a prompt, any number of them: its last image, or nothing."""

    remembered: dict[int, tuple[Tensor, Tensor]]
    any_image: Tensor

    @staticmethod
    def after(parts: Sequence[Spans]) -> LastImages:
        """What comes after prompts that have been read, in some passes."""
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
        """What was seen, (..., heads * head width) -> (..., width)."""
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
