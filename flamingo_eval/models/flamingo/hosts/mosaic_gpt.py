"""MPT-1B: the older ``mosaic_gpt`` architecture, which transformers has no class for, as a decoder of our own.

ALiBi instead of positions, LayerNorm of queries and keys over the full width, no biases anywhere, tied output.
Source: the tensors' names and the configuration of anas-awadalla/mpt-1b-redpajama-200b; ALiBi (arXiv 2108.12409).
No code from the hub is run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.models.flamingo.hosts.base import Host


class MosaicGPTConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes; the fields have the names of the published configuration."""

    model_type = "mosaic_gpt"
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}  # noqa: RUF012

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    mlp_ratio: int = 4
    max_seq_len: int = 2048
    vocab_size: int = 50432
    alibi_bias_max: int = 8
    attn_clip_qkv: float | None = None
    layer_norm_epsilon: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = True


def alibi_slopes(heads: int, bias_max: int) -> Tensor:
    """Slopes (heads,): 2**(-bias_max * i / heads), i from 1. If the number of heads is not a power of two, they are
    taken from the slopes of the next power of two: first every second one, then the others, until there are enough."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-bias_max * torch.arange(1, power + 1) / power)
    return slopes if power == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]


class Attention(nn.Module):
    """Multi-head attention with LayerNorm of queries and keys."""

    def __init__(self, config: MosaicGPTConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer, self.clip = config.n_heads, layer, config.attn_clip_qkv
        width = config.d_model
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.q_ln = nn.LayerNorm(width, eps=config.layer_norm_epsilon, bias=False)
        self.k_ln = nn.LayerNorm(width, eps=config.layer_norm_epsilon, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor, cache: Cache | None) -> Tensor:
        """x (rows, length, width), bias (rows, heads, length, keys) -> (rows, length, width)."""
        qkv = self.Wqkv(x)
        if self.clip:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype), v)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each after a LayerNorm and added to its input."""

    def __init__(self, config: MosaicGPTConfig, layer: int) -> None:
        super().__init__()
        width, hidden = config.d_model, config.mlp_ratio * config.d_model
        self.ln_1 = nn.LayerNorm(width, eps=config.layer_norm_epsilon, bias=False)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(width, eps=config.layer_norm_epsilon, bias=False)
        self.mlp = nn.ModuleDict(
            {"mlp_up": nn.Linear(width, hidden, bias=False), "mlp_down": nn.Linear(hidden, width, bias=False)}
        )

    def forward(self, x: Tensor, bias: Tensor, cache: Cache | None) -> Tensor:
        """(rows, length, width) -> the same."""
        x = x + self.attn(self.ln_1(x), bias, cache)
        out: Tensor = x + self.mlp["mlp_down"](F.gelu(self.mlp["mlp_up"](self.ln_2(x))))
        return out


class MosaicGPT(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The full decoder; the output layer is the input embedding."""

    config_class = MosaicGPTConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: MosaicGPTConfig) -> None:
        super().__init__(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.d_model),
                "blocks": nn.ModuleList(Block(config, i) for i in range(config.n_layers)),
                "ln_f": nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon, bias=False),
            }
        )
        self.key_depths: Tensor | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding, as resizing does."""
        self.transformer["wte"] = value

    def get_output_embeddings(self) -> None:
        """None: the input embedding is also the output layer."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (rows, length, vocabulary), or of the last ``logits_to_keep`` positions.

        ``attention_mask`` is (rows, keys), 0 at padding, or (rows, 1, length, keys), added to the scores.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self.transformer["wte"](input_ids)
        bias = self._bias(input_ids.shape[1], past, attention_mask, x)
        for block in self.get_submodule("transformer.blocks").children():
            x = block(x, bias, past_key_values)
        x = self.transformer["ln_f"](x[:, -logits_to_keep:] if logits_to_keep else x)
        logits = F.linear(x, self.get_parameter("transformer.wte.weight"))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _bias(self, length: int, past: int, mask: Tensor | None, x: Tensor) -> Tensor:
        """Bias added to attention scores: ALiBi, and the lowest number where a query must not attend."""
        keys = past + length
        depths = torch.arange(keys, device=x.device) if self.key_depths is None else self.key_depths
        slopes = alibi_slopes(self.config.n_heads, self.config.alibi_bias_max).to(x.device)
        # (heads, length, keys), by distance: near keys have small numbers, which bfloat16 tells apart
        distance = (depths[-length:, None] - depths[None, :]).clamp(min=0)
        alibi = -slopes[:, None, None] * distance.float()
        if mask is not None and mask.dim() == 4:
            return (alibi + mask.float()).clamp(min=torch.finfo(x.dtype).min).to(x.dtype)
        visible = torch.arange(keys, device=x.device) <= torch.arange(past, keys, device=x.device)[:, None]
        visible = visible[None, None]
        if mask is not None:
            # a padding token sees itself: an empty row of scores would be NaN
            itself = torch.eye(length, keys, dtype=torch.bool, device=x.device).roll(past, dims=1)
            visible = (visible & mask.bool()[:, None, None, :]) | itself
        return torch.where(visible, alibi, torch.finfo(x.dtype).min).to(x.dtype)


def _check(config: Any) -> None:
    """Raises CheckpointError for settings of the family that this decoder does not have."""
    wanted = {"alibi": True, "attn_qk_ln": True, "no_bias": True, "logit_scale": None, "softmax_scale": None,
              "attn_softmax_scale": None}  # fmt: skip
    for name, value in wanted.items():
        if getattr(config, name, value) != value:
            raise CheckpointError(f"this mosaic_gpt model has {name} = {getattr(config, name)}, MPT-1B has {value}")


def _place_keys(model: Any, depths: Tensor | None) -> None:
    model.key_depths = depths


HOST = Host(
    model_type="mosaic_gpt",
    decoder_path="transformer.blocks",
    embeddings={"transformer.wte.weight": "transformer.wte.weight"},
    optional={"lm_head.weight": "transformer.wte.weight"},
    model_class=MosaicGPT,
    check=_check,
    place_keys=_place_keys,
)
