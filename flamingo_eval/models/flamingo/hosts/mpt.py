"""MPT-7B, by transformers' own class; its hub repositories bring code of their own, which is never run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.models.flamingo.hosts.base import Host


def _check(config: Any) -> None:
    """transformers' class has ALiBi always, and no LayerNorm of queries and keys."""
    attention = config.attn_config
    if attention.qk_ln or not attention.alibi or not config.no_bias or attention.attn_type != "multihead_attention":
        raise CheckpointError(
            "this MPT model has settings (qk_ln, alibi, no_bias, attn_type) that MPT-7B does not have"
        )


def _place_keys(model: Any, depths: Tensor | None) -> None:
    """ALiBi: a bias per head that falls with distance. Only differences matter to softmax, so depth alone will do.

    transformers' MptModel asks its own method for biases of keys 0, 1, 2, ...; keys that stand side by side in the
    cache, such as those of several beams, need the depth they have in their own sequence.
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


HOST = Host(
    model_type="mpt",
    decoder_path="transformer.blocks",
    embeddings={"transformer.wte.weight": "transformer.wte.weight"},
    optional={"lm_head.weight": "lm_head.weight"},
    check=_check,
    place_keys=_place_keys,
)
