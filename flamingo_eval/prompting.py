"""From examples to prompts, and from raw text to answers; pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from flamingo_eval.benchmark import AnswerRules, PromptRules
from flamingo_eval.errors import UserError
from flamingo_eval.nouns import Example, Prompt
from flamingo_eval.stemming import stem

IMAGE = "<image>"
SPECIAL_TOKENS = (IMAGE, "<|endofchunk|>")
"""What divides a prompt into images and demonstrations; a text of the data that holds one would divide it elsewhere."""
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

    With zero shots the demonstrations are text only: every ``<image>`` is removed from their text and their pictures
    are not given (open_flamingo/eval/evaluate.py, ``evaluate_captioning``), unless the rules say that they are.

    Texts that hold special tokens are for the caller to find (:func:`special_token_in`).
    """
    context = "".join(fill(rules.demonstration, example.fields) for example in demonstrations)
    images = [example.image for example in demonstrations]
    if shots == 0:
        context = context.replace(IMAGE, "")
        images = images if rules.zero_shot_keeps_images else []
    text = context + fill(rules.query, query.fields)
    images.append(query.image)
    return Prompt(text, tuple(images), rgb=rules.rgb)


def special_token_in(template: str, example: Example) -> str | None:
    """The special token that a text of an example holds, among those texts that the template shows.

    >>> special_token_in("Q:{question}", Example(1, "1.jpg", {"question": "is <image> red?", "answer": "no"}))
    '<image>'
    """
    shown = (example.fields.get(name, "") for _, name, _ in _parts(template) if name is not None)
    return next((token for text in shown if "<" in text for token in SPECIAL_TOKENS if token in text), None)


def answer_field(rules: PromptRules) -> str:
    """The field that demonstrations show and queries don't: the answer.

    >>> answer_field(PromptRules(demonstration="Q:{question} A:{answer}", query="Q:{question} A:"))
    'answer'

    Raises:
        UserError: there is none, or more than one.
    """
    shown, asked = ({slot[1] for slot in _SLOT.finditer(text)} for text in (rules.demonstration, rules.query))
    extra = sorted(shown - asked)
    if len(extra) != 1:
        raise UserError(f"which field of {rules.demonstration!r} is the answer? Found: {', '.join(extra) or 'none'}")
    return extra[0]


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
