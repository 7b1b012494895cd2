"""What the fast and the plain path share: length limits, texts from tokens, answering a single prompt."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import DeviceMemoryError, QueryError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.prompting import INTERLEAVED, mark_among
from flamingo_eval.core.records import Answer, Decoding, NoAnswer, Prompt, Ranking, Task, Turn
from flamingo_eval.devices import autocast, free_memory, is_out_of_memory, memory_errors, numerics
from flamingo_eval.libraries import reason_of
from flamingo_eval.measure import Clock
from flamingo_eval.models.transformers_vlm.families.base import Family
from flamingo_eval.models.transformers_vlm.generation import Generator
from flamingo_eval.models.transformers_vlm.processor import PromptReader, opened_as_transformers_does
from flamingo_eval.task_tokens import TaskTokens


class AnsweringVlm(ABC):
    """A loaded model with its processor.

    Args:
        generator: the model.
        reader: the processor.
        family: what its architecture needs in addition.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``amp_bf16``.
        positions: tokens that prompt and answer may have together; None for any number.
    """

    def __init__(
        self, generator: Generator, reader: PromptReader, family: Family, *, precision: str, positions: int | None
    ) -> None:
        self.generator, self._words, self._family = generator, reader, family
        self.precision, self._positions = precision, positions
        tokens = TaskTokens(reader.encode_plain)
        self._room, self._name_ids = tokens.room, tokens.names
        self._clock, self._reading = Clock(self.device), 0.0
        self.why_plain = ""
        """Why the fast path is not used; empty if it is."""
        self.source: Any = None
        """A source that loads this model again from memory."""
        self.root = Path()
        """The folder that paths given to :meth:`generate` are relative to."""

    @property
    def device(self) -> torch.device:
        """The device of the weights, or of the first of them."""
        found: torch.device = self.generator.model.device
        return found

    def _check_length(self, tokens: int, task: Task) -> None:
        limit = limit_of(self._positions, self._room(task))
        if limit is not None and tokens > limit:
            raise QueryError(
                f"a prompt has {tokens} tokens, the limit is {limit}: use fewer shots, or smaller images "
                "(--image-tokens, --max-pixels)"
            )

    @torch.inference_mode()
    def answer(self, prepared: Sequence[Any], task: Task) -> list[Answer | NoAnswer]:
        """Text, or log-likelihoods of class names, for each prompt; NoAnswer if its logits are not numbers."""
        with numerics(self.device):
            try:
                return self._answer(prepared, task)
            except ValueError as error:  # such as a number of image tokens that does not match the images
                raise QueryError(f"the model refuses a prompt: {reason_of(error)}") from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                self._clock.settle()
        free_memory()  # only here: by now nothing refers to what did not fit
        longest = max(map(self._tokens_in, prepared))
        many = "a prompt" if len(prepared) == 1 else f"{len(prepared)} prompts"
        raise DeviceMemoryError(
            f"{many} of {longest} tokens do{'es' * (len(prepared) == 1)} not fit into the memory of {self.device}: use "
            "fewer shots, smaller images (--image-tokens, --max-pixels), a narrower --precision, or a larger device"
        )

    @abstractmethod
    def _answer(self, prepared: Sequence[Any], task: Task) -> list[Answer | NoAnswer]:
        """Answers prepared prompts."""

    @abstractmethod
    def _answer_to(self, prompt: Prompt, images: Sequence[Image.Image], task: Decoding) -> Answer | NoAnswer:
        """Answers one prompt, whose images are opened already."""

    @staticmethod
    def _tokens_in(prepared: Any) -> int:
        """How many tokens a prepared prompt has."""
        return len(prepared.tokens.ids)

    def _texts(self, ids: Tensor, sound: Tensor) -> list[Answer | NoAnswer]:
        rows = zip(ids.tolist(), sound.tolist(), strict=True)
        return [self._words.decode(self._ended(row)) if fine else self._no_answer() for row, fine in rows]

    def _ended(self, ids: Sequence[int]) -> Sequence[int]:
        """Generated tokens up to the first that ends a text; after it there is only padding of the batch."""
        end = next((i for i, id in enumerate(ids) if id in self.generator.end_ids), len(ids))
        return ids[:end]

    def _no_answer(self) -> NoAnswer:
        return NoAnswer(f"the logits are not numbers (NaN or infinite) in {self.precision}; another --precision may do")

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return autocast(self.device, self.precision)

    def generate(
        self,
        text: str,
        images: Sequence[Image.Image | str | Path] = (),
        *,
        demonstrations: Sequence[tuple[Sequence[Image.Image | str | Path], str, str]] = (),
        max_new_tokens: int = 30,
        num_beams: int = 1,
    ) -> str:
        """Generates the model's answer to a text about some images.

        Args:
            text: the question; images come before it.
            images: Pillow images or paths.
            demonstrations: for each, its images, the question, and the answer.
            max_new_tokens: the most tokens of the answer.
            num_beams: 1 is greedy.

        Raises:
            UserError: an image can't be read; there are too many; the prompt is too long; a text contains a mark, such
                as ``<image>``; the logits are not finite.
            DeviceMemoryError: the prompt does not fit into memory.
        """
        if isinstance(images, str | Path) or max_new_tokens < 1 or num_beams < 1:
            raise UserError("give images as a list, and at least one new token and one beam")
        texts = [text, *(one for _, *both in demonstrations for one in both)]
        mark = mark_among(texts, (INTERLEAVED.image, *self._words.marks))
        if mark is not None:
            raise UserError(
                f"a text holds {mark}, which means something to the model: images come before their text by "
                "themselves, and demonstrations go into demonstrations="
            )
        listed = [*(image for shown, _, _ in demonstrations for image in shown), *images]
        numbers = iter(map(str, range(len(listed))))
        turns = [Turn(tuple(next(numbers) for _ in shown), asked, answer) for shown, asked, answer in demonstrations]
        prompt = Prompt(tuple(turns), Turn(tuple(next(numbers) for _ in images), text))
        most = self._family.images
        if most is not None and len(listed) > most:
            raise UserError(f"the prompt has {len(listed)} images, and the model takes {most}: {self._family.reason}")
        opened = [opened_as_transformers_does(self._opened(image)) for image in listed]
        with memory_errors("the prompt does not fit into memory"):
            result = self._answer_to(prompt, opened, Decoding(max_new_tokens, num_beams))
        if isinstance(result, NoAnswer):
            raise QueryError(result.reason)
        return str(result)

    def _opened(self, image: Image.Image | str | Path) -> Image.Image:
        if isinstance(image, Image.Image):
            return image
        if not isinstance(image, str | Path):
            raise UserError(f"an image is a Pillow image or a path, and not {type(image).__name__}")
        return Images(Path()).decode(str(self.root / image), Image.Image.copy)

    def timings(self) -> Mapping[str, float]:
        """Seconds so far: ``vision``, ``prefill``, ``decode`` (or ranking), and ``images``, which overlaps these."""
        return {**self._clock.seconds(), "images": self._reading}


def ranked(task: Ranking, scores: Sequence[float], otherwise: NoAnswer) -> dict[str, float] | NoAnswer:
    """Class name -> log-likelihood; ``otherwise`` if one of them is not a number."""
    return dict(zip(task.names, scores, strict=True)) if all(map(math.isfinite, scores)) else otherwise


def limit_of(positions: int | None, room: int) -> int | None:
    """The most tokens that a prompt may have so that its answer fits after it; None for any number."""
    return None if positions is None else positions - room
