"""Turns a checkpoint's files, or a live model, into a model that answers prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

from flamingo_eval.core.errors import CheckpointError, UserError
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
from flamingo_eval.models.transformers_vlm.foreign import Arguments, Switches, Table
from flamingo_eval.models.transformers_vlm.generation import Generator
from flamingo_eval.models.transformers_vlm.plain import PlainVlmModel
from flamingo_eval.models.transformers_vlm.probing import check_taken_apart
from flamingo_eval.models.transformers_vlm.processor import PromptReader
from flamingo_eval.models.transformers_vlm.reading import Reader
from flamingo_eval.models.transformers_vlm.template import switches_of, with_fixed_date
from flamingo_eval.storage.part_files import read_object
from flamingo_eval.weights import check_sizes, check_values

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp_bf16": torch.float32}


@dataclass(frozen=True)
class Presentation:
    """How a model is shown prompts.

    Attributes:
        renderer: how they are written.
        template: the chat template; None if there is none.
        switches: switches of the template that the user has set.
        image_tokens: the most tokens that an image may have.
        max_pixels: the most pixels that an image may have.
    """

    renderer: Renderer
    template: str | None = None
    switches: Switches = field(default_factory=dict)
    image_tokens: int | None = None
    max_pixels: int | None = None


def check_architecture(config: Table, name: str) -> None:
    """Raises CheckpointError for an architecture that transformers does not know, or that needs a repository's code."""
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
        except ImportError as error:  # such as num2words or sentencepiece: the error names the package
            raise CheckpointError(f"{what} wants a package: {reason_of(error)}") from error
    check_processor(processor, what)
    return processor


def check_processor(processor: Any, what: str) -> None:
    """Raises CheckpointError for what is not a processor of images and texts."""
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise CheckpointError(f"{what} is a {type(processor).__name__}: it prepares no images and texts together")


def load_network(folder: Path, name: str, *, device: str, precision: str, device_map: str | None) -> Any:
    """A checkpoint's model, on its device. Raises CheckpointError, DeviceMemoryError."""
    placing = {} if device_map is None else {"device_map": device_map}
    with (
        host_as_it_was(),
        numerics(device),
        memory_errors(f"{PREFIX}{name} does not fit into the memory of {device_map or device}"),
        loading(f"{PREFIX}{name}"),
    ):
        check_sizes(folder / "config.json", read_object(folder / "config.json"))
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=DTYPES[precision], use_safetensors=True, trust_remote_code=False, local_files_only=True,
            output_loading_info=True, **placing,
        )  # fmt: skip
        check_values(model.named_parameters(), f"{PREFIX}{name}")
        missing = sorted(report.get("missing_keys") or ())
        if missing:
            raise CheckpointError(
                f"{PREFIX}{name}: its weights lack {', '.join(missing[:6])}{' ...' * (len(missing) > 6)}; these would "
                "be random numbers"
            )
        model = model.eval().requires_grad_(False)
        return model if device_map else model.to(device)


@dataclass(frozen=True)
class Readers:
    """A processor, unmodified and, if possible, split into its two halves.

    Attributes:
        together: the unmodified processor; the same object as ``apart`` if that is not None.
        apart: the split processor; None if it can't be split.
        why_not: why it can't be split; empty if it can.
    """

    together: PromptReader
    apart: Reader | None
    why_not: str = ""


def make_readers(processor: Any, architecture: str, how: Presentation, name: str) -> Readers:
    """A processor, set up for how prompts are shown. Raises CheckpointError, UserError."""
    switches = switches_of(how.template, how.switches, name) if is_chat(how.renderer) else {}
    template = None if how.template is None else with_fixed_date(how.template, name)
    settings = image_settings(processor, how.image_tokens, how.max_pixels)
    arguments = (processor, family_of(architecture), how.renderer, template, switches, settings)
    with host_as_it_was(), loading(f"the processor of {PREFIX}{name}"):
        together = PromptReader(*arguments)
        together.check_template(name)
        try:
            apart = Reader(*arguments)
            apart.check_template(name)
        except Exception as error:  # whatever an unknown processor raises
            together.check_images(name)
            if settings:
                raise UserError(f"--image-tokens and --max-pixels: {reason_of(error)}") from error
            return Readers(together, None, reason_of(error))
        apart.check_budget(how.image_tokens, how.max_pixels)
    return Readers(apart, apart)


def tokens_of(model: Any, tokenizer: Any) -> Arguments:
    """Which tokens begin, end and pad a text; a checkpoint's other generation settings do not apply."""
    own, text = model.generation_config, model.config.get_text_config()
    places = {
        "eos_token_id": (own, model.config, text, tokenizer),
        "bos_token_id": (own, model.config, text, tokenizer),
        "pad_token_id": (own, tokenizer, model.config, text),
    }
    rows = model.get_input_embeddings().weight.shape[0]
    found = {
        name: next((value for one in owners if _are_tokens(value := getattr(one, name, None), rows)), None)
        for name, owners in places.items()
    }
    if found["pad_token_id"] is None:
        ends = found["eos_token_id"]
        found["pad_token_id"] = ends[0] if isinstance(ends, list) else ends if ends is not None else 0
    return found


def _are_tokens(value: Any, rows: int) -> bool:
    """Whether a value is a token id below ``rows``, or a list of such ids."""
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(type(id) is int and 0 <= id < rows for id in ids)


def build(
    model: Any, readers: Readers, tokenizer: Any, *, precision: str, cache: FeatureCache, plain: bool, name: str
) -> VlmModel | PlainVlmModel:
    """A model that answers: by the fast path if that gives the same results, else, or if ``plain``, by the plain path.

    Raises:
        CheckpointError: the model can't be used at all.
        DeviceMemoryError: no memory is left for answering.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{PREFIX}{name} is an encoder-decoder ({config.model_type}): it has no place for images between texts"
        )
    generator = Generator(model, tokens_of(model, tokenizer))
    family = family_of(config.model_type)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    tower, why = None, "--plain" if plain else readers.why_not
    if readers.apart is not None and not plain:
        with numerics(str(model.device)), memory_errors(f"{PREFIX}{name} leaves no memory to answer in"):
            tower, why = check_taken_apart(generator, readers.apart, precision)
    made: VlmModel | PlainVlmModel
    if tower is None or readers.apart is None:
        made = PlainVlmModel(generator, readers.together, family, precision=precision, positions=positions)
        made.why_plain = why
        return made
    return VlmModel(
        generator, readers.apart, family, tower=tower, cache=cache, footprint=Footprint.of(config, precision),
        precision=precision, positions=positions,
    )  # fmt: skip


def positions_of(folder: Path, name: str) -> int | None:
    """The most tokens of prompt and answer together, from a checkpoint's configuration; None for any number.

    Raises CheckpointError.
    """
    with host_as_it_was(), loading(f"the configuration of {PREFIX}{name}"):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None
