"""A model of transformers as the engine sees it: prompts in, text or log-likelihoods out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Answer, Decoding, NoAnswer, Prompt, Task
from flamingo_eval.devices import numerics, room, to_device
from flamingo_eval.models.transformers_vlm.answering import AnsweringVlm, ranked
from flamingo_eval.models.transformers_vlm.batching import Footprint, pass_tokens, suggested
from flamingo_eval.models.transformers_vlm.families.base import Family
from flamingo_eval.models.transformers_vlm.features import FeatureCache, Features
from flamingo_eval.models.transformers_vlm.generation import Batch, Generator
from flamingo_eval.models.transformers_vlm.pixels import Pixels, ShownImage, images_of, texts_of
from flamingo_eval.models.transformers_vlm.reading import Reader, Tokens
from flamingo_eval.models.transformers_vlm.tower import Tower

_ENCODED_AT_ONCE = 64
"""How many processed images are passed to the tower at once."""

_READY = 4096
"""The most prompts whose tokens are kept until they are prepared; a batch has fewer."""

_CPU_COPIES = 2 << 30
"""Bytes that copies of prompts may take if the device does not have its own memory."""

_USUAL = (640, 480)
"""Size in pixels that an estimate assumes for images, since it does not read them."""


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt whose images have been processed, and whose text has been tokenised."""

    tokens: Tokens
    images: tuple[ShownImage, ...]


class VlmModel(AnsweringVlm):
    """The fast path: an image is encoded once, and the model gets its features in place of pixels.

    Args:
        generator: the model.
        reader: the processor.
        family: what its architecture needs in addition.
        tower: the model's vision tower.
        cache: where features of images are kept.
        footprint: how much of the device's memory a batch takes.
        settings: see :class:`AnsweringVlm`.
    """

    def __init__(
        self,
        generator: Generator,
        reader: Reader,
        family: Family,
        *,
        tower: Tower,
        cache: FeatureCache,
        footprint: Footprint,
        **settings: Any,
    ) -> None:
        super().__init__(generator, reader, family, **settings)
        self.reader, self._tower, self._cache, self._footprint = reader, tower, cache, footprint
        self._pixels = Pixels(reader)
        self._ready: dict[Prompt, Tokens] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Reads and processes images in threads; :meth:`prepare` reports an image that can't be read."""
        wanted: dict[str, ShownImage] = {}
        for prompt in prompts:
            with contextlib.suppress(QueryError):
                if self._cached_tokens(prompt, task, images):
                    wanted |= {one.key: one for one in images_of(self.reader, prompt, images)}
        began = time.perf_counter()
        self._pixels.prefetch(one for one in wanted.values() if self._cache.get(one.key) is None)
        self._reading += time.perf_counter() - began

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> PreparedPrompt:
        """Tokenises text, reads and processes images.

        Raises:
            QueryError: an image can't be read, or the prompt is too long.
        """
        tokens = self._cached_tokens(prompt, task, images)
        self._ready.pop(prompt, None)
        shown = images_of(self.reader, prompt, images)
        began = time.perf_counter()
        try:
            for one in shown:
                if self._cache.get(one.key) is None:
                    self._pixels.read(one)
        except QueryError:
            self._pixels.drop(shown)  # another prompt with these images reads them again
            raise
        self._reading += time.perf_counter() - began
        return PreparedPrompt(tokens, shown)

    def _cached_tokens(self, prompt: Prompt, task: Task, images: Images) -> Tokens:
        """A prompt's tokens, kept from :meth:`prefetch` to :meth:`prepare`.

        Raises:
            QueryError: there are too many tokens (checked before an image is processed), or an image can't be read.
        """
        found = self._ready.get(prompt)
        if found is None:
            found = self.reader.tokens(prompt, texts_of(self.reader, prompt, images))
            self._check_length(len(found.ids), task)
            if len(self._ready) >= _READY:
                self._ready.clear()
            self._ready[prompt] = found
        return found

    def length(self, prompt: Prompt, images: Images) -> int:
        """A rough count of a prompt's tokens: those of its images, from their sizes, plus one per three characters."""
        try:
            of_images = sum(map(self.reader.tokens_of_image, texts_of(self.reader, prompt, images)))
        except QueryError:  # prepare() reports it
            of_images = 0
        return of_images + prompt.length // 3

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, prepared: Sequence[PreparedPrompt], task: Task) -> list[Answer | NoAnswer]:
        parts = self.batches(prepared)
        with contextlib.ExitStack() as stack, self._autocast():
            stack.enter_context(self._clock.section("prefill"))

            def read() -> None:
                stack.close()
                stack.enter_context(self._clock.section("decode"))

            if isinstance(task, Decoding):
                return self._texts(*self.generator.text(parts, task, read))
            scores = self.generator.rank(parts, self._name_ids(task), read, self._copies(parts))
        return [ranked(task, row, self._no_answer()) for row in scores.tolist()]

    def _copies(self, parts: Sequence[Batch]) -> int:
        """How many names may be scored at once, each after a copy of its prompt, given the memory of the copies."""
        rows, length = sum(len(part.ids) for part in parts), max(part.ids.shape[1] for part in parts)
        free = room(self.device)
        return max(1, int((_CPU_COPIES if free is None else free / 3) // (rows * length * self._footprint.cache)))

    def batches(self, prepared: Sequence[PreparedPrompt]) -> list[Batch]:
        """Prompts on the device with their images' features; each batch is read in one pass.

        Raises:
            QueryError: an image has disappeared since it was prepared.
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

        return Batch(
            ids=padded([one.ids for one in prompts], self.generator.pad_id),
            mask=padded([[1] * len(one.ids) for one in prompts], 0),
            types={name: padded([_row_of(one, name) for one in prompts], 0) for name in names},
            along={name: placed([one.text.about[name] for one in features]) for name in self.reader.along if features},
            features=self._tower.join(features) if features else None,
        )

    def _features_of(self, shown: Sequence[ShownImage]) -> list[Features]:
        """The features of images, in order; those not in the cache are encoded together. Raises QueryError."""
        distinct = {image.key: image for image in shown}
        known = {key: found for key in distinct if (found := self._cache.get(key)) is not None}
        missing = [image for key, image in distinct.items() if key not in known]
        for start in range(0, len(missing), _ENCODED_AT_ONCE):
            some = missing[start : start + _ENCODED_AT_ONCE]
            processed = [self._pixels.take(image) for image in some]
            with self._clock.section("vision"), self._autocast():
                made = self._tower.encode(processed)
            fresh = {image.key: one for image, one in zip(some, made, strict=True)}
            self._cache.keep(fresh.items())
            known |= fresh
        self._pixels.drop(distinct.values())  # some were read a second time in the meantime
        return [known[image.key] for image in shown]

    @torch.inference_mode()
    def _answer_to(self, prompt: Prompt, images: Sequence[Image.Image], task: Decoding) -> Answer | NoAnswer:
        """Answers one prompt, whose images are opened already."""
        variant = self.reader.variant(len(images))
        processed = [self.reader.process(image, variant) for image in images]
        tokens = self.reader.tokens(prompt, [one.text for one in processed])
        self._check_length(len(tokens.ids), task)
        with numerics(self.device), self._autocast():
            batch = self._joined([tokens], self._tower.encode(processed) if processed else [])
            return self._texts(*self.generator.text([batch], task, lambda: None))[0]

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """As many prompts as keep the device busy and fit into its memory."""
        behind = self._room(task)
        beams = task.num_beams if isinstance(task, Decoding) else 1
        count = sum(path != WITHHELD for path in prompt.images)
        like = self.reader.text_of_size(_USUAL, self.reader.variant(count))
        tokens = len(self.reader.tokens(prompt, [like] * count).ids)
        return suggested(self.device, self._footprint, tokens + behind, beams, room(self.device))

    @property
    def encoded(self) -> int:
        """How many images were encoded."""
        return self._tower.encoded

    def close(self) -> None:
        """Writes the cached features, and releases the memory and the threads that read images."""
        self._pixels.close()
        self._cache.close()


def _row_of(tokens: Tokens, name: str) -> list[int]:
    """A value for each token; zeros if a prompt without images has none."""
    return list(tokens.types.get(name) or [0] * len(tokens.ids))
