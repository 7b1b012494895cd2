"""A model of transformers as the engine sees it: prompts in, text or log-likelihoods out."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import DeviceMemoryError, QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Answer, Decoding, NoAnswer, Prompt, Ranking, Task, Turn
from flamingo_eval.core.workers import WORKERS
from flamingo_eval.devices import autocast, free_memory, is_out_of_memory, numerics, room, to_device
from flamingo_eval.measure import Clock
from flamingo_eval.models.transformers_vlm.batching import Footprint, pass_tokens, suggested
from flamingo_eval.models.transformers_vlm.families.base import Family
from flamingo_eval.models.transformers_vlm.features import FeatureCache, Features
from flamingo_eval.models.transformers_vlm.generation import Batch, Generator
from flamingo_eval.models.transformers_vlm.reading import (
    ImageText,
    ProcessedImage,
    Reader,
    Tokens,
    opened_as_transformers_does,
)
from flamingo_eval.models.transformers_vlm.tower import Tower

_USUAL = (640, 480)
"""Size of an image whose content is not at hand, in pixels."""


@dataclass(frozen=True)
class ShownImage:
    """An image of a prompt: its key in the cache, and where to read it again.

    Attributes:
        key: its content, and how it is processed.
        path: where it is among its images.
        variant: what of the prompt decides how it is processed.
        images: where it is read.
    """

    key: str
    path: str
    variant: str
    images: Images


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt whose images are processed, and whose text is tokenised."""

    tokens: Tokens
    images: tuple[ShownImage, ...]
    prompt: Prompt


class VlmModel:
    """A loaded model with its processor.

    Args:
        generator: the model.
        reader: the processor.
        tower: the model's vision tower.
        family: what its architecture needs besides.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``amp_bf16``.
        positions: tokens that prompt and answer may have together; None for any number.
        cache: where features of images are kept.
        footprint: what a batch takes of the device's memory.
    """

    def __init__(
        self,
        generator: Generator,
        reader: Reader,
        tower: Tower | None,
        family: Family,
        *,
        precision: str,
        positions: int | None,
        cache: FeatureCache,
        footprint: Footprint,
    ) -> None:
        self.generator, self.reader, self.tower, self._family = generator, reader, tower, family
        self.precision, self._positions, self._cache, self._footprint = precision, positions, cache, footprint
        self._processed: dict[str, ProcessedImage] = {}
        self._image_texts: dict[str, ImageText] = {}
        self._names: dict[Ranking, list[list[int]]] = {}
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor(WORKERS)
        self._clock, self._reading = Clock(self.device), 0.0
        self.why_plain = ""
        """Why the fast paths are not taken, if they are not."""
        self.source: Any = None
        """What loads it again from what is in memory."""
        self.root = Path()
        """What paths given to :meth:`generate` are relative to."""

    @property
    def device(self) -> torch.device:
        """Where the weights are, or the first of them."""
        found: torch.device = self.generator.model.device
        return found

    # -- reading ------------------------------------------------------------------------------------------------------

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:  # noqa: ARG002
        """Reads and processes images in threads; what can't be read is found out by :meth:`prepare`."""
        shown = {one.key: one for prompt in prompts for one in self._found(prompt, images)}
        began = time.perf_counter()
        missing = [one for one in shown.values() if not self._known(one)]
        for _ in self._pool.map(self._try, missing):
            pass
        self._reading += time.perf_counter() - began

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> PreparedPrompt:
        """Reads and processes images, tokenises text.

        Raises:
            QueryError: an image can't be read, or the prompt is too long.
        """
        shown = tuple(self._shown(path, images, self._variant(prompt)) for path in prompt.images if path != WITHHELD)
        began = time.perf_counter()
        texts = [self._text(one) for one in shown]
        self._reading += time.perf_counter() - began
        tokens = self.reader.tokens(prompt, texts)
        self._check_length(len(tokens.ids), task)
        return PreparedPrompt(tokens, shown, prompt)

    def _check_length(self, tokens: int, task: Task) -> None:
        limit = limit_of(self._positions, self._room(task))
        if limit is not None and tokens > limit:
            raise QueryError(
                f"a prompt has {tokens} tokens, the limit is {limit}: use fewer shots, or smaller images "
                "(--image-tokens, --max-pixels)"
            )

    def _room(self, task: Task) -> int:
        """Tokens that must fit behind the prompt."""
        if isinstance(task, Decoding):
            return task.max_new_tokens
        return max(len(name) for name in self._name_ids(task))

    def _variant(self, prompt: Prompt) -> str:
        return self.reader.variant(sum(path != WITHHELD for path in prompt.images))

    def _shown(self, path: str, images: Images, variant: str) -> ShownImage:
        """Raises QueryError if there is no such image."""
        key = images.digest(path) + (f"-{variant.replace(' ', '-')}" if variant else "")
        return ShownImage(key, path, variant, images)

    def _found(self, prompt: Prompt, images: Images) -> list[ShownImage]:
        """A prompt's images, as far as there are any."""
        found, variant = [], self._variant(prompt)
        for path in prompt.images:
            with contextlib.suppress(QueryError):
                if path != WITHHELD:
                    found.append(self._shown(path, images, variant))
        return found

    def _known(self, image: ShownImage) -> bool:
        """Whether it need not be read; as far as the disk knows it, it is in memory then."""
        with self._lock:
            if image.key in self._processed:
                return True
        return self._cache.get(image.key) is not None

    def _try(self, image: ShownImage) -> None:
        with contextlib.suppress(QueryError):
            self._process(image)

    def _process(self, image: ShownImage) -> ProcessedImage:
        """Raises QueryError."""
        made = image.images.decode(
            image.path, lambda opened: self.reader.process(opened_as_transformers_does(opened), image.variant)
        )
        with self._lock:
            self._processed[image.key] = made
            self._image_texts[image.key] = made.text
        return made

    def _text(self, image: ShownImage) -> ImageText:
        """An image as texts know it. Raises QueryError."""
        with self._lock:
            if image.key in self._image_texts:
                return self._image_texts[image.key]
        kept = self._cache.get(image.key)
        if kept is None:
            return self._process(image).text
        with self._lock:
            return self._image_texts.setdefault(image.key, kept.text)

    def length(self, prompt: Prompt, images: Images) -> int:
        """Tokens of a prompt, roughly: those of its images, by their sizes, and a third of its characters."""
        try:
            of_images = sum(map(self.reader.tokens_of_image, text_of_sizes(self.reader, prompt, images)))
        except QueryError:  # found out by whoever prepares it
            of_images = 0
        return of_images + prompt.length // 3

    def _name_ids(self, task: Ranking) -> list[list[int]]:
        if task not in self._names:
            self._names[task] = [self.reader.encode_plain(name) for name in task.names]
        return self._names[task]

    # -- answering ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(self, prepared: Sequence[PreparedPrompt], task: Task) -> list[Answer | NoAnswer]:
        """Text, or log-likelihoods of class names, for each prompt whose logits are numbers."""
        with numerics(self.device):
            try:
                return self._answer(prepared, task)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                self._clock.settle()
        free_memory()  # here, where nothing holds on to what did not fit
        longest = max(len(one.tokens.ids) for one in prepared)
        many = "a prompt" if len(prepared) == 1 else f"{len(prepared)} prompts"
        raise DeviceMemoryError(
            f"{many} of {longest} tokens do{'es' * (len(prepared) == 1)} not fit into the memory of {self.device}: use "
            "fewer shots, smaller images (--image-tokens, --max-pixels), a narrower --precision, or a larger device"
        )

    def _answer(self, prepared: Sequence[PreparedPrompt], task: Task) -> list[Answer | NoAnswer]:
        parts = self.batches(prepared)
        with contextlib.ExitStack() as stack, self._autocast():
            stack.enter_context(self._clock.section("prefill"))

            def read() -> None:
                stack.close()
                stack.enter_context(self._clock.section("decode"))

            if isinstance(task, Decoding):
                return self._texts(*self.generator.text(parts, task, read))
            scores = self.generator.rank(parts, self._name_ids(task), read)
        return [ranked(task, row, self._no_answer()) for row in scores.tolist()]

    def _texts(self, ids: Tensor, sound: Tensor) -> list[Answer | NoAnswer]:
        rows = zip(ids.tolist(), sound.tolist(), strict=True)
        return [self.reader.decode(row) if fine else self._no_answer() for row, fine in rows]

    def _no_answer(self) -> NoAnswer:
        return NoAnswer(f"the logits are not numbers (NaN or infinite) in {self.precision}; another --precision may do")

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return autocast(self.device, self.precision)

    def batches(self, prepared: Sequence[PreparedPrompt]) -> list[Batch]:
        """Prompts on the device, as many together as are read in one pass, with their images' features.

        Raises:
            QueryError: an image has gone since it was prepared.
        """
        features = self._features_of([image for one in prepared for image in one.images])
        longest, rows = max(len(one.tokens.ids) for one in prepared), len(prepared)
        if self.generator.joinable:
            rows = max(1, pass_tokens(self.device) // longest)
        parts, left = [], iter(features)
        for start in range(0, len(prepared), rows):
            some = prepared[start : start + rows]
            own = [next(left) for one in some for _ in one.images]
            parts.append(self._joined([one.tokens for one in some], own))
        return parts

    def _joined(self, prompts: Sequence[Tokens], features: Sequence[Features]) -> Batch:
        """Prompts padded on the left, with the features of all their images in order."""
        longest = max(len(one.ids) for one in prompts)
        names = sorted({name for one in prompts for name in one.types})

        def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            return to_device(torch.tensor([[fill] * (longest - len(row)) + [*row] for row in rows]), self.device)

        def placed(tensors: Sequence[Tensor]) -> Tensor:
            return to_device(torch.cat([*tensors]), self.device)

        assert self.tower is not None
        return Batch(
            ids=padded([one.ids for one in prompts], self.generator.pad_id),
            mask=padded([[1] * len(one.ids) for one in prompts], 0),
            types={name: padded([_row_of(one, name) for one in prompts], 0) for name in names},
            along={name: placed([one.text.about[name] for one in features]) for name in self.reader.along if features},
            features=self.tower.join(features) if features else None,
        )

    def _features_of(self, shown: Sequence[ShownImage]) -> list[Features]:
        """The features of images, in order; unknown ones are encoded together. Raises QueryError."""
        distinct = {image.key: image for image in shown}
        known = {key: found for key in distinct if (found := self._cache.get(key)) is not None}
        missing = [image for key, image in distinct.items() if key not in known]
        if missing:
            assert self.tower is not None
            processed = [self._taken(image) for image in missing]
            with self._clock.section("vision"), self._autocast():
                made = self.tower.encode(processed)
            fresh = {image.key: one for image, one in zip(missing, made, strict=True)}
            self._cache.keep(fresh.items())
            known |= fresh
        with self._lock:
            for key in distinct:  # read a second time meanwhile
                self._processed.pop(key, None)
        return [known[image.key] for image in shown]

    def _taken(self, image: ShownImage) -> ProcessedImage:
        with self._lock:
            found = self._processed.pop(image.key, None)
        if found is None:
            found = self._process(image)
        return found

    def generate(
        self,
        text: str,
        images: Sequence[Image.Image | str | Path] = (),
        *,
        demonstrations: Sequence[tuple[Sequence[Image.Image | str | Path], str, str]] = (),
        max_new_tokens: int = 30,
        num_beams: int = 1,
    ) -> str:
        """What the model says of some images.

        Args:
            text: what is asked; images come before it.
            images: Pillow images or paths.
            demonstrations: images, what is asked of them, and the answer, for each.
            max_new_tokens: at most.
            num_beams: 1 is greedy.

        Raises:
            UserError: an image can't be read; the prompt is too long.
        """
        listed = [*(image for shown, _, _ in demonstrations for image in shown), *images]
        numbers = iter(map(str, range(len(listed))))
        turns = [Turn(tuple(next(numbers) for _ in shown), asked, said) for shown, asked, said in demonstrations]
        prompt = Prompt(tuple(turns), Turn(tuple(next(numbers) for _ in images), text))
        opened = [opened_as_transformers_does(self._opened(image)) for image in listed]
        result = self._say(prompt, opened, Decoding(max_new_tokens, num_beams))
        if isinstance(result, NoAnswer):
            raise QueryError(result.reason)
        return str(result)

    def _opened(self, image: Image.Image | str | Path) -> Image.Image:
        if isinstance(image, Image.Image):
            return image
        return Images(Path()).decode(str(self.root / image), Image.Image.copy)

    @torch.inference_mode()
    def _say(self, prompt: Prompt, images: Sequence[Image.Image], task: Decoding) -> Answer | NoAnswer:
        """The answer to one prompt, whose images are at hand."""
        assert self.tower is not None
        variant = self.reader.variant(len(images))
        processed = [self.reader.process(image, variant) for image in images]
        tokens = self.reader.tokens(prompt, [one.text for one in processed])
        self._check_length(len(tokens.ids), task)
        with numerics(self.device), self._autocast():
            batch = self._joined([tokens], self.tower.encode(processed) if processed else [])
            return self._texts(*self.generator.text([batch], task, lambda: None))[0]

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """As many prompts as keep the device busy, and as its memory holds."""
        behind = self._room(task)
        beams = task.num_beams if isinstance(task, Decoding) else 1
        count = sum(path != WITHHELD for path in prompt.images)
        like = self.reader.text_of_size(_USUAL, self.reader.variant(count))
        tokens = len(self.reader.tokens(prompt, [like] * count).ids)
        return suggested(self.device, self._footprint, tokens + behind, beams, room(self.device))

    def timings(self) -> Mapping[str, float]:
        """Where time has gone: ``vision``, ``prefill``, ``decode`` (or ranking), and ``images``, read meanwhile."""
        return {**self._clock.seconds(), "images": self._reading}

    @property
    def encoded(self) -> int:
        """How many images were encoded."""
        return 0 if self.tower is None else self.tower.encoded

    def close(self) -> None:
        """Writes what is kept of images, and lets go of it, and of the threads that read them."""
        self._pool.shutdown(cancel_futures=True)
        self._cache.close()


def ranked(task: Ranking, scores: Sequence[float], otherwise: NoAnswer) -> dict[str, float] | NoAnswer:
    """Log-likelihoods by name, if they are numbers."""
    return dict(zip(task.names, scores, strict=True)) if all(map(math.isfinite, scores)) else otherwise


def limit_of(positions: int | None, room: int) -> int | None:
    """Tokens that a prompt may have, so that its answer fits behind it; None for any number."""
    return None if positions is None else positions - room


def text_of_sizes(reader: Reader, prompt: Prompt, images: Images) -> list[ImageText]:
    """A prompt's images as texts know them, by their sizes alone. Raises QueryError."""
    shown = [path for path in prompt.images if path != WITHHELD]
    variant = reader.variant(len(shown))
    return [reader.text_of_size(images.size(path), variant) for path in shown]


def _row_of(tokens: Tokens, name: str) -> list[int]:
    """A value for each token; zeros where a prompt without images has none."""
    return list(tokens.types.get(name) or [0] * len(tokens.ids))
