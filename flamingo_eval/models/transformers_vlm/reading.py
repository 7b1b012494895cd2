"""A processor's two halves apart: each image is processed once, and prompts are tokenised from what that gave.

A processor replaces what stands for an image in a text by as many tokens as the image has, which its image half has
found. Here that half is handed what it found before, so that everything else runs as it stands: template, replacement,
tokens, token types. (transformers, processing_utils.py: ``ProcessorMixin.__call__`` and ``_process_images``.)
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps
from torch import Tensor

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import INTERLEAVED, is_chat
from flamingo_eval.core.protocols import Renderer
from flamingo_eval.core.records import WITHHELD, Message, Prompt, Turn
from flamingo_eval.devices import on_the_cpu
from flamingo_eval.models.transformers_vlm.families.base import Family

_SMALL = 64
"""Numbers of a tensor that says something about an image, and is not the image itself, at most."""

_BUDGET_SIZES = ((640, 480), (480, 640), (1200, 300), (300, 300))

_CONVERSATION = Prompt((Turn((), "What is one and one?", "Two, surely."),), Turn(("image",), "What is it?"))

_DUMMY = Image.new("RGB", (1, 1))


@dataclass(frozen=True)
class ImageText:
    """An image as texts know it.

    Attributes:
        replacement: what a text has in its place.
        about: small tensors that go along with it, such as its grid.
        rows: name of a tensor of pixels -> its first dimension.
    """

    replacement: str
    about: Mapping[str, Tensor]
    rows: Mapping[str, int]


@dataclass(frozen=True)
class ProcessedImage:
    """What a processor makes of an image.

    Attributes:
        text: as texts know it.
        pixels: what the vision tower gets, besides what ``text.about`` holds.
    """

    text: ImageText
    pixels: Mapping[str, Tensor]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All that the vision tower may want."""
        return {**self.pixels, **self.text.about}


@dataclass(frozen=True)
class Tokens:
    """A prompt's tokens.

    Attributes:
        ids: of the tokens.
        types: further values for each token, by name, such as which are of an image.
    """

    ids: list[int]
    types: Mapping[str, list[int]]


class Reader:
    """A processor, taken apart.

    Args:
        processor: of transformers; it is copied, and stays as it is.
        family: what its architecture needs besides.
        renderer: how prompts are written.
        template: of conversations.
        switches: of the template.
        settings: for the processor's image half, such as ``max_pixels``.

    Attributes:
        along: names of what of an image's small tensors the model gets, too.
        image_text: how a text has an image in it.

    Raises:
        UserError: the processor can't be taken apart; what it raises itself passes.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        renderer: Renderer,
        *,
        template: str | None,
        switches: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.processor = copy.copy(processor)
        self.tokenizer = processor.tokenizer
        self._family, self._renderer = family, renderer
        self._template, self._switches, self._settings = template, dict(switches or {}), dict(settings or {})
        self._lock = threading.RLock()
        self._by_size: dict[tuple[int, int, str], ImageText] = {}
        self._counts: dict[str, int] = {}
        self._plain_contents = False
        self.image_text = self._find_image_text()
        self._process = self._find_process()
        self.along, self._given = self._find_keys()

    # -- what is found out about the processor, once ------------------------------------------------------------------

    def _find_image_text(self) -> str:
        """How a text has an image in it: as the template writes it between two words, else the processor's token."""
        if self._template is not None:
            words = ({"type": "text", "text": "LEFTMOST"}, {"type": "image"}, {"type": "text", "text": "RIGHTMOST"})
            text = ""
            with contextlib.suppress(TemplateError, TypeError, ValueError):
                text = self._apply([{"role": "user", "content": [*words]}], tokenize=False)
            between = text.partition("LEFTMOST")[2].partition("RIGHTMOST")[0].strip()
            if between:
                return str(between)
        found = self._family.image_text or getattr(self.processor, "image_token", None)
        if not found:
            raise UserError(f"{type(self.processor).__name__} does not say how a text has an image in it")
        return str(getattr(found, "content", found))

    def _find_process(self) -> Callable[[Sequence[Image.Image]], tuple[Mapping[str, Any], Sequence[str]]]:
        """The processor's image half by itself, with the settings that it is called with."""
        if not self._family.processes_images:
            return lambda images: (self._image_half_of_call(images), [""] * len(images))
        original, seen = self.processor._process_images, {}

        def spy(images: Any, **settings: Any) -> Any:
            seen.update(settings)
            return original(images, **settings)

        with self._in_place_of_images(spy):
            self._call(self.image_text, [_DUMMY_LARGE], tensors=True)
        if not seen:
            raise UserError(f"{type(self.processor).__name__} prepares images in a way of its own")
        return lambda images: original([[*images]], **seen)

    def _find_keys(self) -> tuple[tuple[str, ...], frozenset[str]]:
        """Which small tensors of an image the model gets along, and everything that it gets of one."""
        whole = self._call(self.image_text, [_DUMMY_LARGE], tensors=True)
        made = self.process(_DUMMY_LARGE, "")
        of_text = {*self._tokens_of(self.image_text, [made.text])}
        given = frozenset(name for name in whole if name not in of_text)
        return tuple(name for name in made.text.about if name in given), given

    @property
    def most_images(self) -> int | None:
        """How many images a prompt may have, at most; None for any number."""
        return self._family.images

    def check_budget(self, image_tokens: int | None, max_pixels: int | None) -> None:
        """Raises UserError if images have more tokens or pixels than they should, with all that can be set."""
        if image_tokens is None and max_pixels is None:
            return
        for size in _BUDGET_SIZES:
            made = self.process(Image.new("RGB", size), self.variant(2))
            tokens = self.tokens_of_image(made.text)
            pixels = sum(t.numel() // 3 for name, t in made.pixels.items() if name == "pixel_values")
            for option, limit, count, what in (("--image-tokens", image_tokens, tokens, "tokens"),
                                               ("--max-pixels", max_pixels, pixels, "pixels")):  # fmt: skip
                if limit is not None and count > limit:
                    raise UserError(
                        f"{option} {limit}: with all that {type(self.processor.image_processor).__name__} lets one "
                        f"set, an image of {size[0]} x {size[1]} pixels still has {count} {what}"
                    )

    def check_template(self, name: str) -> None:
        """Finds out how the template wants messages without images: as parts, like the others, or as plain texts.

        Raises:
            UserError: it writes a conversation in neither form, such as one with a system message.
        """
        if not is_chat(self._renderer):
            return
        rendering, why = self._renderer.render(_CONVERSATION), "it leaves out what the assistant said"
        for self._plain_contents in (False, True):
            try:
                written = self._apply(_conversation(rendering.messages, [_DUMMY]), tokenize=False)
            except (TemplateError, TypeError, ValueError) as error:
                why = str(error) or type(error).__name__
                continue
            said = [message.text for message in rendering.messages]
            if all(text in written for text in said) and "'type':" not in written:
                return
        raise UserError(f"the chat template of hf:{name} can't write this conversation: {why}")

    # -- images -------------------------------------------------------------------------------------------------------

    def variant(self, images: int) -> str:
        """What decides how images of a prompt with so many are processed."""
        return self._family.variant(images)

    def process(self, image: Image.Image, variant: str) -> ProcessedImage:
        """What the processor makes of an image, as one of a prompt of that variant."""
        companions = [_DUMMY_LARGE] * self._family.companions(variant)
        with on_the_cpu():
            made, texts = self._process([image, *companions])
        tensors = {name: one for name, value in made.items() if (one := _as_tensor(value)) is not None}
        if companions:  # of what has a row for each image the first one; what is said of the prompt stays whole
            count = 1 + len(companions)
            tensors = {name: one[:1] if len(one) == count else one for name, one in tensors.items()}
        known = getattr(self, "_given", None)
        pixels = {n: t for n, t in tensors.items() if t.numel() > _SMALL and (known is None or n in known)}
        about = {name: one for name, one in tensors.items() if one.numel() <= _SMALL}
        rows = {name: len(one) for name, one in pixels.items()}
        return ProcessedImage(ImageText(str(texts[0]), about, rows), pixels)

    def text_of_size(self, size: tuple[int, int], variant: str) -> ImageText:
        """The same for the text alone, which goes by an image's size: (width, height) in pixels."""
        key = (*size, variant)
        with self._lock:
            if key not in self._by_size:
                self._by_size[key] = self.process(Image.new("RGB", size), variant).text
            return self._by_size[key]

    def tokens_of_image(self, image: ImageText) -> int:
        """How many tokens an image has in a text."""
        with self._lock:
            if image.replacement not in self._counts:
                self._counts[image.replacement] = len(self.encode_plain(image.replacement))
            return self._counts[image.replacement]

    # -- texts --------------------------------------------------------------------------------------------------------

    def tokens(self, prompt: Prompt, images: Sequence[ImageText]) -> Tokens:
        """A prompt's tokens, given its images in order."""
        rendering = self._renderer.render(prompt)
        if is_chat(self._renderer):
            found = self._tokens_of(_conversation(rendering.messages, [_DUMMY] * len(images)), images)
        else:
            found = self._tokens_of(self.written(rendering.text, rendering.images), images)
        types = {name: row for name, row in found.items() if name not in ("input_ids", "attention_mask")}
        return Tokens(found["input_ids"], types)

    def written(self, text: str, images: Sequence[str]) -> str:
        """An interleaved text with its images as the processor wants them; nothing in place of a withheld one."""
        first, *rest = text.split(INTERLEAVED.image)
        marks = ("" if image == WITHHELD else self.image_text for image in images)
        return first + "".join(mark + part for mark, part in zip(marks, rest, strict=True))

    def _tokens_of(self, prompt: str | list[dict[str, Any]], images: Sequence[ImageText]) -> dict[str, list[int]]:
        """Everything that the processor says of each token."""
        with self._lock:
            if self._family.processes_images:
                replaced = [image.replacement for image in images]
                with self._in_place_of_images(lambda *_, **__: (_stand_in(images), replaced)):
                    found = self._call(prompt, [_DUMMY] * len(images), tensors=False)
            else:
                text = prompt if isinstance(prompt, str) else self._apply(prompt, tokenize=False)
                bare = {"add_special_tokens": False} if not isinstance(prompt, str) and self._begins(text) else {}
                found = self._family.texts(self.processor, text, **bare)
        length = len(_row(found["input_ids"]))
        rows = {name: _row(value) for name, value in found.items() if isinstance(value, list | Tensor) and len(value)}
        return {name: row for name, row in rows.items() if len(row) == length and all(type(x) is int for x in row)}

    def whole(self, prompt: Prompt, images: Sequence[Image.Image]) -> Mapping[str, Any]:
        """A prompt with its images as the processor prepares both together; for the plain path."""
        rendering = self._renderer.render(prompt)
        with self._lock:
            if is_chat(self._renderer):
                made = self._call(_conversation(rendering.messages, images), images, tensors=True)
            else:
                made = self._call(self.written(rendering.text, rendering.images), images, tensors=True)
        return dict(made)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, special ones left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode_plain(self, name: str) -> list[int]:
        """Token ids of a class name: alone, without special tokens."""
        return [int(id) for id in self.tokenizer(name, add_special_tokens=False)["input_ids"]]

    # -- the processor itself -----------------------------------------------------------------------------------------

    def _call(self, prompt: str | list[dict[str, Any]], images: Sequence[Image.Image], *, tensors: bool) -> Any:
        """The whole processor, on a text or on messages that hold their images."""
        kind = {"return_tensors": "pt"} if tensors else {}
        with on_the_cpu():
            if isinstance(prompt, str):
                return self.processor(text=[prompt], images=[[*images]] if images else None, **self._settings, **kind)
            return self._apply(prompt, tokenize=True, return_dict=True, **kind)

    def _apply(self, conversation: list[dict[str, Any]], **how: Any) -> Any:
        settings = {"processor_kwargs": dict(self._settings)} if how.get("tokenize") and self._settings else {}
        how = {"chat_template": self._template, "add_generation_prompt": True, **self._switches, **settings, **how}
        return self.processor.apply_chat_template(self._contents(conversation), **how)

    def _contents(self, conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages, those without images as plain texts where the template wants them so."""
        if not self._plain_contents:
            return conversation
        bare = [one["content"][0]["text"] if one["role"] != "user" else one["content"] for one in conversation]
        return [{"role": one["role"], "content": text} for one, text in zip(conversation, bare, strict=True)]

    def _image_half_of_call(self, images: Sequence[Image.Image]) -> Mapping[str, Any]:
        with self._lock:
            made = self._call(self.image_text * len(images), images, tensors=True)
        text = self._family.texts(self.processor, self.image_text)
        return {name: value for name, value in made.items() if name not in text}

    def _begins(self, text: str) -> bool:
        """Whether a template has written the first special token already (``ProcessorMixin.apply_chat_template``)."""
        return self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)

    @contextmanager
    def _in_place_of_images(self, function: Callable[..., Any]) -> Iterator[None]:
        with self._lock:
            self.processor._process_images = function
            try:
                yield
            finally:
                del self.processor._process_images


_DUMMY_LARGE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
"""Large enough for what processors want of an image at least, and not all of one colour."""


def opened_as_transformers_does(image: Image.Image) -> Image.Image:
    """The right way up, and in RGB (transformers, image_utils.py, ``load_image``)."""
    return ImageOps.exif_transpose(image).convert("RGB")


def _conversation(messages: Sequence[Message], images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Messages as transformers' templates have them; every content is a list of parts."""
    left = iter(images)
    return [
        {
            "role": message.role,
            "content": [
                *({"type": "image", "image": next(left)} for _ in message.images),
                {"type": "text", "text": message.text},
            ],
        }
        for message in messages
    ]


def _stand_in(images: Sequence[ImageText]) -> dict[str, Tensor]:
    """In place of what the image half gives: small tensors as they are, of pixels only how many rows they have."""
    small = {name: torch.cat([image.about[name] for image in images]) for name in images[0].about} if images else {}
    rows = {name: sum(image.rows[name] for image in images) for name in images[0].rows} if images else {}
    return {**small, **{name: torch.empty(count, 0) for name, count in rows.items()}}


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor, or numbers as one; None for anything else."""
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
