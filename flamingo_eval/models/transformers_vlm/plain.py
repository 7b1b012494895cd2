"""The plain path: one prompt and one name at a time, images and text prepared together, pixels for the model.

The fast path is compared with it, ``--plain`` uses it, and so does an architecture that does not accept features in
place of pixels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Answer, Decoding, NoAnswer, Prompt, Ranking, Task
from flamingo_eval.devices import numerics, to_device
from flamingo_eval.libraries import reason_of
from flamingo_eval.models.transformers_vlm.answering import AnsweringVlm, ranked
from flamingo_eval.models.transformers_vlm.foreign import Inputs
from flamingo_eval.models.transformers_vlm.processor import opened_as_transformers_does


@dataclass(frozen=True)
class PlainPrompt:
    """A prompt as the processor prepares it."""

    inputs: Inputs


class PlainVlmModel(AnsweringVlm):
    """The plain path: the same answers as the fast path, but slower."""

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Prefetches nothing."""

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> PlainPrompt:
        """Prepares the full prompt. Raises QueryError as the fast path does."""
        began = time.perf_counter()
        shown = [images.decode(path, opened_as_transformers_does) for path in prompt.images if path != WITHHELD]
        self._reading += time.perf_counter() - began
        try:
            made = self._words.together(prompt, shown)
        except (ValueError, TypeError, IndexError) as error:  # an image too small or too elongated for the processor
            raise QueryError(f"a prompt can't be prepared: {reason_of(error)}") from error
        self._check_length(made["input_ids"].shape[1], task)
        return PlainPrompt({name: one for name, one in made.items() if len(one)})

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:  # noqa: ARG002
        """Always 1: larger batches are not faster, since prompts are answered one by one."""
        return 1

    @staticmethod
    def _tokens_in(prepared: PlainPrompt) -> int:
        return int(prepared.inputs["input_ids"].shape[1])

    @torch.inference_mode()
    def _answer_to(self, prompt: Prompt, images: Sequence[Image.Image], task: Decoding) -> Answer | NoAnswer:
        made = self._words.together(prompt, images)
        self._check_length(made["input_ids"].shape[1], task)
        with numerics(self.device):
            return self._alone(made, task)

    def _answer(self, prepared: Sequence[PlainPrompt], task: Task) -> list[Answer | NoAnswer]:
        return [self._alone(one.inputs, task) for one in prepared]

    def _alone(self, inputs: Inputs, task: Task) -> Answer | NoAnswer:
        placed = {name: self._placed(value) for name, value in inputs.items()}
        with self._clock.section("decode"), self._autocast():
            if isinstance(task, Decoding):
                return self._texts(*self.generator.text_of_inputs(placed, task))[0]
            scores = [self.generator.mean_logprob(placed, name) for name in self._name_ids(task)]
        assert isinstance(task, Ranking)
        return ranked(task, scores, self._no_answer())

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        placed = to_device(value, self.device)
        return placed.to(self.generator.model.dtype) if placed.is_floating_point() else placed

    def close(self) -> None:
        """Does nothing: there is nothing to release."""
