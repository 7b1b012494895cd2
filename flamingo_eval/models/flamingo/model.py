"""The Flamingo itself: vision tower, resampler, and gated cross-attention hooked into an unmodified decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from flamingo_eval.errors import CheckpointError
from flamingo_eval.models.flamingo.checkpoint import TrainedPart, describe_keys, load_exactly
from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock, Media
from flamingo_eval.models.flamingo.hosts import Host, host_for
from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
from flamingo_eval.nouns import Decoding


class Flamingo(nn.Module):
    """A vision-language model in OpenFlamingo's architecture.

    Args:
        vision: images (n, 3, height, width) -> patch tokens (n, tokens, vision width).
        perceiver: patch tokens -> latents (n, n_latents, vision width).
        blocks: decoder layer number, as text -> the block that runs before that layer.
        language: a Hugging Face causal language model; its own code and weights stay as they are.
        decoder_path: where its decoder layers are, such as ``gpt_neox.layers``.
    """

    def __init__(
        self,
        *,
        vision: nn.Module,
        perceiver: PerceiverResampler,
        blocks: Mapping[int, GatedCrossAttentionBlock],
        language: nn.Module,
        decoder_path: str,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.perceiver = perceiver
        self.blocks = nn.ModuleDict({str(i): block for i, block in blocks.items()})
        self.language: Any = language
        self._media: Media | None = None
        for i, layer in enumerate(language.get_submodule(decoder_path).children()):
            if str(i) in self.blocks:
                layer.register_forward_pre_hook(self._hook(self.blocks[str(i)]), with_kwargs=True)

    def _hook(self, block: nn.Module) -> Any:
        """A forward pre-hook that lets a block rewrite the hidden states its decoder layer receives."""

        def run_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if self._media is None:
                raise RuntimeError("the language model ran outside Flamingo.looking_at(...)")
            media = self._media
            if args:
                return (block(args[0], _for_chunk(media, args[0])), *args[1:]), kwargs
            hidden = kwargs["hidden_states"]
            return args, {**kwargs, "hidden_states": block(hidden, _for_chunk(media, hidden))}

        return run_block

    @contextmanager
    def looking_at(self, media: Media) -> Iterator[None]:
        """Within this context the language model's tokens see these latents."""
        self._media = media
        try:
            yield
        finally:
            self._media = None

    def encode(self, pixels: Tensor) -> Tensor:
        """Images (n, 3, height, width) -> latents (n, n_latents, width)."""
        latents: Tensor = self.perceiver(self.vision(pixels))
        return latents

    def forward(self, input_ids: Tensor, attention_mask: Tensor, media: Media) -> Tensor:
        """Logits (rows, length, vocabulary) of left-padded prompts."""
        with self.looking_at(media):
            logits: Tensor = self.language(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, media: Media, decoding: Decoding, *, end_id: int, pad_id: int
    ) -> Tensor:
        """Ids generated after left-padded prompts, (rows, at most ``max_new_tokens``), padded on the right.

        Beam search is transformers' own; it ends at ``<|endofchunk|>`` only.
        """
        config = GenerationConfig(
            num_beams=decoding.num_beams,
            min_new_tokens=decoding.min_new_tokens,
            max_new_tokens=decoding.max_new_tokens,
            length_penalty=decoding.length_penalty,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=pad_id,
            use_cache=True,
        )
        with self.looking_at(media.repeat(decoding.num_beams)):
            ids: Tensor = self.language.generate(
                input_ids=input_ids, attention_mask=attention_mask, generation_config=config
            )
        return ids[:, input_ids.shape[1] :]


def _for_chunk(media: Media, hidden: Tensor) -> Media:
    """The prompt is read in one piece; what comes after it one token at a time."""
    return media if hidden.shape[1] == media.image_index.shape[1] else media.after_prompt()


def load_language(source: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Host]:
    """The language model, on the CPU in ``dtype``, and its host; never runs code from the hub.

    Raises:
        CheckpointError: not found, not readable, or of a family that is not supported.
    """
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        host = host_for(config.model_type)
        model, report = AutoModelForCausalLM.from_pretrained(
            str(source), dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"no language model could be loaded from {source}: {error}") from error
    tied = set(model.all_tied_weights_keys)
    missing = sorted(set(report["missing_keys"]) - tied)
    unexpected = sorted({*report["unexpected_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing or unexpected:  # transformers would start missing weights at random and only log it
        raise CheckpointError(f"the language model {source} is not whole: {describe_keys(missing, unexpected)}")
    # whatever the repository suggests about sampling must not leak into the protocol's decoding
    model.generation_config = GenerationConfig()
    return model.eval(), host


def assemble(
    *, vision: nn.Module, language: nn.Module, host: Host, trained: TrainedPart, vocabulary: int, head_width: int
) -> Flamingo:
    """Puts the trained part around the language model; sizes are read from the tensors.

    Args:
        vocabulary: number of tokens of the tokenizer, special ones included; embeddings must have as many rows.

    Raises:
        CheckpointError: tensors that don't fit, with their names.
    """
    resize_embeddings(language, trained, vocabulary)
    with torch.device("meta"):
        perceiver = _perceiver_like(trained.perceiver, head_width)
        blocks = {i: _block_like(state, head_width) for i, state in trained.blocks.items()}
    load_exactly(perceiver, trained.perceiver, "perceiver.")
    for i, block in blocks.items():
        load_exactly(block, trained.blocks[i], f"lang_encoder.{host.decoder_path}.{i}.gated_cross_attn_layer.")
    return Flamingo(
        vision=vision, perceiver=perceiver, blocks=blocks, language=language, decoder_path=host.decoder_path
    )


def resize_embeddings(language: Any, trained: TrainedPart, vocabulary: int) -> None:
    """Gives the language model's embeddings ``vocabulary`` rows (it can shrink them) and the trained values."""
    language.resize_token_embeddings(vocabulary, mean_resizing=False)
    parameters = dict(language.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in trained.embeddings.items():
            if tensor.shape != parameters[name].shape:
                raise CheckpointError(
                    f"the checkpoint's embeddings ({name}) have shape {tuple(tensor.shape)}, the language model with "
                    f"this tokenizer {tuple(parameters[name].shape)}: wrong tokenizer or wrong language model"
                )
            parameters[name].copy_(tensor)


def _perceiver_like(state: Mapping[str, Tensor], head_width: int) -> PerceiverResampler:
    first = "layers.0."
    for key in ("latents", first + "0.to_q.weight", first + "1.1.weight"):
        if key not in state:
            raise CheckpointError(f"checkpoint has no perceiver.{key}")
    n_latents, width = state["latents"].shape
    inner = state[first + "0.to_q.weight"].shape[0]
    _check_heads(inner, head_width, "perceiver")
    return PerceiverResampler(
        width=width,
        n_latents=n_latents,
        depth=1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
        inner=inner,
        head_width=head_width,
        hidden=state[first + "1.1.weight"].shape[0],
    )


def _block_like(state: Mapping[str, Tensor], head_width: int) -> GatedCrossAttentionBlock:
    for key in ("attn.to_q.weight", "attn.to_kv.weight", "ff.1.weight"):
        if key not in state:
            raise CheckpointError(f"checkpoint has no gated_cross_attn_layer.{key}")
    inner, width = state["attn.to_q.weight"].shape
    _check_heads(inner, head_width, "cross-attention")
    return GatedCrossAttentionBlock(
        width=width,
        media_width=state["attn.to_kv.weight"].shape[1],
        inner=inner,
        head_width=head_width,
        hidden=state["ff.1.weight"].shape[0],
    )


def _check_heads(inner: int, head_width: int, where: str) -> None:
    if inner % head_width:
        raise CheckpointError(f"{where} is {inner} wide, which heads of {head_width} don't divide: set head_width")
