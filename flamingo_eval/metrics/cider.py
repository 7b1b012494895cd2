"""CIDEr, as the field computes it: the PTB tokenizer and pycocoevalcap's own scorer, nothing else.

Source: Vedantam et al., arXiv 1411.5726; pycocoevalcap (tokenizer/ptbtokenizer.py, cider/cider.py). Document
frequencies come from the references of the evaluated images, so scores over different images are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.explaining import Explanation, Rules
from flamingo_eval.core.records import Id, Score
from flamingo_eval.core.schema import Record
from flamingo_eval.metrics._cider_parts import DocumentFrequencies
from flamingo_eval.metrics._ptb import tokenize

_NO_RULES: Rules = {}


class CiderMetric:
    """CIDEr x 100; an item's score is on the same scale, so the score is the mean of its items'."""

    title = "CIDEr x 100"
    value_key = "caption"
    value_kinds: tuple[type, ...] = (str,)
    rules = Record

    def __init__(self) -> None:
        self._tokens: dict[str, str] = {}
        self._counted: tuple[list[Sequence[str]], DocumentFrequencies] | None = None

    def check(self, trials: Sequence[Mapping[Id, Sequence[str]]] = ()) -> Sequence[str]:
        """Runs the tokenizer once, and returns notes on images whose score is 0 for any caption.

        Raises:
            UserError: the tokenizer fails.
            DataError: no reference of a trial contains a word, so nothing can be counted.
        """
        self._tokenize({"a word"})
        notes: list[str] = []
        for references in trials:
            wordless = [id for id, texts in references.items() if not self._holds_word(texts)]
            if references and len(wordless) == len(references):
                raise DataError(f"CIDEr is undefined: no reference of the {len(references)} images holds a word")
            if wordless:
                others = f" and {len(wordless) - 1} others" if len(wordless) > 1 else ""
                notes.append(f"CIDEr of image {wordless[0]}{others} is always 0: no reference there holds a word")
            if len(references) == 1:
                notes.append("CIDEr of one image is always 0: what occurs in every image weighs nothing")
        return tuple(dict.fromkeys(notes))

    def _holds_word(self, texts: Sequence[str]) -> bool:
        """Whether the tokenizer leaves any token of these texts; an English letter or a digit is always left."""
        if any(character.isascii() and character.isalnum() for text in texts for character in text):
            return True
        return any(self._tokenize(set(texts))[text] for text in texts)

    def _tokenize(self, texts: Set[str]) -> dict[str, str]:
        """Tokens of each text; a text seen before, in another trial or benchmark, is not tokenized again."""
        new = sorted(texts - self._tokens.keys())
        if new:
            self._tokens.update(zip(new, tokenize(new), strict=True))
        return self._tokens

    def compute(
        self,
        trials: Sequence[Mapping[Id, str]],
        references: Mapping[Id, Sequence[str]],
        rules: Rules = _NO_RULES,  # noqa: ARG002  # CIDEr has none
    ) -> list[Score]:
        """One score per trial (image id -> caption).

        Raises:
            DataError: an image has no references, or a trial has no captions, or no word in its references.
            UserError: Java is missing, or the tokenizer failed.
        """
        for captions in trials:
            if not captions:
                raise DataError("CIDEr of no captions is undefined")
            for id in captions:
                if not references.get(id):
                    raise DataError(f"image {id} has a caption but no references")
            self.check([{id: references[id] for id in captions}])
        evaluated = [id for id in references if any(id in captions for captions in trials)]
        texts = {text for id in evaluated for text in references[id]}
        texts.update(text for captions in trials for text in captions.values())
        tokens = self._tokenize(texts)
        tokenized = {id: [tokens[text] for text in references[id]] for id in evaluated}
        return [
            cider_of_tokens({id: tokens[captions[id]] for id in evaluated if id in captions}, tokenized)
            for captions in trials
        ]

    def explain(
        self,
        id: Id,
        answers: Mapping[Id, str],
        references: Mapping[Id, Sequence[str]],
        rules: Rules = _NO_RULES,  # noqa: ARG002
    ) -> Explanation:
        """What 1-grams to 4-grams add to the score; document frequencies are counted once per trial."""
        asked = [references[one] for one in answers]
        tokens = self._tokenize({*answers.values(), *(text for texts in asked for text in texts)})
        if self._counted is None or self._counted[0] != asked:
            counted = DocumentFrequencies([tokens[text] for text in texts] for texts in asked)
            self._counted = (asked, counted)
        parts = self._counted[1].parts(tokens[answers[id]], [tokens[text] for text in references[id]])
        return Explanation(
            lines=(f"compared as {tokens[answers[id]]!r}", "the score is the sum of four parts"),
            parts={f"{n}-grams": 100 * part for n, part in enumerate(parts, start=1)},
        )


def cider_of_tokens(captions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> Score:
    """CIDEr x 100 of tokenized captions against tokenized references, images in the order of ``captions``.

    >>> round(cider_of_tokens({1: "a red ball", 2: "b"}, {1: ["a red ball"], 2: ["a dog"]}).per_item[1], 6)
    750.0
    """
    from pycocoevalcap.cider.cider import Cider

    gold = {id: list(references[id]) for id in captions}
    corpus, per_image = Cider().compute_score(gold, {id: [caption] for id, caption in captions.items()})
    return Score(100 * float(corpus), {id: 100 * float(s) for id, s in zip(captions, per_image, strict=True)})


METRIC = CiderMetric()
