"""A processor of transformers as it stands: prompts with their images in, what ``generate`` takes out."""

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
"""In place of an image where only its place matters."""

ODD_IMAGE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
"""Large enough for what processors want of an image at least, and not all of one colour."""

_CONVERSATION = Prompt(
    (Turn((), "What is one and one? " + "And one more? " * 40 + "Say it in words.", "Two, surely."),),
    Turn(("image",), "What is it?"),
)

_REFUSALS = (TemplateError, TypeError, ValueError, KeyError, IndexError)
"""What templates and processors raise for what they don't take."""


class PromptReader:
    """A processor with the way that prompts are written for it.

    Args:
        processor: of transformers; it is copied, and stays as it is.
        family: what its architecture needs besides.
        renderer: how prompts are written.
        template: of conversations.
        switches: of the template.
        settings: for images, such as ``max_pixels``.

    Attributes:
        image_text: how a text has an image in it; empty where texts and images are handed over side by side.
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
        """As the template writes it between two words, else the processor's token."""
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
        """How many images a prompt may have, at most; None for any number."""
        return self._family.images

    @property
    def marks(self) -> tuple[str, ...]:
        """What a text of a prompt must not hold."""
        return (*self._renderer.marks, *self._image_marks)

    def check_texts(self, prompt: Prompt) -> None:
        """Raises QueryError for a text that the processor would take for an image."""
        texts = [one for turn in (*prompt.demonstrations, prompt.query) for one in (turn.text, turn.answer or "")]
        mark = mark_among(texts, self._image_marks)
        if mark is not None:
            raise QueryError(f"a text of the prompt holds {mark}, which stands for an image")

    def check_template(self, name: str) -> None:
        """Finds out how the template wants messages without images: as parts, like the others, or as plain texts.

        Raises:
            UserError: it writes a conversation in neither form, such as one with a system message.
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
        """Why the template does not write a conversation with all its texts; None if it does."""
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
        """A prompt with its images as the processor prepares both; whatever it raises passes. Raises QueryError."""
        self.check_texts(prompt)
        rendering = self._renderer.render(prompt)
        with self._lock:
            if is_chat(self._renderer):
                made = self._call(conversation(rendering.messages, images), images, tensors=True)
            else:
                made = self._call(self.written(rendering.text, rendering.images), images, tensors=True)
        return dict(made)

    def written(self, text: str, images: Sequence[str]) -> str:
        """An interleaved text with its images as the processor wants them; nothing in place of a withheld one."""
        first, *rest = text.split(INTERLEAVED.image)
        marks = ("" if image == WITHHELD else self.image_text for image in images)
        return first + "".join(mark + part for mark, part in zip(marks, rest, strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, special ones left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode_plain(self, name: str) -> list[int]:
        """Token ids of a class name: alone, without special tokens."""
        return [int(id) for id in self.tokenizer(name, add_special_tokens=False)["input_ids"]]

    def _call(self, prompt: str | Conversation, images: Sequence[Image.Image], *, tensors: bool) -> Any:
        """The whole processor, on a text or on messages that hold their images."""
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
        """Messages, those without images as plain texts where the template wants them so."""
        if not self._plain_contents:
            return messages
        bare = [one["content"][0]["text"] if one["role"] != "user" else one["content"] for one in messages]
        return [{"role": one["role"], "content": text} for one, text in zip(messages, bare, strict=True)]


def opened_as_transformers_does(image: Image.Image) -> Image.Image:
    """The right way up, and in RGB (transformers, image_utils.py, ``load_image``)."""
    return ImageOps.exif_transpose(image).convert("RGB")


def conversation(messages: Sequence[Message], images: Sequence[Image.Image]) -> Conversation:
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
