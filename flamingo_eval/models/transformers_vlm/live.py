"""A model of transformers that is already in memory, perhaps in training; it is evaluated in its current state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.core.protocols import Capabilities, ModelInfo, ModelSource, Renderer
from flamingo_eval.core.run_settings import SHOWN_TO_MODEL
from flamingo_eval.models.transformers_vlm import Options, feature_cache, loading
from flamingo_eval.models.transformers_vlm.adapter import VlmModel
from flamingo_eval.models.transformers_vlm.answering import AnsweringVlm
from flamingo_eval.models.transformers_vlm.families import family_of
from flamingo_eval.models.transformers_vlm.plain import PlainVlmModel
from flamingo_eval.weights import module_digest

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class LiveVlm:
    """A live model as the engine sees it. Its tensors are shared, not copied; image features are cached in memory only.

    Attributes:
        model: a model of transformers.
        processor: its processor.
        name: its name in records.
        options: how it is shown prompts.
        precision: the precision in which it was loaded; None if only its weights determine it.
    """

    model: Any
    processor: Any
    name: str
    options: Options
    precision: str | None = None

    @cached_property
    def _template(self) -> str | None:
        return template_of(self.processor)

    @cached_property
    def renderer(self) -> Renderer:
        """How it reads prompts. Raises UserError."""
        tokens = self.processor.tokenizer
        added = getattr(tokens, "added_tokens_decoder", {}).values()  # all_special_tokens lacks a processor's
        special = [*map(str, tokens.all_special_tokens), *(one.content for one in added if one.special)]
        return self.options.renderer(self._template, tuple(dict.fromkeys(special)), self.name)

    @property
    def capabilities(self) -> Capabilities:
        """Determined by its architecture."""
        family = family_of(self.model.config.model_type)
        return Capabilities(images=family.images, images_reason=family.reason)

    def info(self) -> ModelInfo:
        """Name, and a digest of all current weights, the configuration and the processor."""
        tokens = self.processor.tokenizer
        words = tokens.backend_tokenizer.to_str() if hasattr(tokens, "backend_tokenizer") else repr(tokens)
        ends = loading.tokens_of(self.model, tokens)
        about = [json.dumps(self.processor.to_dict(), sort_keys=True, default=str), words, self._template, ends]
        config = self.model.config.to_json_string()
        found = digest(["live hf", module_digest(self.model), about, config])
        return ModelInfo(self.name, found, {}, self.options.notes(self.renderer, self._template, self.name))

    def resolve(self, device: str, precision: str) -> tuple[str, str]:  # noqa: ARG002
        """The model's device, and its precision or ``amp_bf16`` for float32. Raises UserError, CheckpointError."""
        kinds = {one.dtype for one in self.model.parameters() if one.is_floating_point()}
        if len(kinds) != 1 or not kinds <= _PRECISIONS.keys():
            raise CheckpointError(f"a live model's weights must be of one type; these are {sorted(map(str, kinds))}")
        own = _PRECISIONS[kinds.pop()]
        possible = [own, *(["amp_bf16"] if own == "fp32" else [])]
        if precision not in ("auto", *possible):
            raise UserError(
                f"precision {precision}: the live model's weights are {own}, and they are not copied; it can be "
                f"evaluated in {' or '.join(possible)}"
            )
        return str(self.model.device), (self.precision or own) if precision == "auto" else precision

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of a run that the model already has; see :class:`flamingo_eval.core.protocols.ModelSource`."""
        return {name: value for name in SHOWN_TO_MODEL if (value := getattr(self.options, name))}

    def load(self, device: str, precision: str) -> VlmModel | PlainVlmModel:
        """Returns the model, switched to evaluation mode. Raises CheckpointError."""
        how = self.options.presentation(self.renderer, self._template)
        readers = loading.make_readers(self.processor, self.model.config.model_type, how, self.name)
        cache = feature_cache(replace(self.options, keep=False), "", device, precision)
        model = loading.build(
            self.model.eval(), readers, self.processor.tokenizer, precision=precision, cache=cache,
            plain=self.options.plain, name=self.name,
        )  # fmt: skip
        model.source = self
        return model


def template_of(processor: Any) -> str | None:
    """A processor's chat template, or its tokenizer's; if there are several, the one called ``default``."""
    for owner in (processor, processor.tokenizer):
        found = getattr(owner, "chat_template", None)
        found = found.get("default") if isinstance(found, dict) else found
        if isinstance(found, str) and found.strip():
            return found
    return None


def adopted(model: Any, processor: Any, name: str, given: Mapping[str, Any]) -> ModelSource | None:
    """The source of a live model; None if it is not a model of transformers.

    Args:
        model: a model of transformers, or one that was loaded by this package.
        processor: its processor; not used for a model that was loaded by this package.
        name: its name in records.
        given: options; for a model that was loaded by this package, each replaces the one that it was loaded with.

    Raises:
        UserError: the processor is missing.
        CheckpointError: the processor does not prepare images and texts together.
    """
    if isinstance(model, AnsweringVlm):
        loaded: LiveVlm | None = model.source
        return loaded and replace(loaded, name=name, options=replace(loaded.options, **given))
    if not isinstance(model, PreTrainedModel):
        return None
    if processor is None:
        raise UserError(f"{type(model).__name__} needs its processor beside it: evaluate(..., processor=processor)")
    loading.check_processor(processor, f"the processor for {name}")
    return LiveVlm(model, processor, name, Options(**given))
