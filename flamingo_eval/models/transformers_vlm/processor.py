"""An unmodified processor of transformers: it turns prompts with images into arguments of ``generate``."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from PIL import Image, ImageOps

from flamingo_eval.core.errors import CheckpointError, QueryError, UserError
from flamingo_eval.core.prompting import INTERLEAVED, is_chat, mark_among
from flamingo_eval.core.protocols import Renderer
from flamingo_eval.core.records import WITHHELD, Message, Prompt, Turn
from flamingo_eval.devices import on_the_cpu
from flamingo_eval.libraries import reason_of
from flamingo_eval.models.transformers_vlm.families.base import Family
from flamingo_eval.models.transformers_vlm.foreign import Conversation, Inputs, Switches

PLACEHOLDER = Image.new("RGB", (1, 1))
"""Stands in for an image if only its position matters."""

ODD_IMAGE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
"""A test image: large enough for the minimum sizes of processors, and not of a single colour."""

_CONVERSATION = Prompt(
    (Turn((), "What is one and one? " + "And one more? " * 40 + "Say it in words.", "Two, surely."),),
    Turn(("image",), "What is it?"),
)

_REFUSALS = (TemplateError, TypeError, ValueError, KeyError, IndexError)
"""Errors that templates and processors raise for input that they don't accept."""


class PromptReader:
    """A processor, and how prompts are written for it.

    Args:
        processor: a processor of transformers; it is copied and not modified.
        family: what its architecture needs in addition.
        renderer: how prompts are written.
        template: the chat template; None if there is none.
        switches: switches of the template.
        settings: settings for images, such as ``size``.

    Attributes:
        image_text: what stands for an image in a text; empty if texts and images are passed separately.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        renderer: Renderer,
        template: str | None,
        switches: Switches | None = None,
        settings: Inputs | None = None,
    ) -> None:
        self.processor, self.tokenizer = copy.copy(processor), processor.tokenizer
        self._family, self._renderer = family, renderer
        self._template, self._switches, self._settings = template, dict(switches or {}), dict(settings or {})
        self._lock = threading.RLock()
        self._plain_contents = False
        self.image_text = self._find_image_text()
        named = [getattr(owner, "image_token", None) for owner in (self.processor, self.tokenizer)]
        self._image_marks = tuple(dict.fromkeys(str(getattr(one, "content", one)) for one in named if one))

    def _find_image_text(self) -> str:
        """What the template writes for an image between two words, else the family's or the processor's mark."""
        if self._template is not None:
            words = ({"type": "text", "text": "LEFTMOST"}, {"type": "image"}, {"type": "text", "text": "RIGHTMOST"})
            text = ""
            with contextlib.suppress(*_REFUSALS):
                text = self._apply([{"role": "user", "content": [*words]}], tokenize=False)
            between, right, _ = text.partition("LEFTMOST")[2].partition("RIGHTMOST")
            if right and between.strip():
                return between.strip()
        found = self._family.image_text or getattr(self.processor, "image_token", None) or ""
        return str(getattr(found, "content", found))

    @property
    def most_images(self) -> int | None:
        """The most images that a prompt may have; None for any number."""
        return self._family.images

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks that a text of a prompt must not contain."""
        return (*self._renderer.marks, *self._image_marks)

    def check_texts(self, prompt: Prompt) -> None:
        """Raises QueryError for a text with a mark that the processor would replace by an image."""
        texts = [one for turn in (*prompt.demonstrations, prompt.query) for one in (turn.text, turn.answer or "")]
        mark = mark_among(texts, self._image_marks)
        if mark is not None:
            raise QueryError(f"a text of the prompt holds {mark}, which stands for an image")

    def check_template(self, name: str) -> None:
        """Finds out which form the template needs for messages without images: a list of parts, or a plain text.

        Raises:
            UserError: it can't write the conversation in either form, for example because of a system message.
        """
        if not is_chat(self._renderer):
            return
        system = [one.text for one in self._renderer.render(_CONVERSATION).messages if one.role == "system"]
        mark = mark_among(system, self._image_marks)
        if mark is not None:
            raise UserError(f"--system holds {mark}, which stands for an image")
        why = self._refusal(_CONVERSATION)
        if why is not None:
            self._plain_contents = True
            if self._refusal(_CONVERSATION) is not None:
                raise UserError(f"the chat template of hf:{name} can't write this conversation: {why}")

    def _refusal(self, prompt: Prompt) -> str | None:
        """Why the template does not write a conversation correctly, with all its texts; None if it does."""
        rendering = self._renderer.render(prompt)
        try:
            written = self._apply(conversation(rendering.messages, [PLACEHOLDER]), tokenize=False)
        except _REFUSALS as error:
            return str(error) or type(error).__name__
        lacking = next((one.text for one in rendering.messages if one.text.strip() not in written), None)
        if lacking is not None:
            return f"it leaves out {lacking[:60]!r}"
        printed = "'type':" in written and not any("'type':" in one.text for one in rendering.messages)
        return "it prints parts of messages as they are" if printed else None

    def check_images(self, name: str) -> None:
        """Raises CheckpointError if the processor does not prepare a prompt with an image."""
        try:
            self.together(Prompt((), Turn(("image",), "What is it?")), [ODD_IMAGE])
        except _REFUSALS as error:
            raise CheckpointError(
                f"the processor of hf:{name} does not prepare a text with an image: {reason_of(error)}"
            ) from error

    def together(self, prompt: Prompt, images: Sequence[Image.Image]) -> Inputs:
        """A prompt and its images, prepared by the processor, whose errors pass through. Raises QueryError."""
        self.check_texts(prompt)
        rendering = self._renderer.render(prompt)
        with self._lock:
            if is_chat(self._renderer):
                made = self._call(conversation(rendering.messages, images), images, tensors=True)
            else:
                made = self._call(self.written(rendering.text, rendering.images), images, tensors=True)
        return dict(made)

    def written(self, text: str, images: Sequence[str]) -> str:
        """An interleaved text with the processor's mark for each image, and nothing for a withheld one."""
        first, *rest = text.split(INTERLEAVED.image)
        marks = ("" if image == WITHHELD else self.image_text for image in images)
        return first + "".join(mark + part for mark, part in zip(marks, rest, strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode_plain(self, name: str) -> list[int]:
        """Token ids of a class name by itself, without special tokens."""
        return [int(id) for id in self.tokenizer(name, add_special_tokens=False)["input_ids"]]

    def _call(self, prompt: str | Conversation, images: Sequence[Image.Image], *, tensors: bool) -> Any:
        """Runs the complete processor, on a text or on messages that contain their images."""
        kind = {"return_tensors": "pt"} if tensors else {}
        with on_the_cpu():
            if isinstance(prompt, str):
                return self.processor(text=[prompt], images=[[*images]] if images else None, **self._settings, **kind)
            return self._apply(prompt, tokenize=True, return_dict=True, **kind)

    def _apply(self, messages: Conversation, **how: Any) -> Any:
        settings = {"processor_kwargs": dict(self._settings)} if how.get("tokenize") and self._settings else {}
        how = {"chat_template": self._template, "add_generation_prompt": True, **self._switches, **settings, **how}
        return self.processor.apply_chat_template(self._contents(messages), **how)

    def _contents(self, messages: Conversation) -> Conversation:
        """Messages; if the template needs it, the content of system and assistant messages becomes a plain text."""
        if not self._plain_contents:
            return messages
        bare = [one["content"][0]["text"] if one["role"] != "user" else one["content"] for one in messages]
        return [{"role": one["role"], "content": text} for one, text in zip(messages, bare, strict=True)]


def opened_as_transformers_does(image: Image.Image) -> Image.Image:
    """The image in the orientation that its EXIF data gives, in RGB (transformers, image_utils.py, ``load_image``)."""
    return ImageOps.exif_transpose(image).convert("RGB")


def conversation(messages: Sequence[Message], images: Sequence[Image.Image]) -> Conversation:
    """Messages in the form that transformers' templates use; every content is a list of parts."""
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
