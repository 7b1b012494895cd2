"""MPT-7B, by transformers' class with our own attention. The code in its hub repositories is never run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import MptAttention

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.models.flamingo.hosts.base import Host

_BIASES = 1 << 27
"""Number of attention biases in memory at once, for some rows in one layer; one row may have more."""


class FusedAttention(MptAttention):  # type: ignore[misc]
    """transformers' attention without its scores in memory: biases and mask go to a fused kernel, some rows at a time.

    (The scores are (rows, heads, length, keys), in float32 and in several copies.) A bias is relative to the query:
    near keys have small numbers, which bfloat16 can distinguish.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """See :class:`transformers.models.mpt.modeling_mpt.MptAttention`; ``attention_mask`` is true where a query must
        not attend."""
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        rows, heads, length, _width = q.shape
        depths = position_bias[..., -k.shape[2] :]  # (heads, 1, keys), higher for later keys
        bias = (depths - depths[..., -length:].transpose(1, 2)).clamp(max=0)  # (heads, length, keys)
        step = max(1, _BIASES // (heads * length * k.shape[2]))
        parts = []
        for some in (slice(start, start + step) for start in range(0, rows, step)):
            masked = bias[None] if attention_mask is None else _masked(bias, attention_mask[some], q.dtype)
            parts.append(
                F.scaled_dot_product_attention(
                    q[some], k[some], v[some], attn_mask=masked.to(q.dtype), scale=self.softmax_scale
                )
            )
        return self.out_proj(torch.cat(parts).transpose(1, 2).flatten(2)), None


def _masked(bias: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    return bias[None].masked_fill(mask, torch.finfo(dtype).min)


class FusedMpt(MptForCausalLM):  # type: ignore[misc]
    """transformers' class with :class:`FusedAttention`."""

    config_class = MptConfig

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        for block in self.transformer.blocks:
            block.attn.__class__ = FusedAttention


def _check(config: Any) -> None:
    """Raises CheckpointError for settings that transformers' class ignores.

    (It always has ALiBi, and no LayerNorm of queries and keys.)
    """
    attention = config.attn_config
    if attention.qk_ln or not attention.alibi or not config.no_bias or attention.attn_type != "multihead_attention":
        raise CheckpointError(
            "this MPT model has settings (qk_ln, alibi, no_bias, attn_type) that MPT-7B does not have"
        )


def _place_keys(model: Any, depths: Tensor | None) -> None:
    """Sets ALiBi's biases, which per head fall with distance. Only differences matter to softmax, so depth is enough.

    transformers' MptModel calls its own method for the biases of keys 0, 1, 2, ... Keys that are side by side in the
    cache, such as those of several beams, need the depth that they have in their own sequence.
    """
    decoder = model.transformer
    if depths is None:
        decoder.__dict__.pop("build_mpt_alibi_tensor", None)
        return
    slopes = type(decoder).build_mpt_alibi_tensor(decoder, decoder.num_heads, 2, device=depths.device).diff(dim=-1)
    bias = slopes * depths.to(slopes.dtype)  # (heads, 1, keys)

    def build(*_: Any, **__: Any) -> Tensor:
        return torch.as_tensor(bias)

    decoder.__dict__["build_mpt_alibi_tensor"] = build


def _make_plain(model: Any) -> None:
    for block in model.transformer.blocks:
        block.attn.__class__ = MptAttention


HOST = Host(
    model_type="mpt",
    decoder_path="transformer.blocks",
    embeddings={"transformer.wte.weight": "transformer.wte.weight"},
    optional={"lm_head.weight": "lm_head.weight"},
    model_class=FusedMpt,
    check=_check,
    place_keys=_place_keys,
    make_plain=_make_plain,
)
