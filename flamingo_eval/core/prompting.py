"""From examples to prompts, and from raw text to answers; pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypedDict

from flamingo_eval.core.benchmark import AnswerRules, PromptRules
from flamingo_eval.core.digests import changed_fields
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.records import WITHHELD, Example, Message, Prompt, Rendering, Turn
from flamingo_eval.core.stemming import stem

_SLOT = re.compile(r"\{(\w+)(\|strip)?\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts an example's fields into a template; braces inside a field are left as they are.

    >>> fill("Output:{caption|strip}.", {"caption": " a {red} ball "})
    'Output:a {red} ball.'
    """
    try:
        return "".join(
            [
                text if name is None else values[name].strip() if strip else values[name]
                for text, name, strip in _parts(template)
            ]
        )
    except KeyError as error:
        raise UserError(f"the template {template!r} wants {error}; examples have {', '.join(values)}") from error


@cache
def _parts(template: str) -> list[tuple[str, str | None, bool]]:
    """The parts of a template: a text, or a field's name and whether it is stripped."""
    parts: list[tuple[str, str | None, bool]] = []
    end = 0
    for slot in _SLOT.finditer(template):
        parts += [(template[end : slot.start()], None, False), ("", slot[1], slot[2] is not None)]
        end = slot.end()
    return [*parts, (template[end:], None, False)]


def build_prompt(rules: PromptRules, demonstrations: Sequence[Example], query: Example, shots: int) -> Prompt:
    """The prompt of one query.

    With zero shots the demonstrations are text alone, and their images are not shown
    (open_flamingo/eval/evaluate.py, ``evaluate_captioning``).
    """
    turns = [demonstration_turn(rules, example, shown=shots > 0) for example in demonstrations]
    return prompt_of(rules, turns, query)


def demonstration_turn(rules: PromptRules, example: Example, *, shown: bool) -> Turn:
    """A demonstration, with its image or as text alone."""
    images, hidden = ((example.image,), ()) if shown else ((), (example.image,))
    return Turn(images, fill(rules.text, example.fields), fill(rules.answer, example.fields), hidden)


def prompt_of(rules: PromptRules, demonstrations: Sequence[Turn], query: Example) -> Prompt:
    """The prompt of one query, from demonstrations that are already turns."""
    asked = Turn((query.image,), fill(rules.text, query.fields))
    return Prompt(tuple(demonstrations), asked, rules.separator, rules.rgb, rules.zero_shot_keeps_images)


def interleaved(prompt: Prompt, image: str, end: str = "") -> Rendering:
    """A prompt as one text, with marks in it.

    Args:
        prompt: the prompt.
        image: the mark that stands for an image.
        end: the mark after a demonstration.

    >>> dog, cat = Turn(("1.jpg",), "Output:", "a dog"), Turn(("2.jpg",), "Output:")
    >>> interleaved(Prompt((dog,), cat, separator=" "), "<image>", "|").text
    '<image>Output:a dog| <image>Output:'
    """
    behind, texts, shown = end + prompt.separator, list[str](), list[str]()
    for turn in prompt.demonstrations:
        texts += (image * len(turn.images), turn.text, turn.answer or "", behind)
        shown += turn.images
    texts += (image * len(prompt.query.images), prompt.query.text)
    return Rendering("".join(texts), (*shown, *prompt.query.images), prompt.rgb)


@dataclass(frozen=True)
class Interleaved:
    """Renders the texts unchanged, with a mark where an image is.

    Attributes:
        name: what a run's record calls it.
        image: the mark.
        special: other strings that have a special meaning for the model.
    """

    name: str = "interleaved"
    image: str = "<image>"
    special: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Strings that a text of the data must not contain."""
        return (self.image, *self.special)

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as text."""
        return interleaved(prompt, self.image)

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """The rules, as far as they differ from the defaults."""
        return changed_fields(rules)


INTERLEAVED = Interleaved()


@dataclass(frozen=True)
class Chat:
    """Renders a conversation: each demonstration is a user's message, images first, and the assistant's answer.

    Attributes:
        system: the system's message, which comes first; None for none.
        special: strings that have a special meaning for the model.
        name: what a run's record calls it.
    """

    system: str | None = None
    special: tuple[str, ...] = ()
    name: str = "chat"
    chat = True

    @property
    def marks(self) -> tuple[str, ...]:
        """Strings that a text of the data must not contain."""
        return self.special

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as messages; an image that is withheld is left out."""
        messages = [] if self.system is None else [Message("system", self.system)]
        for turn in (*prompt.demonstrations, prompt.query):
            messages.append(Message("user", turn.text, tuple(image for image in turn.images if image != WITHHELD)))
            if turn.answer is not None:
                messages.append(Message("assistant", turn.answer))
        shown = tuple(image for message in messages for image in message.images)
        text = json.dumps(openai_form(messages), ensure_ascii=False)
        return Rendering(text, shown, prompt.rgb, tuple(messages))

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """The rules, as far as they differ from the defaults, and a mark that this is a conversation."""
        return {"chat": True, **changed_fields(rules)}


@dataclass(frozen=True)
class Elsewhere:
    """Renders nothing: the answers come from another system, and what that was shown is not known."""

    name: str = "elsewhere"
    marks: tuple[str, ...] = ()
    elsewhere = True

    def render(self, prompt: Prompt) -> Rendering:
        """No text and no images."""
        return Rendering("", (), prompt.rgb)

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """Nothing."""
        del rules
        return {}


ELSEWHERE = Elsewhere()


def is_elsewhere(renderer: object) -> bool:
    """Whether answers come from another system and are final."""
    return getattr(renderer, "elsewhere", False) is True


def is_chat(renderer: object) -> bool:
    """Whether a renderer's prompts are conversations; benchmarks have separate instructions for these."""
    return getattr(renderer, "chat", False) is True


class ImageAddress(TypedDict):
    """Where an image is."""

    url: str


class ImagePart(TypedDict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


class TextPart(TypedDict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class OpenAIMessage(TypedDict):
    """A message in the format of OpenAI's chat completions."""

    role: str
    content: list[ImagePart | TextPart]


def openai_form(messages: Sequence[Message]) -> list[OpenAIMessage]:
    """Messages in the format of OpenAI's chat completions, with paths in place of addresses.

    >>> openai_form([Message("user", "What is it?", ("1.jpg",))])[0]["content"][0]
    {'type': 'image_url', 'image_url': {'url': '1.jpg'}}
    """
    return [{"role": message.role, "content": _message_parts(message)} for message in messages]


def _message_parts(message: Message) -> list[ImagePart | TextPart]:
    images = [ImagePart(type="image_url", image_url={"url": image}) for image in message.images]
    return [*images, TextPart(type="text", text=message.text)]


def mark_in(templates: Sequence[str], example: Example, marks: Sequence[str]) -> str | None:
    """The first mark that occurs in those texts of an example that the templates show; None if none does.

    A text of the data that contains a mark would divide the prompt at the wrong place.

    >>> mark_in(["Q:{question}"], Example(1, "1.jpg", {"question": "is <image> red?", "answer": "no"}), ["<image>"])
    '<image>'
    """
    names = (name for template in templates for _, name, _ in _parts(template))
    return mark_among((example.fields.get(name, "") for name in names if name is not None), marks)


def mark_among(texts: Iterable[str], marks: Sequence[str]) -> str | None:
    """The first mark that occurs in one of the texts; None if none does.

    >>> mark_among(["is it red?", "is <image> red?"], ["<image>"])
    '<image>'
    """
    found = _any_of(tuple(marks))
    return next((match[0] for text in texts if (match := found.search(text))), None)


@cache
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Finds any of the marks; the longest where several begin at one place. (Some tokenizers have thousands.)"""
    alike: dict[str, list[str]] = {}
    for mark in sorted(filter(None, marks), key=len, reverse=True):
        alike.setdefault(mark[0], []).append(re.escape(mark[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in alike.items()) or r"(?!)")


def fields_in(template: str) -> set[str]:
    """Names of the fields that a template shows.

    >>> sorted(fields_in("{text|strip}: {label}"))
    ['label', 'text']
    """
    return {slot[1] for slot in _SLOT.finditer(template)}


def answer_field(rules: PromptRules) -> str:
    """The field that is a demonstration's answer.

    >>> answer_field(PromptRules(text="Q:{question} A:", answer="{answer|strip}"))
    'answer'

    Raises:
        UserError: there is none, or more than one.
    """
    names = sorted(fields_in(rules.answer))
    if len(names) != 1:
        raise UserError(f"which field of {rules.answer!r} is the answer? Found: {', '.join(names) or 'none'}")
    return names[0]


def extract_answer(rules: AnswerRules, raw: str) -> str:
    """The answer inside the raw text.

    >>> extract_answer(AnswerRules(cut=(("Output",),), remove=('"',)), 'a "red" ball Output:a dog')
    'a red ball '
    >>> extract_answer(AnswerRules(blocks=(("<a>", "</a>"),), first_line=True), "<a>hm</a>\\n\\nA cat.\\nIt")
    'A cat.'
    """
    for begin, end in rules.blocks:
        if begin in raw or end in raw:  # a template may have opened it already
            raw = raw.rpartition(end)[2] if raw.rfind(end) > raw.rfind(begin) else ""
    if rules.first_line:
        raw = next((line.strip() for line in raw.split("\n") if line.strip()), "")
    for group in rules.cut:
        found = [position for position in (raw.find(word) for word in group) if position >= 0]
        raw = raw[: min(found)] if found else raw
    for piece in rules.remove:
        raw = raw.replace(piece, "")
    if rules.trim_end:
        raw = raw.rstrip(rules.trim_end + " ")
    return finish_answer(rules, raw)


def finish_answer(rules: AnswerRules, answer: str) -> str:
    """Finishes an answer that is already extracted: stems it where the annotations are stemmed."""
    return stem(answer) if rules.stem else answer
