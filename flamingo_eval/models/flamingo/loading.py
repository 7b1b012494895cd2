"""Loads a checkpoint's parts as a model on its device, in its precision."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from flamingo_eval.core.errors import CheckpointError, DeviceMemoryError
from flamingo_eval.devices import autocast, free_memory, is_out_of_memory, memory_errors, numerics
from flamingo_eval.libraries import host_as_it_was, reason_of
from flamingo_eval.models.flamingo.adapter import Caching, FlamingoModel
from flamingo_eval.models.flamingo.checkpoint import read_state_dict, sort_keys
from flamingo_eval.models.flamingo.cross_attention import Media
from flamingo_eval.models.flamingo.hosts import Host
from flamingo_eval.models.flamingo.model import Flamingo, assemble, check_counts, load_language, stored_dtype
from flamingo_eval.models.flamingo.prefix import check_side_by_side
from flamingo_eval.models.flamingo.spec import FlamingoSpec
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer
from flamingo_eval.models.flamingo.vision import PatchTokens, load_clip
from flamingo_eval.storage.hub import fetch, snapshot
from flamingo_eval.storage.part_files import HubFile

_WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp_bf16": torch.float32}


def load_model(
    spec: FlamingoSpec,
    *,
    device: str,
    precision: str,
    kind: type[FlamingoModel] = FlamingoModel,
    caching: Caching | None = None,
) -> FlamingoModel:
    """Builds a Flamingo from its parts and loads its weights.

    Raises:
        CheckpointError: a part is missing or does not fit; the message names it.
    """
    with host_as_it_was(), numerics(device):
        return _load(spec, device=device, precision=precision, kind=kind, caching=caching)


def _load(
    spec: FlamingoSpec,
    *,
    device: str,
    precision: str,
    kind: type[FlamingoModel],
    caching: Caching | None,
) -> FlamingoModel:
    """See :func:`load_model`."""
    dtype = _WEIGHTS[precision]
    clip, transform = load_clip(spec.vision)
    vision = PatchTokens(clip.get_submodule("visual"))
    del clip  # its text encoder is not needed
    source = in_cache(spec.language.model)
    stored = stored_dtype(source) if precision == "amp_bf16" and spec.language.decoder_layers is None else None
    language, host = load_language(source, stored or dtype, spec.language.decoder_layers)
    if stored is not None:
        widen_around(language, host)
    tokenizer = FlamingoTokenizer(in_cache(spec.language.tokenizer), tidies_spaces=host.tidies_spaces)
    path = fetch(spec.checkpoint) if isinstance(spec.checkpoint, HubFile) else spec.checkpoint
    layers = len(language.get_submodule(host.decoder_path))  # type: ignore[arg-type]  # a ModuleList
    trained = sort_keys(read_state_dict(path), host, layers, spec.cross_attn_every_n_layers, str(path))
    model = assemble(
        vision=vision,
        language=language,
        host=host,
        trained=trained,
        vocabulary=len(tokenizer),
        head_width=spec.head_width,
    )
    check_counts(model, spec)
    if spec.language.decoder_layers is not None:
        check_side_by_side(model)
    model = model.eval().requires_grad_(False)
    cast = cast_ahead(model) if precision == "amp_bf16" else set[int]()  # before anything is copied or made wider
    model = in_precision(model, dtype, copy=torch.device(device).type == "cpu", besides=cast)
    with memory_errors(f"checkpoint {spec.name} does not fit into the memory of {device}"):
        model = model.to(device)
    with autocast(torch.device(device), precision):
        probe(model, tokenizer.image_id, spec.name)
    free_memory()  # what loading does not need any more
    return kind(model, tokenizer, transform, precision=precision, caching=caching)


def in_cache(source: str | Path) -> str | Path:
    """A repository's folder in the hub's cache if all of it is there, else its name. Returns a folder as it is."""
    return source if isinstance(source, Path) else snapshot(source) or source


def widen_around(language: nn.Module, host: Host) -> None:
    """Converts all weights to float32, except those of linear layers in the decoder layers. Trained embeddings replace
    the old ones next, and must not be rounded to the type that the old ones were stored in."""
    layers = language.get_submodule(host.decoder_path)
    matrices = (module for module in layers.modules() if isinstance(module, nn.Linear))
    inner = {id(parameter) for module in matrices for parameter in module.parameters(recurse=False)}
    for parameter in language.parameters():
        if id(parameter) not in inner:
            parameter.data = parameter.data.float()


def in_precision(model: Flamingo, dtype: torch.dtype, *, copy: bool = True, besides: Collection[int] = ()) -> Flamingo:
    """Converts a model's weights to another type, in place. Buffers keep theirs: rotary frequencies must stay float32.

    Args:
        model: the model. Its weights may still be mapped to files, and would change with the files during a run.
        dtype: the type.
        copy: copy weights that have that type already; not needed if the model goes to another device next.
        besides: ``id`` of weights that have their final type already.
    """
    for parameter in model.parameters():
        if id(parameter) not in besides:
            parameter.data = parameter.data.to(dtype, copy=copy)
    if copy:
        for buffer in model.buffers():
            buffer.data = buffer.data.clone()
    return model


@torch.inference_mode()
def probe(model: Flamingo, image_id: int, name: str) -> None:
    """Runs a prompt of two tokens, so that wrong sizes in a configuration are found here, not by the first query.

    Raises:
        CheckpointError: the model can't be run.
    """
    latents = model.perceiver.latents
    ids = torch.tensor([[image_id, image_id]], device=latents.device)
    media = Media.of(torch.zeros(1, 2, *latents.shape, dtype=latents.dtype, device=latents.device), ids, image_id)
    try:
        model(ids, torch.ones_like(ids), media)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(f"checkpoint {name} leaves no memory to answer in: {reason_of(error)}") from error
        raise CheckpointError(f"checkpoint {name} can't be run: {reason_of(error)}") from error


def cast_ahead(model: Flamingo) -> set[int]:
    """Casts once the weights that autocast would cast for every product, again at each decoding step.

    (Autocast remembers casts only of weights that are being trained.) The arithmetic stays the same, and the language
    model takes half the memory. Vision tower and resampler stay float32: ranking encodes images outside autocast.

    Returns:
        ``id`` of the weights that are cast.
    """
    cast: set[int] = set()
    for part in (model.language, model.blocks):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                for name, parameter in list(module.named_parameters(recurse=False)):
                    # a new parameter: one shared with an embedding must stay as it is there
                    own = nn.Parameter(parameter.to(torch.bfloat16, copy=True), requires_grad=False)
                    setattr(module, name, own)
                    cast.add(id(own))
    return cast
