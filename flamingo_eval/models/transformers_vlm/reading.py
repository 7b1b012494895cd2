"""Splits a processor into its image half and its text half: each image is processed once, for all prompts.

A processor replaces the mark of an image in a text by as many tokens as the image has. Its image half computes that
number. When a prompt is tokenised here, the image half returns its earlier result instead. The rest of the processor
runs unchanged: template, replacement, tokens, token types.
(transformers, processing_utils.py: ``ProcessorMixin.__call__`` and ``_process_images``.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import CheckpointError, QueryError, UserError
from flamingo_eval.core.prompting import is_chat
from flamingo_eval.core.records import Prompt
from flamingo_eval.devices import on_the_cpu
from flamingo_eval.libraries import reason_of
from flamingo_eval.models.transformers_vlm.foreign import Conversation, Inputs
from flamingo_eval.models.transformers_vlm.processor import ODD_IMAGE, PLACEHOLDER, PromptReader, conversation

_SMALL = 64
"""The most elements of a tensor that describes an image; a larger one is the image itself."""

_BUDGET_SIZES = ((640, 480), (480, 640), (1200, 300), (300, 300))


@dataclass(frozen=True)
class ImageText:
    """What the text half needs to know about an image.

    Attributes:
        replacement: the text that replaces the image's mark in a prompt.
        about: small tensors that describe the image, such as its grid.
        rows: name of a tensor of pixels -> its first dimension.
    """

    replacement: str
    about: Mapping[str, Tensor]
    rows: Mapping[str, int]


@dataclass(frozen=True)
class ProcessedImage:
    """An image after the image half of the processor.

    Attributes:
        text: what the text half needs to know about it.
        pixels: what the vision tower gets, besides the tensors in ``text.about``.
    """

    text: ImageText
    pixels: Mapping[str, Tensor]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors that the vision tower may need."""
        return {**self.pixels, **self.text.about}

    @property
    def nbytes(self) -> int:
        """Size of its pixels in bytes."""
        return sum(tensor.nbytes for tensor in self.pixels.values())


@dataclass(frozen=True)
class Tokens:
    """A prompt's tokens.

    Attributes:
        ids: token ids.
        types: further values for each token, by name, such as whether it belongs to an image.
    """

    ids: list[int]
    types: Mapping[str, list[int]]


class Reader(PromptReader):
    """A processor, split into its two halves; arguments as for :class:`PromptReader`.

    Attributes:
        along: names of the small tensors of an image that the model gets, too.

    Raises:
        CheckpointError: the processor can't be split; its own errors pass through.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if not self.image_text:
            raise CheckpointError(f"{type(self.processor).__name__} does not say how a text has an image in it")
        self._by_size: dict[tuple[int, int, str], ImageText] = {}
        self._counts: dict[str, int] = {}
        self._small: frozenset[str] | None = None
        self._used: frozenset[str] | None = None
        self._process = self._find_process()
        self.along = self._find_names()

    def _find_process(self) -> Callable[[Sequence[Image.Image]], tuple[Inputs, Sequence[str]]]:
        """The processor's image half, with the settings that the processor calls it with."""
        texts = self._family.texts
        if texts is not None:
            return lambda images: (self._image_half_of_call(images, texts), [""] * len(images))
        original, seen = getattr(self.processor, "_process_images", None), {}
        if original is None:
            raise CheckpointError(f"{type(self.processor).__name__} prepares images in a way of its own")

        def spy(images: Any, **settings: Any) -> Any:
            seen.update(settings)
            return original(images, **settings)

        with self._in_place_of_images(spy):
            self._call(self.image_text, [ODD_IMAGE], tensors=True)
        if not seen:
            raise CheckpointError(f"{type(self.processor).__name__} prepares images in a way of its own")
        return lambda images: original([[*images]], **seen)

    def _find_names(self) -> tuple[str, ...]:
        """Finds out which tensors of an image are small, and which the model gets; returns the names in both groups."""
        both = self._call(self.image_text, [ODD_IMAGE], tensors=True)
        made = self.process(ODD_IMAGE, "")
        of_text = {*self._tokens_of(self.image_text, [made.text])}
        self._small = frozenset(made.text.about)
        self._used = frozenset(name for name in both if name not in of_text)
        return tuple(name for name in made.text.about if name in self._used)

    def check_budget(self, image_tokens: int | None, max_pixels: int | None) -> None:
        """Raises UserError if images still have more tokens or pixels than allowed, with the settings in effect."""
        if image_tokens is None and max_pixels is None:
            return
        frames = getattr(self.processor.image_processor, "temporal_patch_size", None) or 1  # a still image is repeated
        for size in _BUDGET_SIZES:
            made = self.process(Image.new("RGB", size), self.variant(2))
            tokens = self.tokens_of_image(made.text)
            pixels = sum(t.numel() // (3 * frames) for name, t in made.pixels.items() if name == "pixel_values")
            for option, limit, count, what in (("--image-tokens", image_tokens, tokens, "tokens"),
                                               ("--max-pixels", max_pixels, pixels, "pixels")):  # fmt: skip
                if limit is not None and count > limit:
                    raise UserError(
                        f"{option} {limit}: {type(self.processor.image_processor).__name__} can't be set so low; "
                        f"an image of {size[0]} x {size[1]} pixels still has {count} {what}"
                    )

    # -- images -------------------------------------------------------------------------------------------------------

    def variant(self, images: int) -> str:
        """What determines how the images of a prompt with so many images are processed."""
        return self._family.variant(images)

    def process(self, image: Image.Image, variant: str) -> ProcessedImage:
        """Processes an image, as in a prompt of that variant."""
        companions = [ODD_IMAGE] * self._family.companions(variant)
        with on_the_cpu():
            made, texts = self._process([image, *companions])
        tensors = {name: one for name, value in made.items() if (one := _as_tensor(value)) is not None}
        if companions:  # of tensors with a row for each image, keep the first row; keep others unchanged
            count = 1 + len(companions)
            tensors = {name: one[:1] if len(one) == count else one for name, one in tensors.items()}
        small = self._small
        if small is None:
            small = frozenset(name for name, one in tensors.items() if one.numel() <= _SMALL)
        large = tensors.keys() - small if self._used is None else self._used - small
        pixels = {name: one for name, one in tensors.items() if name in large}
        about = {name: one for name, one in tensors.items() if name in small}
        # most images have the same text, which can be long: it is stored once
        text = ImageText(sys.intern(str(texts[0])), about, {name: len(one) for name, one in pixels.items()})
        return ProcessedImage(text, pixels)

    def text_of_size(self, size: tuple[int, int], variant: str) -> ImageText:
        """The same for the text alone, which depends only on the image's size: (width, height) in pixels.

        Raises:
            QueryError: the processor does not accept images of that size.
        """
        key = (*size, variant)
        with self._lock:
            if key not in self._by_size:
                try:
                    self._by_size[key] = self.process(Image.new("RGB", size), variant).text
                except (ValueError, TypeError, ZeroDivisionError, RuntimeError, IndexError) as error:
                    raise QueryError(
                        f"an image of {size[0]} x {size[1]} pixels can't be prepared: {reason_of(error)}"
                    ) from error
            return self._by_size[key]

    def tokens_of_image(self, image: ImageText) -> int:
        """The number of tokens that an image has in a text."""
        with self._lock:
            if image.replacement not in self._counts:
                alone = self._tokens_of(self.image_text, [image])["input_ids"]
                nothing = self.tokenizer("")["input_ids"]  # such as a first special token
                self._counts[image.replacement] = len(alone) - len(nothing)
            return self._counts[image.replacement]

    # -- texts --------------------------------------------------------------------------------------------------------

    def tokens(self, prompt: Prompt, images: Sequence[ImageText]) -> Tokens:
        """A prompt's tokens, given its images in order. Raises QueryError if the processor refuses the prompt."""
        self.check_texts(prompt)
        rendering = self._renderer.render(prompt)
        try:
            if is_chat(self._renderer):
                found = self._tokens_of(conversation(rendering.messages, [PLACEHOLDER] * len(images)), images)
            else:
                found = self._tokens_of(self.written(rendering.text, rendering.images), images)
        except (ValueError, TypeError, IndexError) as error:
            raise QueryError(f"a prompt can't be tokenised: {reason_of(error)}") from error
        types = {name: row for name, row in found.items() if name not in ("input_ids", "attention_mask")}
        return Tokens(found["input_ids"], types)

    def _tokens_of(self, prompt: str | Conversation, images: Sequence[ImageText]) -> dict[str, list[int]]:
        """All values that the processor returns for each token, by name."""
        with self._lock:
            if self._family.texts is None:
                replaced = [image.replacement for image in images]
                with self._in_place_of_images(lambda *_, **__: (_stand_in(images), replaced)):
                    found = self._call(prompt, [PLACEHOLDER] * len(images), tensors=False)
            else:
                text = prompt if isinstance(prompt, str) else self._apply(prompt, tokenize=False)
                bare = {"add_special_tokens": False} if not isinstance(prompt, str) and self._begins(text) else {}
                found = self._family.texts(self.processor, text, **bare)
        length = len(_row(found["input_ids"]))
        rows = {name: _row(value) for name, value in found.items() if isinstance(value, list | Tensor) and len(value)}
        return {name: row for name, row in rows.items() if len(row) == length and all(type(x) is int for x in row)}

    def _image_half_of_call(self, images: Sequence[Image.Image], texts: Callable[..., Inputs]) -> Inputs:
        with self._lock:
            made = self._call(self.image_text * len(images), images, tensors=True)
        text = texts(self.processor, self.image_text)
        return {name: value for name, value in made.items() if name not in text}

    def _begins(self, text: str) -> bool:
        """Whether a template has already written the ``bos`` token (``ProcessorMixin.apply_chat_template``)."""
        return self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)

    @contextmanager
    def _in_place_of_images(self, function: Callable[..., Any]) -> Iterator[None]:
        with self._lock:
            self.processor._process_images = function
            try:
                yield
            finally:
                del self.processor._process_images


def _stand_in(images: Sequence[ImageText]) -> dict[str, Tensor]:
    """Replaces the image half's result: small tensors unchanged, and empty pixels with the right number of rows."""
    small = {name: torch.cat([image.about[name] for image in images]) for name in images[0].about} if images else {}
    rows = {name: sum(image.rows[name] for image in images) for name in images[0].rows} if images else {}
    return {**small, **{name: torch.empty(count, 0) for name, count in rows.items()}}


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor, or a list of integers as a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return torch.tensor(value)
    return None


def _row(value: Any) -> list[Any]:
    """The only row of a batch of one."""
    first = value[0]
    row = first.tolist() if isinstance(first, Tensor) else first
    return row if isinstance(row, list) else [row]
