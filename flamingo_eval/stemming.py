"""Stems as OK-VQA's annotations have them, offline.

Source: open_flamingo/eval/ok_vqa_utils.py (``OKVQAStemmer``): NLTK's tokenizer and part-of-speech tagger, then, word by
word, a table of exceptions, WordNet's lemma for words in *-ing*, the singular for plural nouns.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_DATA = Path(__file__).parent / "stemming_data"
# WordNet's detachment rules for verbs (morphy(7WN)); only words in -ing come here
_ENDINGS = (("ing", "e"), ("ing", ""))


@cache
def stem(text: str) -> str:
    """The stems of a text's words, separated by spaces.

    >>> stem("riding two surfboards")
    'ride two surfboard'
    """
    import inflection
    import nltk

    _use_carried_data()
    exceptions = _exceptions()
    words = []
    for word, tag in nltk.pos_tag(nltk.tokenize.word_tokenize(text)):
        if word in exceptions:
            words.append(exceptions[word])
        elif word.endswith("ing"):
            words.append(_verb_lemma(word))
        elif tag.startswith(("NNS", "NNPS")):
            words.append(inflection.singularize(word))
        else:
            words.append(word)
    return " ".join(words)


@cache
def _use_carried_data() -> None:
    """Puts the carried tagger and tokenizer before whatever NLTK would look for, so that results don't depend on it."""
    import nltk

    nltk.data.path.insert(0, str(_DATA / "nltk_data"))


@cache
def _exceptions() -> dict[str, str]:
    table: dict[str, str] = json.loads((_DATA / "exceptions.json").read_text(encoding="utf-8"))
    return table


@cache
def _verbs() -> tuple[frozenset[str], dict[str, list[str]]]:
    """WordNet's verbs, and its irregular forms with their lemmas."""
    verbs = (_DATA / "wordnet_verbs.txt").read_text(encoding="utf-8").split()
    lines = (_DATA / "wordnet_verb_exceptions.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(verbs), {words[0]: words[1:] for line in lines if (words := line.split())}


def _verb_lemma(word: str) -> str:
    """The shortest verb in WordNet that a word in -ing can come from; the word itself if there is none."""
    verbs, irregular = _verbs()
    forms = irregular.get(word) or [word[: -len(old)] + new for old, new in _ENDINGS]
    known = [form for form in (word, *forms) if form in verbs]
    return min(known, key=len) if known else word
