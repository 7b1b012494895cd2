"""Any object that fulfils the model protocol, evaluated as it stands in memory."""

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
    """A model that somebody else has made.

    It may say more of itself than the protocol asks: ``info()`` (a :class:`ModelInfo`, without which its runs can't be
    continued in another process: nobody knows whether it is the same), ``renderer`` and ``capabilities``.

    Args:
        model: the model.
        name: what to call it.

    Raises:
        UserError: what it says of itself is of another form.
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        theirs = getattr(model, "info", None)
        self._info = theirs() if callable(theirs) else ModelInfo(name, f"adopted-{uuid.uuid4().hex}", {})
        self.renderer: Renderer = getattr(model, "renderer", INTERLEAVED)
        self.capabilities: Capabilities = getattr(model, "capabilities", Capabilities())
        self._check()

    def _check(self) -> None:
        """Raises UserError if what the model says of itself is of another form than the protocols have."""
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
        """What the model says of itself."""
        return self._info

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """Its maker's business."""
        return "cpu" if device == "auto" else device, "fp32" if precision == "auto" else precision

    def load(self, device: str, precision: str) -> Model:
        """The model, which whoever made it also closes."""
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
        """It goes on living."""
