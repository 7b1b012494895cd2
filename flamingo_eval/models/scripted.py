"""A model without weights: it repeats what the last demonstration said.

Good for trying out data, disks and job scripts in seconds, and for this project's own tests. Its score is that of
copying the demonstration next to the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flamingo_eval.benchmark import PromptRules
from flamingo_eval.files import changed_fields
from flamingo_eval.images import Images
from flamingo_eval.nouns import WITHHELD, Answer, Decoding, Prompt, Rendering, Task
from flamingo_eval.ports import ModelInfo
from flamingo_eval.prompting import interleaved

NAME = "scripted"
IMAGE = "<image>"


class ScriptedRenderer:
    """The texts, with ``<image>`` where an image is."""

    name = "scripted"
    marks: tuple[str, ...] = (IMAGE,)

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as text."""
        return interleaved(prompt, IMAGE)

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """The rules themselves, as far as they differ from the defaults."""
        return changed_fields(rules)


RENDERER = ScriptedRenderer()


@dataclass(frozen=True)
class ScriptedModel:
    """Repeats the last demonstration's answer; reads no more of a picture than whether it is there."""

    images: Images

    def look_at(self, prompts: Sequence[Prompt], task: Task) -> None:
        """It reads nothing."""

    def close(self) -> None:
        """It holds nothing."""

    def prepare(self, prompt: Prompt, task: Task) -> Prompt:
        """Raises QueryError if a picture is missing."""
        for image in prompt.images:
            if image != WITHHELD:
                self.images.digest(image)
        return prompt

    def seconds(self) -> Mapping[str, float]:
        """It takes none."""
        return {}

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """Any number would do."""
        return 8

    def answer(self, prepared: Sequence[Prompt], task: Task) -> list[Answer]:
        """The last demonstration's answer, for each prompt; when ranking, that name is the likely one."""
        said = [(prompt.demonstrations[-1].answer if prompt.demonstrations else None) or "" for prompt in prepared]
        if isinstance(task, Decoding):
            return list(said)
        return [{name: 0.0 if name == text else -1.0 for name in task.names} for text in said]


class ScriptedSource:
    """Needs nothing to be loaded."""

    renderer = RENDERER

    def info(self) -> ModelInfo:
        """Always the same."""
        return ModelInfo(NAME, "scripted-1", {}, ("repeats the last demonstration; no model at all",))

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """It computes nothing, so it runs anywhere."""
        return "cpu", "fp32"

    def load(
        self, *, images: Images, device: str, precision: str, plain: bool = False, cache: int | None = None,
        keep: bool = True,
    ) -> ScriptedModel:  # fmt: skip
        """The model over images."""
        return ScriptedModel(images)


@dataclass
class ThumbnailEncoder:
    """A picture's embedding is what an 8 x 8 thumbnail of it looks like."""

    images: Images

    def prepare(self, image: str, rgb: bool) -> NDArray[np.float32]:
        """Raises QueryError if the picture can't be read."""
        small = self.images.decode(image, lambda picture: picture.convert("RGB").resize((8, 8)))
        return np.asarray(small, np.float32).ravel() + 1

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """(pictures, 192)."""
        return np.stack([*prepared])


class ThumbnailSource:
    """Needs nothing to be loaded."""

    def info(self) -> ModelInfo:
        """Always the same."""
        return ModelInfo("thumbnails", "thumbnails-1", {})

    def load(self, device: str, images: Images) -> ThumbnailEncoder:
        """The encoder."""
        return ThumbnailEncoder(images)


class ScriptedFamily:
    """One checkpoint, by name."""

    def known(self) -> Mapping[str, str]:
        """Its name and a line about it."""
        return {NAME: "repeats the last demonstration; no weights, for trying out data and job scripts"}

    def renderers(self) -> tuple[ScriptedRenderer, ...]:
        """Its own."""
        return (RENDERER,)

    def find(self, checkpoint: str, weights: Path | None = None) -> ScriptedSource | None:
        """The source, for its own name."""
        return ScriptedSource() if checkpoint == NAME else None

    def find_live(self, model: Any, tokenizer: Any, transform: Any, name: str) -> None:
        """None: it has nothing in memory."""

    def find_encoder(
        self, model: str, pretrained: str | None, quick_gelu: bool | None = None
    ) -> ThumbnailSource | None:
        """Thumbnails, for its own name."""
        return ThumbnailSource() if model == NAME else None


MODEL = ScriptedFamily()
