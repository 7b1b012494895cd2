"""Reading a released-layout checkpoint: unwrap, rename, and account for every key.

Layout v2, of the OpenFlamingo checkpoints, has ``perceiver.*``,
``lang_encoder.<decoder path>.<i>.gated_cross_attn_layer.*`` and the embeddings. It may be wrapped in
``model_state_dict``, its keys may have a ``module.`` prefix, and buffers of old decoder layers are ignored.
Layout v1 (the deprecated 9B) also holds the same blocks as ``lang_encoder.gated_cross_attn_layers.<i>.*``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.paths import is_file
from flamingo_eval.models.flamingo.hosts import Host
from flamingo_eval.weights import StateDict, check_kind, check_values, read_torch, unwrapped

# buffers that transformers 4.28 kept in its decoder layers and that carry no weights
_OLD_BUFFER = re.compile(
    r"\.(decoder_layer|old_decoder_blocks)\..*(attention\.bias|attention\.masked_bias|rotary_emb\.inv_freq)$"
)
_V1_BLOCK = re.compile(r"lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TrainedPart:
    """The trained tensors, sorted by the module they belong to.

    Attributes:
        perceiver: the resampler's state dict.
        blocks: decoder layer number -> state dict of the gated cross-attention block before it.
        embeddings: parameter name in the transformers class -> tensor.
    """

    perceiver: StateDict
    blocks: dict[int, StateDict]
    embeddings: StateDict


def read_state_dict(path: Path) -> StateDict:
    """Reads the flat state dict in a checkpoint file; tensors stay memory-mapped until they are used.

    Removes the wrappers that training scripts leave around the state dict and in the names of its tensors.

    Raises:
        CheckpointError: not a file, truncated, not a pickled state dict, a pickle that would run code, or a tensor with
            a type or values that weights can't have.
    """
    if not is_file(path):
        raise CheckpointError(f"checkpoint {path} is not a file")
    state = unwrapped(read_torch(path), path)
    for key, tensor in state.items():
        check_kind(path, key, tensor, floating=not _OLD_BUFFER.search(key))
    check_values(((key, tensor) for key, tensor in state.items() if not _OLD_BUFFER.search(key)), str(path))
    return state


def sort_keys(state: Mapping[str, Tensor], host: Host, layers: int, every: int, source: str) -> TrainedPart:
    """Assigns every tensor to its module.

    Args:
        state: flat state dict.
        host: the language model's family.
        layers: number of decoder layers of the language model.
        every: ``cross_attn_every_n_layers``; layer i has a block when (i + 1) % every == 0.
        source: name of the file, for messages.

    Raises:
        CheckpointError: keys are missing or unexpected; the message names them.
    """
    block_key = re.compile(rf"lang_encoder\.{re.escape(host.decoder_path)}\.(\d+)\.gated_cross_attn_layer\.(.+)")
    perceiver: StateDict = {}
    blocks: dict[int, StateDict] = {i: {} for i in range(layers) if (i + 1) % every == 0}
    embeddings: StateDict = {}
    unexpected: list[str] = []
    copies: dict[str, Tensor] = {}
    known = {**host.embeddings, **host.optional}
    for key, tensor in state.items():
        match = block_key.fullmatch(key)
        if key.startswith("perceiver."):
            perceiver[key.removeprefix("perceiver.")] = tensor
        elif match and int(match[1]) in blocks:
            blocks[int(match[1])][match[2]] = tensor
        elif key.removeprefix("lang_encoder.") in known and key.startswith("lang_encoder."):
            name = known[key.removeprefix("lang_encoder.")]
            _check_copy(embeddings.get(name), tensor, key)
            embeddings[name] = tensor
        elif _V1_BLOCK.fullmatch(key):
            copies[key] = tensor
        elif not _OLD_BUFFER.search(key):
            unexpected.append(key)
    for key, tensor in copies.items():
        layer, name = _V1_BLOCK.fullmatch(key).groups()  # type: ignore[union-attr]  # it matched above
        if int(layer) not in blocks:
            unexpected.append(key)
            continue
        _check_copy(blocks[int(layer)].get(name), tensor, key)
        blocks[int(layer)][name] = tensor
    missing = [f"lang_encoder.{key}" for key, name in host.embeddings.items() if name not in embeddings]
    missing += [f"lang_encoder.{host.decoder_path}.{i}.gated_cross_attn_layer.*" for i, b in blocks.items() if not b]
    missing += ["perceiver.*"] if not perceiver else []
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not fit a {host.model_type} model of {layers} layers with cross-attention every {every}: "
            + describe_keys(missing, unexpected)
            + _spacing_hint(state, block_key, layers, every)
        )
    return TrainedPart(perceiver, blocks, embeddings)


def _spacing_hint(state: Iterable[str], block_key: re.Pattern[str], layers: int, every: int) -> str:
    """The end of a message: which ``cross_attn_every_n_layers`` fits the file's blocks; empty if no other one does."""
    found = {int(match[1]) for key in state if (match := block_key.fullmatch(key) or _V1_BLOCK.fullmatch(key))}
    for other in range(1, layers + 1):
        if other != every and found == {i for i in range(layers) if (i + 1) % other == 0}:
            return f"; its blocks fit cross_attn_every_n_layers = {other}"
    return ""


def _check_copy(known: Tensor | None, tensor: Tensor, key: str) -> None:
    """Raises CheckpointError if a tensor occurs twice with different values."""
    if known is not None and not torch.equal(known, tensor):
        raise CheckpointError(f"the checkpoint holds a tensor twice, and not the same: {key}")


def describe_keys(missing: Iterable[str], unexpected: Iterable[str], at_most: int = 6) -> str:
    """Names missing and unexpected keys, the first few of each."""
    parts = []
    for word, keys in (("missing", list(missing)), ("unexpected", list(unexpected))):
        if keys:
            more = f" and {len(keys) - at_most} more" if len(keys) > at_most else ""
            parts.append(f"{len(keys)} {word} ({', '.join(keys[:at_most])}{more})")
    return "; ".join(parts)


def load_exactly(module: torch.nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Assigns a state dict to a module built on the meta device; every key and every shape must fit.

    Raises:
        CheckpointError: names the keys, or the shapes, that don't fit.
    """
    expected = {key: value.shape for key, value in module.state_dict().items()}
    missing = [prefix + key for key in expected.keys() - state.keys()]
    unexpected = [prefix + key for key in state.keys() - expected.keys()]
    if missing or unexpected:
        raise CheckpointError(f"checkpoint keys don't fit: {describe_keys(sorted(missing), sorted(unexpected))}")
    for key, shape in expected.items():
        if state[key].shape != shape:
            raise CheckpointError(
                f"checkpoint tensor {prefix}{key} has shape {tuple(state[key].shape)}, expected {tuple(shape)}"
            )
    module.load_state_dict(dict(state), strict=True, assign=True)
