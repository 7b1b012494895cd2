"""A Flamingo that is in memory, perhaps in training. It is evaluated as it is; its tensors are shared, not copied."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.core.protocols import Capabilities, ModelInfo
from flamingo_eval.models.flamingo.adapter import FlamingoModel
from flamingo_eval.models.flamingo.checkpoint import sort_keys
from flamingo_eval.models.flamingo.hosts import host_for
from flamingo_eval.models.flamingo.model import Flamingo, assemble_parts, padded_rows
from flamingo_eval.models.flamingo.rendering import RENDERER
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer
from flamingo_eval.models.flamingo.vision import PatchTokens, Transform
from flamingo_eval.weights import module_digest

_WRAPPER = ".decoder_layer."


@dataclass(frozen=True)
class LiveSource:
    """A live model as the engine sees it.

    Attributes:
        model: a ``FlamingoModel``, or a module in the released layout: ``perceiver``, ``vision_encoder`` (open_clip's
            visual tower), and ``lang_encoder``, a transformers model whose decoder layers are each wrapped with a
            ``gated_cross_attn_layer``.
        tokenizer: the module's tokenizer, with the special tokens added; not used for a ``FlamingoModel``.
        transform: the module's image transform; not used for a ``FlamingoModel``.
        name: what to call it.
    """

    model: Any
    tokenizer: Any = None
    transform: Transform | None = None
    name: str = "live model"
    renderer = RENDERER
    capabilities = Capabilities()

    def info(self) -> ModelInfo:
        """Name, and a digest of all weights as they are now."""
        module = self.model.model if isinstance(self.model, FlamingoModel) else self.model
        return ModelInfo(self.name, module_digest(module), {})

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """The model's device, and its own precision, or ``amp_bf16`` if that is asked for and its weights are float32.

        Raises:
            CheckpointError: its weights are of several types, or of one that is not supported.
            UserError: another precision, which would need weights of another type.
        """
        where, own = self._own()
        possible = [own, *(["amp_bf16"] if own == "fp32" else [])]
        if precision not in ("auto", *possible):
            raise UserError(
                f"precision {precision}: the live model's weights are {own}, and they are not copied; it can be "
                f"evaluated in {' or '.join(possible)}"
            )
        return where, own if precision == "auto" else precision

    def _own(self) -> tuple[str, str]:
        """Device and precision of the weights."""
        if isinstance(self.model, FlamingoModel):
            return str(self.model.device), self.model.precision
        kinds = {parameter.dtype for parameter in self.model.parameters()}
        if len(kinds) > 1 or not kinds <= _PRECISIONS.keys():
            raise CheckpointError(f"a live model's weights must be of one type; these are {sorted(map(str, kinds))}")
        return str(next(self.model.parameters()).device), _PRECISIONS[kinds.pop()]

    def load(self, device: str, precision: str) -> FlamingoModel:
        """The model; latents are kept only in this process's memory."""
        if isinstance(self.model, FlamingoModel):
            loaded = self.model
            return FlamingoModel(loaded.model, loaded.tokenizer, loaded.transform, precision=precision)
        if self.tokenizer is None or self.transform is None:
            raise CheckpointError("a live model needs its tokenizer and its image transform beside it")
        model, tidies = share(self.model, len(self.tokenizer))
        tokenizer = FlamingoTokenizer.around(self.tokenizer, tidies_spaces=tidies)
        return FlamingoModel(model, tokenizer, self.transform, precision=precision)


_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def share(module: nn.Module, vocabulary: int) -> tuple[Flamingo, bool]:
    """A Flamingo with the same tensors as a module in the released layout, and whether its host tidies spaces.

    Args:
        module: a module in the released layout; if it is wrapped for many devices, ``model.module``.
        vocabulary: number of tokens in its tokenizer.

    Raises:
        CheckpointError: the module has another layout; the message names parts or keys.
    """
    for part in ("perceiver", "vision_encoder", "lang_encoder"):
        if not hasattr(module, part):
            raise CheckpointError(f"a live model must be in the released layout; {type(module).__name__} has no {part}")
    theirs: Any = module
    host = host_for(theirs.lang_encoder.config.model_type)
    state = {key.removeprefix("module."): value for key, value in module.state_dict().items()}
    with torch.device("meta"):
        kind = host.model_class
        config = copy.deepcopy(theirs.lang_encoder.config)  # the module's own stays as it is
        language = kind(config) if kind else AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        # as many rows as the module has, if they are the vocabulary padded to a multiple of 64
        rows = theirs.lang_encoder.get_input_embeddings().weight.shape[0]
        rows = rows if rows == padded_rows(vocabulary) else vocabulary
        language.resize_token_embeddings(rows, mean_resizing=False)
    language = language.eval()
    own = _plain_language(state, host.decoder_path)
    # under the current name in transformers, or the name in the released files
    renamed = {p: own.pop(key) for key, p in host.embeddings.items() if key in own and p not in own}
    expected = language.state_dict()
    tensors = {key: value for key, value in {**own, **renamed}.items() if key in expected}
    missing = sorted(set(expected) - tensors.keys() - set(language.all_tied_weights_keys))
    if missing:
        raise CheckpointError(f"the live model's language model lacks {', '.join(missing[:6])}")
    wrong = sorted(key for key, value in tensors.items() if value.shape != expected[key].shape)
    if wrong:
        raise CheckpointError(
            f"the live model's tensors don't fit its configuration and tokenizer: {', '.join(wrong[:6])}"
        )
    language.load_state_dict(tensors, strict=False, assign=True)
    language.tie_weights()
    _real_buffers(language, theirs.lang_encoder)
    layers = len(list(language.get_submodule(host.decoder_path).children()))
    trained = {key: value for key, value in state.items() if key.startswith("perceiver.") or "gated_cross_attn" in key}
    trained |= {f"lang_encoder.{key}": tensors[parameter] for key, parameter in host.embeddings.items()}
    blocks = [i for i in range(layers) if any(f".{i}.gated_cross_attn_layer." in key for key in trained)]
    sorted_part = sort_keys(trained, host, layers, _interval(blocks), type(module).__name__)
    flamingo = assemble_parts(
        vision=PatchTokens(theirs.vision_encoder),
        language=language,
        host=host,
        trained=sorted_part,
        head_width=_head_width(theirs),
    )
    return flamingo.eval(), host.tidies_spaces


def _plain_language(state: Mapping[str, Tensor], decoder_path: str) -> dict[str, Tensor]:
    """The language model's own tensors, under the names they have without Flamingo's wrappers."""
    prefix, layers = "lang_encoder.", f"{decoder_path}."
    found = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if (
            key.startswith(prefix)
            and "gated_cross_attn_layer" not in name
            and not name.startswith("old_decoder_blocks")
        ):
            found[name.replace(_WRAPPER, ".", 1) if name.startswith(layers) else name] = value
    return found


def _real_buffers(language: nn.Module, theirs: nn.Module) -> None:
    """Computes buffers that no state dict has (rotary frequencies) again, since they are on the meta device."""
    device = next(theirs.parameters()).device
    for module in language.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            kind: Any = type(module)
            fresh = kind(language.config)
            for name, buffer in fresh.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(device), persistent=False)


def _interval(blocks: list[int]) -> int:
    """``cross_attn_every_n_layers``, from the numbers of the layers that have cross-attention."""
    if not blocks:
        raise CheckpointError("the live model has no gated_cross_attn_layer in any decoder layer")
    return blocks[0] + 1


def _head_width(theirs: Any) -> int:
    """Width of an attention head, by the resampler's ``heads`` or ``head_width``; 64 if it has neither."""
    attention = theirs.perceiver.layers[0][0]
    heads = getattr(attention, "heads", None)
    return attention.to_q.weight.shape[0] // heads if isinstance(heads, int) else getattr(attention, "head_width", 64)
