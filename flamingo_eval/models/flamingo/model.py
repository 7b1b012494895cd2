"""The Flamingo itself: vision tower, resampler, and gated cross-attention hooked into an unmodified decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.paths import is_file
from flamingo_eval.libraries import loading
from flamingo_eval.models.flamingo.checkpoint import TrainedPart, describe_keys, load_exactly
from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock, MediaAttention
from flamingo_eval.models.flamingo.hosts import HOSTS, Host, generic_host, host_for
from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
from flamingo_eval.models.flamingo.spec import FlamingoSpec
from flamingo_eval.storage.part_files import model_files, read_object, weight_files
from flamingo_eval.weights import (
    StateDict,
    check_language_folder,
    check_values,
    read_torch,
    unwrapped,
)


class Flamingo(nn.Module):
    """A vision-language model in OpenFlamingo's architecture.

    Args:
        vision: images (n, 3, height, width) -> patch tokens (n, tokens, vision width).
        perceiver: patch tokens -> latents (n, n_latents, vision width).
        blocks: decoder layer number, as text -> the block that runs before that layer.
        language: a Hugging Face causal language model; its own code and weights stay as they are.
        host: its family.
    """

    def __init__(
        self,
        *,
        vision: nn.Module,
        perceiver: PerceiverResampler,
        blocks: Mapping[int, GatedCrossAttentionBlock],
        language: nn.Module,
        host: Host,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.perceiver = perceiver
        self.blocks = nn.ModuleDict({str(i): block for i, block in blocks.items()})
        self.language: Any = language
        self.host = host
        self._media: MediaAttention | None = None
        layers = list(language.get_submodule(host.decoder_path).children())
        self.decoder_layers = len(layers)
        for i, layer in enumerate(layers):
            if str(i) in self.blocks:
                layer.register_forward_pre_hook(self._hook(self.blocks[str(i)]), with_kwargs=True)

    def _hook(self, block: nn.Module) -> Any:
        """A forward pre-hook that lets a block rewrite the hidden states its decoder layer receives."""

        def run_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if self._media is None:
                raise RuntimeError("the language model ran outside Flamingo.attending_to(...)")
            if args:
                return (block(args[0], self._media), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": block(kwargs["hidden_states"], self._media)}

        return run_block

    @contextmanager
    def attending_to(self, media: MediaAttention) -> Iterator[None]:
        """Within this context the language model's tokens attend to these latents."""
        self._media = media
        try:
            yield
        finally:
            self._media = None

    @contextmanager
    def with_key_positions(self, depths: Tensor) -> Iterator[None]:
        """Within this context ``depths``, (keys,), are the positions of the cache's keys in their own sequences."""
        if self.host.place_keys is None:
            yield
            return
        self.host.place_keys(self.language, depths)
        try:
            yield
        finally:
            self.host.place_keys(self.language, None)

    def encode(self, pixels: Tensor) -> Tensor:
        """Images (n, 3, height, width) -> latents (n, n_latents, width)."""
        latents: Tensor = self.perceiver(self.vision(pixels))
        return latents

    def forward(self, input_ids: Tensor, attention_mask: Tensor, media: MediaAttention) -> Tensor:
        """Logits (rows, length, vocabulary) of left-padded prompts."""
        with self.attending_to(media):
            logits: Tensor = self.language(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(source: str | Path) -> torch.dtype | None:
    """The type that a language model's weights are stored in, in the files that transformers loads. None if there are
    several, or if ``source`` is not a folder. Loaded in this type, weights take no more memory than their files, and
    lose no precision."""
    if not isinstance(source, Path) or not is_file(source / "config.json"):
        return None
    kinds: set[torch.dtype | None] = set()
    for file in weight_files(source, read_object(source / "config.json")):
        if file.suffix == ".safetensors":
            with loading(f"weights {file}", [file]), safe_open(file, framework="pt") as weights:
                names = {str(weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118  # no mapping
            kinds |= {_STORED.get(name) for name in names if name.startswith(("F", "BF"))}
        elif file.suffix != ".json":
            kinds |= {value.dtype for value in unwrapped(read_torch(file), file).values() if value.is_floating_point()}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind in _STORED.values() else None


def load_language(source: str | Path, dtype: torch.dtype, decoder_layers: str | None = None) -> tuple[nn.Module, Host]:
    """The language model, on the CPU in ``dtype``, and its host; never runs code from the hub.

    Args:
        source: hub name or folder.
        dtype: type of its weights.
        decoder_layers: path of its decoder layers, for a family that is not known.

    Raises:
        CheckpointError: not found, not readable, or of a family that is not supported.
    """
    local = source if isinstance(source, Path) else None
    if local is not None:
        check_language_folder(local)
    where = f"the language model's configuration {local / 'config.json' if local else source}"
    with loading(where):
        table, _ = PreTrainedConfig.get_config_dict(str(source))
        model_type = str(table.get("model_type"))
        try:
            host = HOSTS.get(model_type) if decoder_layers else host_for(model_type)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        own = host.model_class if host else None
        settings = {} if own else {"trust_remote_code": False}
        config = (own.config_class if own else AutoConfig).from_pretrained(str(source), **settings)
        if host and host.check:
            host.check(config)
    with loading(f"the language model {source}", model_files(local, weights=True) if local else ()):
        model, report = (own or AutoModelForCausalLM).from_pretrained(
            str(source), config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    if decoder_layers and (host is None or host.decoder_path != decoder_layers):
        host = generic_host(model, model_type, decoder_layers)
    tied = set(model.all_tied_weights_keys)
    missing = sorted(set(report["missing_keys"]) - tied)
    unexpected = sorted({*report["unexpected_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing or unexpected:  # transformers would initialise missing weights at random and only log it
        wrapped = sorted({key.partition(".")[0] for key in unexpected if key.startswith(("_orig_mod.", "module."))})
        hint = f"; the names begin with {wrapped[0]}: save the model inside that wrapper" if wrapped else ""
        raise CheckpointError(
            f"the language model {source} has other tensors than it should: {describe_keys(missing, unexpected)}{hint}"
        )
    check_values(model.named_parameters(), str(source))
    # the repository's sampling settings must not leak into the protocol's decoding
    model.generation_config = GenerationConfig()
    if host is None:
        raise AssertionError("a model was loaded without a host")
    return model.eval(), host


def assemble(
    *, vision: nn.Module, language: nn.Module, host: Host, trained: TrainedPart, vocabulary: int, head_width: int
) -> Flamingo:
    """Puts the trained part around the language model; sizes are read from the tensors.

    Args:
        vocabulary: number of tokens in the tokenizer, special ones included. Embeddings must have as many rows, or be
            padded to a multiple of 64 (``pad_to_multiple_of=64``); the padding stays as it was trained.

    Raises:
        CheckpointError: tensors don't fit; the message names them.
    """
    resize_embeddings(language, trained, vocabulary)
    return assemble_parts(vision=vision, language=language, host=host, trained=trained, head_width=head_width)


def assemble_parts(
    *, vision: nn.Module, language: nn.Module, host: Host, trained: TrainedPart, head_width: int
) -> Flamingo:
    """Like :func:`assemble`, for a language model with its embeddings in place; tensors are used as they are."""
    with torch.device("meta"):
        perceiver = _perceiver_like(trained.perceiver, head_width)
        blocks = {i: _block_like(state, head_width) for i, state in trained.blocks.items()}
    load_exactly(perceiver, trained.perceiver, "perceiver.")
    for i, block in blocks.items():
        load_exactly(block, trained.blocks[i], f"lang_encoder.{host.decoder_path}.{i}.gated_cross_attn_layer.")
    return Flamingo(vision=vision, perceiver=perceiver, blocks=blocks, language=language, host=host)


def resize_embeddings(language: Any, trained: TrainedPart, vocabulary: int) -> None:
    """Resizes the language model's embeddings to ``vocabulary`` rows, more or fewer, and sets the trained values.

    The trained tensors replace the old ones, which are never read, so that neither is in memory twice.
    """
    inputs, output = language.get_input_embeddings(), language.get_output_embeddings()
    vocabulary = rows_of(trained, language, inputs, vocabulary)
    tied = output is not None and output.weight is inputs.weight
    resized = {id(module.weight) for module in (inputs, output) if module is not None}
    parameters = dict(language.named_parameters(remove_duplicate=False))
    filled: dict[int, Tensor] = {}
    for name, tensor in trained.embeddings.items():
        old = parameters[name]
        wanted = (vocabulary, *old.shape[1:]) if id(old) in resized else tuple(old.shape)
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"the checkpoint's embeddings ({name}) have shape {tuple(tensor.shape)}, the language model with "
                f"this tokenizer {wanted}: wrong tokenizer or wrong language model"
            )
        before_it = filled.setdefault(id(old), tensor)
        if before_it is not tensor and not torch.equal(before_it, tensor):
            raise CheckpointError(f"the checkpoint holds a tied tensor twice, and not the same: {name}")
        _replace(language, name, before_it.to(old.dtype))
    if tied:
        output.weight = inputs.weight
    inputs.num_embeddings = language.config.get_text_config().vocab_size = vocabulary
    if inputs.padding_idx is not None and inputs.padding_idx >= vocabulary:
        inputs.padding_idx = None
    if output is not None:
        output.out_features = vocabulary
        _extend_outputs(output, vocabulary)


def rows_of(trained: TrainedPart, language: nn.Module, inputs: nn.Module, vocabulary: int) -> int:
    """Rows of the trained embeddings if they are the vocabulary padded to a multiple of 64, else ``vocabulary``."""
    own = {name for name, parameter in language.named_parameters(remove_duplicate=False) if parameter is inputs.weight}
    for name in own & trained.embeddings.keys():
        rows = trained.embeddings[name].shape[:1]
        if rows == (padded_rows(vocabulary),):
            return int(rows[0])
    return vocabulary


def padded_rows(vocabulary: int) -> int:
    """A number of tokens, rounded up to a multiple of 64.

    >>> padded_rows(50_280)
    50304
    """
    return -(-vocabulary // 64) * 64


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, nn.Parameter(value, requires_grad=False))


def _extend_outputs(output: nn.Module, vocabulary: int) -> None:
    """Adds zero rows for added tokens to an output layer that is not in the checkpoint, such as LLaMA's.

    (In the reference these rows are random, different at each start; transformers 5 would use the old rows' mean.)
    """
    for name, old in list(output.named_parameters()):
        if old.shape[0] != vocabulary:
            rows = old.new_zeros(vocabulary, *old.shape[1:])
            kept = min(vocabulary, old.shape[0])
            rows[:kept] = old.detach()[:kept]
            _replace(output, name, rows)


def _perceiver_like(state: Mapping[str, Tensor], head_width: int) -> PerceiverResampler:
    first = "layers.0."
    for key in ("latents", first + "0.to_q.weight", first + "1.1.weight"):
        if key not in state:
            raise CheckpointError(f"checkpoint has no perceiver.{key}")
    n_latents, width = _matrix(state, "latents", "perceiver.")
    inner, _ = _matrix(state, first + "0.to_q.weight", "perceiver.")
    hidden, _ = _matrix(state, first + "1.1.weight", "perceiver.")
    numbers = {part[1] for key in state if (part := key.split("."))[0] == "layers" and len(part) > 2}
    if numbers != {str(i) for i in range(len(numbers))}:
        raise CheckpointError(
            f"checkpoint has perceiver layers {', '.join(sorted(numbers)[:9])}: they must count from 0"
        )
    _check_heads(inner, head_width, "perceiver")
    return PerceiverResampler(
        width=width,
        n_latents=n_latents,
        depth=len(numbers),
        inner=inner,
        head_width=head_width,
        hidden=hidden,
    )


def _block_like(state: Mapping[str, Tensor], head_width: int) -> GatedCrossAttentionBlock:
    for key in ("attn.to_q.weight", "attn.to_kv.weight", "ff.1.weight"):
        if key not in state:
            raise CheckpointError(f"checkpoint has no gated_cross_attn_layer.{key}")
    inner, width = _matrix(state, "attn.to_q.weight", "gated_cross_attn_layer.")
    _, media_width = _matrix(state, "attn.to_kv.weight", "gated_cross_attn_layer.")
    hidden, _ = _matrix(state, "ff.1.weight", "gated_cross_attn_layer.")
    _check_heads(inner, head_width, "cross-attention")
    return GatedCrossAttentionBlock(
        width=width,
        media_width=media_width,
        inner=inner,
        head_width=head_width,
        hidden=hidden,
    )


def _matrix(state: Mapping[str, Tensor], key: str, prefix: str) -> tuple[int, int]:
    """Rows and columns of a tensor. Raises CheckpointError unless it has two dimensions, none empty."""
    shape = state[key].shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"checkpoint tensor {prefix}{key} has shape {tuple(shape)}, expected rows and columns")
    return shape[0], shape[1]


def _check_heads(inner: int, head_width: int, where: str) -> None:
    if inner % head_width:
        raise CheckpointError(f"{where} is {inner} wide, which heads of {head_width} don't divide: set head_width")


PERCEIVER_PARAMETERS = 63_019_008
"""Parameters of the resampler in every released checkpoint (6 layers, 64 latents, width 1,024)."""


def check_counts(model: Flamingo, spec: FlamingoSpec) -> None:
    """Raises CheckpointError if a released checkpoint does not have as many parameters as published."""
    if spec.block_parameters is None:
        return
    if spec.trained_parameters is not None:
        names = set(model.host.embeddings.values())
        embeddings = [p for name, p in model.language.named_parameters() if name in names]
        total = _count(model.perceiver) + _count(model.blocks) + sum(p.numel() for p in embeddings)
        if total != spec.trained_parameters:
            raise CheckpointError(
                f"{spec.name}: the trained part has {total:,} parameters, published are {spec.trained_parameters:,}"
            )
    counted = {f"block {i}": (_count(block), spec.block_parameters) for i, block in model.blocks.items()}
    counted["perceiver"] = (_count(model.perceiver), PERCEIVER_PARAMETERS)
    for name, (found, published) in counted.items():
        if found != published:
            raise CheckpointError(f"{spec.name}: {name} has {found:,} parameters, published are {published:,}")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def released_layout(model: Flamingo, host: Host) -> StateDict:
    """The trained part of a Flamingo as a state dict in the released layout (v2), ready for ``torch.save``."""
    names = {parameter: key for key, parameter in host.embeddings.items()}
    state = {f"perceiver.{key}": value for key, value in model.perceiver.state_dict().items()}
    for i, block in model.blocks.items():
        prefix = f"lang_encoder.{host.decoder_path}.{i}.gated_cross_attn_layer."
        state |= {prefix + key: value for key, value in block.state_dict().items()}
    language = model.language.state_dict()
    state |= {f"lang_encoder.{key}": language[name] for name, key in names.items()}
    return {key: value.detach().cpu().clone() for key, value in state.items()}
