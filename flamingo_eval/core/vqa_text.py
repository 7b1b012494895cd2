"""The VQA challenge's answer normaliser, with all its quirks, since they affect real scores.

Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py at its last commit
(``processPunctuation``, ``processDigitArticle``); its tables are data files of this package.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _tables() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(
        (Path(__file__).parent / "vqa_data" / "normaliser.json").read_text(encoding="utf-8")
    )
    return table


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    # the period pattern's lookbehind is misspelt there, "(?!<=\d)", so a period after a digit goes too
    return re.compile(_tables()["period_pattern"]), re.compile(_tables()["comma_pattern"])


_PERIODS_REMOVED = int(re.UNICODE)  # the flag is passed where a count is expected: at most 32 periods go


def strip_spaces(text: str) -> str:
    """Replaces line breaks and tabs by spaces, and removes white space at both ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def tokenise_as_mmf(text: str) -> str:
    """What the owners of TextVQA do to an answer before the challenge's normalisation.

    Source: facebookresearch/mmf, mmf/utils/m4c_evaluators.py (``EvalAIAnswerProcessor.word_tokenize``). What follows
    there is the challenge's code with the same tables; its comma pattern differs, but no comma is left by then.

    >>> normalise(tokenise_as_mmf("Coca-Cola's red,white"))
    "coca cola 's redwhite"
    """
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's")


@cache
def normalise(text: str) -> str:
    """An answer as the evaluator compares it.

    >>> normalise("The two cats, I think!")
    '2 cats i think'
    >>> normalise("its 3.5 dont")
    "its 3.5 don't"
    """
    return _digits_and_articles(_punctuation(strip_spaces(text)))


def _punctuation(text: str) -> str:
    """Removes a mark if it touches a space anywhere or digit-comma-digit occurs; else it becomes a space."""
    period, comma = _patterns()
    between_digits = comma.search(text) is not None
    result = text
    for mark in _tables()["punctuation"]:
        if mark in text:
            vanishes = between_digits or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if vanishes else " ")
    return period.sub("", result, count=_PERIODS_REMOVED)


def _digits_and_articles(text: str) -> str:
    tables = _tables()
    numbers, articles, contractions = tables["number_words"], tables["articles"], tables["contractions"]
    words = (numbers.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in articles)
