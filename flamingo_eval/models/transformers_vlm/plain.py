"""The plain path: every prompt by itself, images and text prepared together, pixels for the model, one name at a time.

It is what the fast paths are compared with, what ``--plain`` runs, and what an architecture gets that does not take
features in place of pixels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Answer, Decoding, NoAnswer, Prompt, Ranking, Task
from flamingo_eval.devices import numerics, to_device
from flamingo_eval.models.transformers_vlm.adapter import VlmModel, ranked
from flamingo_eval.models.transformers_vlm.reading import opened_as_transformers_does


@dataclass(frozen=True)
class PlainPrompt:
    """A prompt as the processor prepares it."""

    inputs: Mapping[str, Any]

    @property
    def tokens(self) -> PlainPrompt:
        """Itself, for what asks after its tokens."""
        return self

    @property
    def ids(self) -> list[int]:
        """Of its tokens."""
        ids: list[int] = self.inputs["input_ids"][0].tolist()
        return ids


class PlainVlmModel(VlmModel):
    """The same answers, slowly."""

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Prefetches nothing."""

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> Any:
        """The whole prompt. Raises QueryError as the fast path does."""
        began = time.perf_counter()
        shown = [images.decode(path, opened_as_transformers_does) for path in prompt.images if path != WITHHELD]
        self._reading += time.perf_counter() - began
        try:
            made = PlainPrompt({name: one for name, one in self.reader.whole(prompt, shown).items() if len(one)})
        except ValueError as error:  # an image too small or too elongated for the processor
            raise QueryError(f"the prompt can't be prepared: {error}") from error
        self._check_length(len(made.ids), task)
        return made

    @torch.inference_mode()
    def _say(self, prompt: Prompt, images: Sequence[Image.Image], task: Decoding) -> Answer | NoAnswer:
        made = self.reader.whole(prompt, images)
        self._check_length(made["input_ids"].shape[1], task)
        with numerics(self.device):
            return self._alone(made, task)

    def _answer(self, prepared: Sequence[Any], task: Task) -> list[Answer | NoAnswer]:
        return [self._alone(one.inputs, task) for one in prepared]

    def _alone(self, inputs: Mapping[str, Any], task: Task) -> Answer | NoAnswer:
        placed = {name: self._placed(value) for name, value in inputs.items()}
        with self._clock.section("decode"), self._autocast():
            if isinstance(task, Decoding):
                ids, sound = self.generator.text_whole(placed, task)
                return self.reader.decode(ids[0].tolist()) if bool(sound.all()) else self._no_answer()
            scores = [self.generator.mean_logprob(placed, name) for name in self._name_ids(task)]
        assert isinstance(task, Ranking)
        return ranked(task, scores, self._no_answer())

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        placed = to_device(value, self.device)
        return placed.to(self.generator.model.dtype) if placed.is_floating_point() else placed
