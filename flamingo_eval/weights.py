"""Weights and configurations on the disk, checked before other libraries load them. Messages name the file."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.paths import exists, open_regular
from flamingo_eval.libraries import loading
from flamingo_eval.storage.part_files import read_object, weight_files

StateDict = dict[str, Tensor]

_WRAPPERS = ("model_state_dict", "state_dict", "model")
WRAPPED_MODULES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Name parts that torch.compile, FSDP and activation checkpointing insert into the names of parameters."""

_MOST_LAYERS, _MOST_WIDE, _MOST_LABELS = 4096, 2**24, 100_000
_LAYERS = re.compile(r"(num_.*layers|n_layers?|layers|depth|.*_heads|heads|n_head)")


def read_torch(path: Path) -> Any:
    """Loads a file of ``torch.save``, with tensors memory-mapped where the format allows it; never runs code.

    Raises:
        CheckpointError: not such a file, truncated, compressed, or a pickle that would run code; the message states
            which.
    """
    with loading(f"checkpoint {path}", [path]):
        with open_regular(path) as file:
            archive = zipfile.is_zipfile(file)  # before torch 1.6 files were bare pickles, which can't be mapped
            if archive and any(part.compress_type != zipfile.ZIP_STORED for part in zipfile.ZipFile(file).infolist()):
                raise CheckpointError(f"checkpoint {path} is compressed; torch.save compresses nothing")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def unwrapped(loaded: Any, path: Path) -> StateDict:
    """The flat state dict in an object that a training script saved, with the names of the model's parameters.

    Raises:
        CheckpointError: there is no state dict, or two tensors get the same name.
    """
    state = loaded
    for _ in range(3):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state, dict) and key in state), None)
        if isinstance(inner, dict):
            state = inner
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"checkpoint {path} is not a state dict (a mapping from names to tensors)")
    renamed = {_plain_name(str(key)): value for key, value in state.items()}
    if len(renamed) != len(state):
        raise CheckpointError(f"checkpoint {path} holds tensors under names that differ only by their wrappers")
    return renamed


def _plain_name(key: str) -> str:
    """Removes wrappers from the name of a tensor.

    >>> _plain_name("module.module._orig_mod.perceiver._orig_mod.latents")
    'perceiver.latents'
    """
    parts = [part for part in key.split(".") if part not in WRAPPED_MODULES]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def check_file(path: Path) -> set[str]:
    """Names of the tensors in a weights file; refuses tensors of a kind that would be misread silently.

    Only types are checked here; values are checked once they are loaded (:func:`check_values`).

    Raises:
        CheckpointError: the file can't be read, holds no tensors, or holds one that is complex, sparse or quantised, or
            a weight that is not floating-point.
    """
    if path.suffix == ".safetensors":
        with loading(f"weights {path}", [path]), safe_open(path, framework="pt") as file:
            kinds = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118  # no mapping
        for name, kind in kinds.items():
            if kind.startswith("C") or (name.endswith("weight") and kind.startswith(("I", "U", "BOOL"))):
                raise _not_floating(path, name, kind)
        names = set(kinds)
    else:
        loaded = read_torch(path)
        state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
        if not isinstance(state, dict):
            raise CheckpointError(f"weights {path} are not a state dict (a mapping from names to tensors)")
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        for name, tensor in tensors.items():
            check_kind(path, name, tensor, floating=name.endswith("weight") and tensor.numel() > 1)
        names = set(tensors)
    if not names:
        raise CheckpointError(f"weights {path} hold no tensors")
    return names


def check_kind(path: Path, name: str, tensor: Tensor, *, floating: bool) -> None:
    """Refuses a tensor that a module would accept, but convert to something else.

    Args:
        path: the file, for the message.
        name: the tensor's name.
        tensor: the tensor.
        floating: whether it must hold floating-point numbers; a buffer need not.

    Raises:
        CheckpointError: the tensor is refused; the message names file and tensor.
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{path}: tensor {name} is sparse or quantised; weights must be plain tensors")
    if tensor.numel() > path.stat().st_size:  # one value repeated by a stride of 0
        raise CheckpointError(f"{path}: tensor {name} has {tensor.numel():,} values, more than the file has bytes")
    if tensor.is_complex() or (floating and not tensor.is_floating_point()):
        raise _not_floating(path, name, tensor.dtype)


def _not_floating(path: Path, name: str, kind: object) -> CheckpointError:
    return CheckpointError(f"{path}: tensor {name} is of type {kind}; weights must be floating-point numbers")


def check_values(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuses weights with NaN or infinite values, which would make every answer useless.

    Args:
        tensors: (name, weights).
        where: what they were loaded from, for the message.

    Raises:
        CheckpointError: a value is not finite; the message names the tensor.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            low, high = (tensor if tensor.element_size() > 1 else tensor.float()).aminmax()  # 8-bit types lack aminmax
            if not (low.isfinite() and high.isfinite()):
                raise CheckpointError(f"{where}: tensor {name} holds values that are no numbers in {tensor.dtype}")


def check_language_folder(folder: Path) -> None:
    """Checks the files that transformers will load from a model's folder.

    Raises:
        CheckpointError: a file is refused; the message names it, and the tensor if the reason is a tensor.
    """
    config = read_object(folder / "config.json")
    for file in sorted(folder.glob("config*.json")):  # configuration_files may select another one
        check_sizes(file, read_object(file))
    for name in ("generation_config.json", "adapter_config.json"):
        if exists(folder / name):
            read_object(folder / name)
    for file in weight_files(folder, config):
        if file.suffix != ".json":
            check_file(file)


def check_sizes(path: Path, table: Mapping[str, Any]) -> None:
    """Refuses sizes, such as numbers of layers and heads, that no model has and that would take hours to build.

    Raises:
        CheckpointError: a size is refused; the message names file and key.
    """
    for key, value in table.items():
        if isinstance(value, dict):
            check_sizes(path, value)
        elif type(value) is int and _LAYERS.fullmatch(key) and not 0 <= value <= _MOST_LAYERS:
            raise CheckpointError(f"{path}: {key} is {str(value)[:20]}, expected 0 to {_MOST_LAYERS}")
        elif type(value) is int and key == "num_labels" and value > _MOST_LABELS:  # a dictionary of this size is made
            raise CheckpointError(f"{path}: {key} is {str(value)[:20]}, expected at most {_MOST_LABELS}")
        elif type(value) is int and key.endswith(("_size", "width", "d_model", "_dim")) and abs(value) > _MOST_WIDE:
            raise CheckpointError(f"{path}: {key} is {str(value)[:20]}, expected at most {_MOST_WIDE}")


def module_digest(module: nn.Module) -> str:
    """Digest of all tensors, names included."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
