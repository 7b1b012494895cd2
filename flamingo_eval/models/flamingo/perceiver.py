"""Perceiver resampler: any number of patch tokens in, a fixed number of latents out.

Source: Flamingo (arXiv 2204.14198, section 3.1.1 and appendix A.1.1) with OpenFlamingo's choices
(arXiv 2308.01390): no time embedding, keys and values over concat(media, latents), a final LayerNorm.
Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """LayerNorm, bias-free Linear, GELU, bias-free Linear; released models use ``hidden = 4 * width``."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden, bias=False),
        nn.GELU(),
        nn.Linear(hidden, width, bias=False),
    )


def split_heads(x: Tensor, head_width: int) -> Tensor:
    """(..., length, heads * head_width) -> (..., heads, length, head_width)."""
    heads: Tensor = x.unflatten(-1, (-1, head_width))
    return heads.transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """(..., heads, length, head_width) -> (..., length, heads * head_width)."""
    return x.transpose(-3, -2).flatten(-2)


class PerceiverAttention(nn.Module):
    """Latents attend to the image's tokens and to themselves."""

    def __init__(self, width: int, inner: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """media (images, tokens, width), latents (images, latents, width) -> (images, latents, width)."""
        media, latents = self.norm_media(media), self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat((media, latents), dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.head_width) for x in (self.to_q(latents), keys, values))
        out: Tensor = self.to_out(join_heads(F.scaled_dot_product_attention(q, k, v)))
        return out


class PerceiverResampler(nn.Module):
    """Maps an image's patch tokens (images, tokens, width) to latents (images, n_latents, width).

    Args:
        width: width of the vision tower's tokens (1,024 for ViT-L-14).
        n_latents: latents per image (64 in the released models).
        depth: number of layers (6 in the released models).
        inner: heads * head_width (8 * 64 in the released models).
        head_width: width of one attention head.
        hidden: hidden width of the feed-forward.
    """

    def __init__(self, *, width: int, n_latents: int, depth: int, inner: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(n_latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, inner, head_width), feed_forward(width, hidden)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, media: Tensor) -> Tensor:
        latents = self.latents.expand(media.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer[0](media, latents) + latents  # type: ignore[index]  # a ModuleList: attention,
            latents = layer[1](latents) + latents  # type: ignore[index]  # feed-forward
        out: Tensor = self.norm(latents)
        return out
