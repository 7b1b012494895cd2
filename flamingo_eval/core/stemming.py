"""Stems words as OK-VQA's annotations are stemmed, offline.

Source: open_flamingo/eval/ok_vqa_utils.py (``OKVQAStemmer``): NLTK's tokenizer and part-of-speech tagger, then, word by
word, a table of exceptions, WordNet's lemma for words in *-ing*, and the singular for plural nouns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

_Split = Callable[[str], list[str]]
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

    split_sentences, split_words, tag = _tools()
    exceptions = _exceptions()
    words = []
    for word, part_of_speech in tag([word for sentence in split_sentences(text) for word in split_words(sentence)]):
        if word in exceptions:
            words.append(exceptions[word])
        elif word.endswith("ing"):
            words.append(_verb_lemma(word))
        elif part_of_speech.startswith(("NNS", "NNPS")):
            words.append(inflection.singularize(word))
        else:
            words.append(word)
    return " ".join(words)


@cache
def _tools() -> tuple[_Split, _Split, Callable[[list[str]], list[tuple[str, str]]]]:
    """NLTK's sentence splitter, word tokenizer and tagger, loaded from files in this package.

    ``nltk.word_tokenize`` and ``nltk.pos_tag`` use the same, but look for their data in folders of the machine, and
    refuse folders that others may write to.
    """
    from nltk.tag.perceptron import PerceptronTagger
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    punkt = _DATA / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    parameters = PunktParameters()
    parameters.abbrev_types = set(_lines(punkt / "abbrev_types.txt"))
    parameters.sent_starters = set(_lines(punkt / "sent_starters.txt"))
    parameters.collocations = {tuple(line.split("\t")) for line in _lines(punkt / "collocations.tab")}
    for line in _lines(punkt / "ortho_context.tab"):
        word, count = line.split("\t")
        parameters.ortho_context[word] = int(count)
    folder = _DATA / "nltk_data" / "taggers" / "averaged_perceptron_tagger_eng"
    tagger = PerceptronTagger(load=False)
    weights, tagger.tagdict, classes = (
        json.loads((folder / f"{folder.name}.{part}.json").read_text(encoding="utf-8"))
        for part in ("weights", "tagdict", "classes")
    )
    tagger.model.weights = weights
    tagger.classes = tagger.model.classes = set(classes)
    return PunktSentenceTokenizer(parameters).tokenize, NLTKWordTokenizer().tokenize, tagger.tag


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


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
