"""A model without weights: it repeats the answer of the last demonstration.

Good for trying out data, disks and job scripts in seconds, and for this project's own tests. Its score is that of
copying the demonstration next to the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flamingo_eval.core.images import Images
from flamingo_eval.core.prompting import INTERLEAVED, Interleaved
from flamingo_eval.core.protocols import Capabilities, ModelBase, ModelInfo
from flamingo_eval.core.records import WITHHELD, Answer, Decoding, Prompt, Task

NAME = "scripted"


class ScriptedModel(ModelBase):
    """Repeats the last demonstration's answer; only checks that the files of images can be read."""

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> Prompt:
        """The prompt itself. Raises QueryError if an image's file is missing or can't be read."""
        for image in prompt.images:
            if image != WITHHELD:
                images.digest(image)
        return prompt

    def answer(self, prepared: Sequence[Prompt], task: Task) -> list[Answer]:
        """The last demonstration's answer, for each prompt; when ranking, that name is the likeliest."""
        texts = [(prompt.demonstrations[-1].answer if prompt.demonstrations else None) or "" for prompt in prepared]
        if isinstance(task, Decoding):
            return list(texts)
        return [{name: 0.0 if name == text else -1.0 for name in task.names} for text in texts]


class ScriptedSource:
    """The source of the scripted model; there is nothing to load."""

    renderer = INTERLEAVED
    capabilities = Capabilities()

    def info(self) -> ModelInfo:
        """Name and digest, always the same."""
        return ModelInfo(NAME, "scripted-1", {}, ("repeats the last demonstration; no model at all",))

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """Always CPU and fp32: the model computes nothing."""
        return "cpu", "fp32"

    def load(self, device: str, precision: str) -> ScriptedModel:
        """The model."""
        return ScriptedModel()


class ThumbnailEncoder:
    """Embeds an image as the pixels of its 8 x 8 thumbnail."""

    def prepare(self, image: str, rgb: bool, images: Images) -> NDArray[np.float32]:
        """The image's embedding, (192,). Raises QueryError if the image can't be read."""
        small = images.decode(image, lambda opened: opened.convert("RGB").resize((8, 8)))
        return np.asarray(small, np.float32).ravel() + 1

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Embeddings (images, 192)."""
        return np.stack([*prepared])


class ThumbnailSource:
    """The source of the thumbnail encoder; there is nothing to load."""

    def info(self) -> ModelInfo:
        """Name and digest, always the same."""
        return ModelInfo("thumbnails", "thumbnails-1", {})

    def load(self, device: str) -> ThumbnailEncoder:
        """The encoder."""
        return ThumbnailEncoder()


class ScriptedFamily:
    """A family with one checkpoint, ``scripted``."""

    options: frozenset[str] = frozenset()

    def known(self) -> Mapping[str, str]:
        """The name, with one line about it."""
        return {NAME: "repeats the last demonstration; no weights, for trying out data and job scripts"}

    def renderers(self) -> tuple[Interleaved, ...]:
        """It has no renderer of its own."""
        return ()

    def find(self, checkpoint: str, options: Mapping[str, Any]) -> ScriptedSource | None:
        """The source for the name ``scripted``; None for any other name."""
        return ScriptedSource() if checkpoint == NAME else None

    def adopt(self, model: Any, name: str, options: Mapping[str, Any]) -> None:
        """None: no model in memory is of this family."""


class Thumbnails:
    """A family with one encoder, also named ``scripted``."""

    def find(self, name: str, options: Mapping[str, Any]) -> ThumbnailSource | None:
        """The source for the name ``scripted``; None for any other name."""
        return ThumbnailSource() if name == NAME else None


MODEL = ScriptedFamily()
ENCODER = Thumbnails()
