"""Evaluates any object in memory that implements the model protocol."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.prompting import INTERLEAVED
from flamingo_eval.core.protocols import Capabilities, Model, ModelInfo, Renderer
from flamingo_eval.core.records import Answer, NoAnswer, Prompt, Replied, Task


class AdoptedSource:
    """A model object that the caller created.

    Besides the protocol's methods it may have ``info()``, ``renderer`` and ``capabilities``. ``info()`` returns a
    :class:`ModelInfo`. Without it another process can't continue its runs, since nothing shows that the model is the
    same.

    Args:
        model: the model.
        name: its name, if it has no ``info()``.

    Raises:
        UserError: one of these three does not have the form that the protocols require.
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        theirs = getattr(model, "info", None)
        self._info = theirs() if callable(theirs) else ModelInfo(name, f"adopted-{uuid.uuid4().hex}", {})
        self.renderer: Renderer = getattr(model, "renderer", INTERLEAVED)
        self.capabilities: Capabilities = getattr(model, "capabilities", Capabilities())
        self._check()

    def _check(self) -> None:
        """Raises UserError if the model's info, capabilities or renderer does not have the form that is required."""
        info = self._info
        if not isinstance(info, ModelInfo) or not all(isinstance(text, str) for text in (info.name, info.digest)):
            raise UserError(f"{self._who}.info() is {repr(info)[:60]}: expected a ModelInfo with a name and a digest")
        try:
            json.dumps(dict(info.parts))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._who}.info().parts can't be kept in a run's record: {error}") from error
        if not isinstance(self.capabilities, Capabilities) or not isinstance(self.capabilities.images, int | None):
            raise UserError(f"{self._who}.capabilities is {repr(self.capabilities)[:60]}: expected Capabilities")
        marks = getattr(self.renderer, "marks", None)
        if isinstance(self.renderer, type) or not isinstance(self.renderer, Renderer) or not isinstance(marks, tuple):
            raise UserError(
                f"{self._who}.renderer is {repr(self.renderer)[:60]}: expected a flamingo_eval.core.protocols.Renderer"
            )

    @property
    def _who(self) -> str:
        return type(self._model).__name__

    def info(self) -> ModelInfo:
        """The model's own description, or one with the given name and a random digest."""
        return self._info

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """Returns the given values; ``auto`` becomes ``cpu`` and ``fp32``. The caller has already placed the model."""
        return "cpu" if device == "auto" else device, "fp32" if precision == "auto" else precision

    def load(self, device: str, precision: str) -> Model:
        """The model, in a wrapper whose ``close`` does nothing: the caller that created the model also closes it."""
        return _Borrowed(self._model)


class _Borrowed:
    """A model that is not closed here."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        self._model.prefetch(prompts, task, images)

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> Any:
        return self._model.prepare(prompt, task, images)

    def answer(self, prepared: Sequence[Any], task: Task) -> Sequence[Answer | NoAnswer | Replied]:
        return self._model.answer(prepared, task)

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        return self._model.suggested_batch(prompt, task)

    def timings(self) -> Mapping[str, float]:
        return self._model.timings()

    def close(self) -> None:
        """Does nothing: the model belongs to the caller."""
