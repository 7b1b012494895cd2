"""From examples to prompts, and from raw text to answers; pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flamingo_eval.core.benchmark import AnswerRules, PromptRules
from flamingo_eval.core.digests import changed_fields
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.records import Example, Prompt, Rendering, Turn
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
    """A template cut up: a text, or a field's name and whether it is stripped."""
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
    """The prompt of one query, whose demonstrations are turns already."""
    asked = Turn((query.image,), fill(rules.text, query.fields))
    return Prompt(tuple(demonstrations), asked, rules.separator, rules.rgb, rules.zero_shot_keeps_images)


def interleaved(prompt: Prompt, image: str, end: str = "") -> Rendering:
    """A prompt as one text, with marks in it.

    Args:
        prompt: the prompt.
        image: the mark that stands for an image.
        end: the mark behind a demonstration.

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
    """The texts as they are, with a mark where an image is.

    Attributes:
        name: what a run's record calls it.
        image: the mark.
    """

    name: str = "interleaved"
    image: str = "<image>"

    @property
    def marks(self) -> tuple[str, ...]:
        """What a text of the data must not hold."""
        return (self.image,)

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as text."""
        return interleaved(prompt, self.image)

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """The rules, as far as they differ from the defaults."""
        return changed_fields(rules)


INTERLEAVED = Interleaved()


def mark_in(templates: Sequence[str], example: Example, marks: Sequence[str]) -> str | None:
    """The mark that a text of an example holds, among those texts that the templates show.

    A text of the data that holds one would divide the prompt elsewhere.

    >>> mark_in(["Q:{question}"], Example(1, "1.jpg", {"question": "is <image> red?", "answer": "no"}), ["<image>"])
    '<image>'
    """
    shown = [
        example.fields.get(name, "") for template in templates for _, name, _ in _parts(template) if name is not None
    ]
    return next((mark for text in shown for mark in marks if mark in text), None)


def answer_field(rules: PromptRules) -> str:
    """The field that is a demonstration's answer.

    >>> answer_field(PromptRules(text="Q:{question} A:", answer="{answer|strip}"))
    'answer'

    Raises:
        UserError: there is none, or more than one.
    """
    names = sorted({slot[1] for slot in _SLOT.finditer(rules.answer)})
    if len(names) != 1:
        raise UserError(f"which field of {rules.answer!r} is the answer? Found: {', '.join(names) or 'none'}")
    return names[0]


def extract_answer(rules: AnswerRules, raw: str) -> str:
    """The answer inside the raw text.

    >>> extract_answer(AnswerRules(cut=(("Output",),), remove=('"',)), 'a "red" ball Output:a dog')
    'a red ball '
    """
    for group in rules.cut:
        found = [position for position in (raw.find(word) for word in group) if position >= 0]
        raw = raw[: min(found)] if found else raw
    for piece in rules.remove:
        raw = raw.replace(piece, "")
    return finish_answer(rules, raw)


def finish_answer(rules: AnswerRules, answer: str) -> str:
    """What is done to an answer that is already cut out: stemming, where the annotations are stemmed."""
    return stem(answer) if rules.stem else answer
