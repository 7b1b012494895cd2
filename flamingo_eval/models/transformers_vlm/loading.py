"""From a checkpoint's files, or from a live model, to a model that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.prompting import is_chat
from flamingo_eval.core.protocols import Renderer
from flamingo_eval.devices import memory_errors, numerics
from flamingo_eval.libraries import host_as_it_was, loading, reason_of
from flamingo_eval.models.transformers_vlm.adapter import VlmModel
from flamingo_eval.models.transformers_vlm.batching import Footprint
from flamingo_eval.models.transformers_vlm.budget import image_settings
from flamingo_eval.models.transformers_vlm.checkpoint import LIST, PREFIX, needs_code
from flamingo_eval.models.transformers_vlm.families import family_of
from flamingo_eval.models.transformers_vlm.features import FeatureCache
from flamingo_eval.models.transformers_vlm.generation import Generator
from flamingo_eval.models.transformers_vlm.plain import PlainVlmModel
from flamingo_eval.models.transformers_vlm.probing import check_taken_apart
from flamingo_eval.models.transformers_vlm.reading import Reader
from flamingo_eval.models.transformers_vlm.template import switches_of
from flamingo_eval.models.transformers_vlm.tower import Tower
from flamingo_eval.weights import check_values

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp_bf16": torch.float32}


@dataclass(frozen=True)
class Shown:
    """How a model is shown prompts.

    Attributes:
        renderer: how they are written.
        template: of conversations, if it has one.
        switches: of the template, as far as they are given.
        image_tokens: at most so many for an image.
        max_pixels: at most so many of an image.
    """

    renderer: Renderer
    template: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    image_tokens: int | None = None
    max_pixels: int | None = None


def check_architecture(config: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError for an architecture that transformers does not know, or that would need foreign code."""
    kind = config.get("model_type")
    if kind in KNOWN:
        return
    if needs_code(config):
        raise CheckpointError(
            f"{PREFIX}{name}: its architecture {kind!r} needs code from its repository (auto_map), which is never run"
        )
    raise CheckpointError(
        f"{PREFIX}{name}: transformers has no image-text-to-text model for the architecture {kind!r}; those that it "
        f"has: {LIST}"
    )


def load_processor(folder: Path, name: str) -> Any:
    """A checkpoint's processor. Raises CheckpointError."""
    what = f"the processor of {PREFIX}{name}"
    with host_as_it_was(), loading(what):
        try:
            processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except ImportError as error:  # num2words, sentencepiece: it names the package
            raise CheckpointError(f"{what} wants a package: {reason_of(error)}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise CheckpointError(f"{what} is a {type(processor).__name__}: it prepares no images and texts together")
    return processor


def load_network(folder: Path, name: str, *, device: str, precision: str, device_map: str | None) -> Any:
    """A checkpoint's model, on its device. Raises CheckpointError, DeviceMemoryError."""
    placing = {} if device_map is None else {"device_map": device_map}
    with (
        host_as_it_was(),
        numerics(device),
        memory_errors(f"{PREFIX}{name} does not fit into the memory of {device_map or device}"),
        loading(f"{PREFIX}{name}"),
    ):
        model, said = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=DTYPES[precision], use_safetensors=True, trust_remote_code=False, local_files_only=True,
            output_loading_info=True, **placing,
        )  # fmt: skip
        check_values(model.named_parameters(), f"{PREFIX}{name}")
        missing = sorted(said.get("missing_keys") or ())
        if missing:
            raise CheckpointError(
                f"{PREFIX}{name}: its weights lack {', '.join(missing[:6])}{' ...' * (len(missing) > 6)}; these would "
                "be random numbers"
            )
        model = model.eval().requires_grad_(False)
        return model if device_map else model.to(device)


def make_reader(processor: Any, config: Mapping[str, Any], shown: Shown, name: str) -> Reader:
    """A processor taken apart, for the way that prompts are shown. Raises CheckpointError, UserError."""
    switches = switches_of(shown.template, shown.switches, name) if is_chat(shown.renderer) else {}
    settings = image_settings(processor, shown.image_tokens, shown.max_pixels)
    with host_as_it_was(), loading(f"the processor of {PREFIX}{name}"):
        family = family_of(str(config["model_type"]))
        reader = Reader(
            processor, family, shown.renderer, template=shown.template, switches=switches, settings=settings
        )
    reader.check_template(name)
    reader.check_budget(shown.image_tokens, shown.max_pixels)
    return reader


def tokens_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Which tokens begin, end and pad a text; of what else a checkpoint says of generating nothing applies."""
    own, text = model.generation_config, model.config.get_text_config()
    found = {
        name: next(
            (value for one in (own, model.config, text, tokenizer) if (value := getattr(one, name, None)) is not None),
            None,
        )
        for name in ("eos_token_id", "bos_token_id", "pad_token_id")
    }
    ends = found["eos_token_id"]
    first = ends[0] if isinstance(ends, list) and ends else ends
    if found["pad_token_id"] is None or found["pad_token_id"] < 0:
        found["pad_token_id"] = first if isinstance(first, int) else 0
    return found


def build(
    model: Any,
    reader: Reader,
    processor: Any,
    *,
    precision: str,
    cache: FeatureCache,
    plain: bool,
    name: str,
) -> VlmModel:
    """A model that answers: by the fast paths, or, where these do not hold for it, by the plain one.

    Raises:
        CheckpointError: it can't be run at all.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{PREFIX}{name} is an encoder-decoder ({config.model_type}): it has no place for images between texts"
        )
    generator = Generator(model, tokens_of(model, processor.tokenizer))
    family = family_of(config.model_type)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    tower: Tower | None = None
    why = "--plain"
    if not plain:
        with numerics(str(model.device)):
            tower, why = check_taken_apart(generator, reader, precision)
    kind = PlainVlmModel if tower is None else VlmModel
    made = kind(
        generator, reader, tower, family, precision=precision, positions=positions, cache=cache,
        footprint=Footprint.of(config, precision),
    )  # fmt: skip
    made.why_plain = why if tower is None else ""
    return made
