"""VQA accuracy, by the rules of the reference or of the benchmarks' owners.

Scoring rules of a benchmark (``[scoring]`` of its TOML; the first choices are the defaults):

- ``normalise_prediction``, ``normalise_annotations``: ``always``, ``never``, or ``when_answers_differ`` (the VQA
  challenge's code normalises only where the annotators' raw answers are not all the same);
- ``tokenisation``: ``none``, or ``mmf`` (what TextVQA's owners do to every text before it is normalised);
- ``leave_out``: ``record`` (each annotation is compared with all that are not equal to it *as a record*; equal
  answers without an id are left out together) or ``annotator`` (with those of the other nine annotators).

A question with a single annotated answer is either right or wrong: 0 or 100 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.explaining import Explanation, Rules
from flamingo_eval.core.records import Annotation, Id, Score
from flamingo_eval.core.schema import Record, typed
from flamingo_eval.core.vqa_text import normalise, strip_spaces, tokenise_as_mmf

_TOKENISATIONS: Mapping[str, Callable[[str], str]] = {"none": str, "mmf": tokenise_as_mmf}
_ENOUGH = 3  # this many annotators who agree make an answer right


_When = Literal["always", "never", "when_answers_differ"]


class VqaRules(Record, frozen=True, kw_only=True):
    """The ``[scoring]`` section; the module's docstring describes it."""

    normalise_prediction: _When = "always"
    normalise_annotations: _When = "always"
    tokenisation: Literal["none", "mmf"] = "none"
    leave_out: Literal["record", "annotator"] = "record"


class VqaAccuracyMetric:
    """VQA accuracy in percent; an item's score is on the same scale."""

    title = "VQA accuracy %"
    value_key = "answer"
    value_kinds: tuple[type, ...] = (str,)
    rules = VqaRules

    def check(self, trials: Sequence[Mapping[Id, Any]]) -> Sequence[str]:  # noqa: ARG002  # defined for any answers
        """Returns no notes: the metric is defined for any answers, and needs no optional package."""
        return ()

    def compute(
        self, trials: Sequence[Mapping[Id, str]], references: Mapping[Id, Annotation], rules: Rules
    ) -> list[Score]:
        """One score per trial (question id -> answer).

        Raises:
            DataError: an answer to an unknown question, or a trial without answers.
        """
        chosen = typed(dict(rules), VqaRules, "[scoring]")
        return [_score(answers, references, chosen) for answers in trials]

    def explain(
        self, id: Id, answers: Mapping[Id, str], references: Mapping[Id, Annotation], rules: Rules
    ) -> Explanation:
        """What was compared, and which annotators gave the answer."""
        predicted, texts = _compared(answers[id], references[id], typed(dict(rules), VqaRules, "[scoring]"))
        agrees = tuple(text == predicted for text in texts)
        lines = [f"compared as {predicted!r}; {sum(agrees)} of {len(texts)} annotators gave it"]
        if len(texts) > 1:
            lines.append(f"each answer is compared with the others', and {_ENOUGH} of them make it right")
        return Explanation(lines=tuple(lines), agrees=agrees)


def _score(answers: Mapping[Id, str], references: Mapping[Id, Annotation], rules: VqaRules) -> Score:
    if not answers:
        raise DataError("VQA accuracy of no answers is undefined")
    per_item: dict[Id, float] = {}
    groups: dict[str, dict[str, list[float]]] = {"question_type": {}, "answer_type": {}}
    for id, predicted in answers.items():
        annotation = references.get(id)
        if annotation is None:
            raise DataError(f"question {id} has an answer but no annotation")
        per_item[id] = 100 * accuracy(predicted, annotation, rules)
        groups["question_type"].setdefault(annotation.question_type, []).append(per_item[id])
        groups["answer_type"].setdefault(annotation.answer_type, []).append(per_item[id])
    means = {kind: {name: sum(v) / len(v) for name, v in sorted(found.items())} for kind, found in groups.items()}
    return Score(sum(per_item.values()) / len(per_item), per_item, groups=means)


def accuracy(prediction: str, annotation: Annotation, rules: VqaRules) -> float:
    """Accuracy of one answer, from 0 to 1.

    >>> from flamingo_eval.core.records import HumanAnswer
    >>> people = Annotation(tuple(HumanAnswer(a, str(i)) for i, a in enumerate(["red"] * 3 + ["blue"] * 7)))
    >>> round(accuracy("Red.", people, VqaRules()), 6)  # three annotators see two others, seven see three
    0.9
    """
    predicted, texts = _compared(prediction, annotation, rules)
    if len(texts) == 1:
        return float(predicted == texts[0])
    matches = texts.count(predicted)
    if rules.leave_out == "annotator":
        vanish = [1] * matches
    else:
        copies = Counter((t, a.record) for t, a in zip(texts, annotation.answers, strict=True) if t == predicted)
        vanish = [copies[t, a.record] for t, a in zip(texts, annotation.answers, strict=True) if t == predicted]
    shares = [min(1.0, (matches - gone) / _ENOUGH) for gone in vanish]
    shares += [min(1.0, matches / _ENOUGH)] * (len(texts) - matches)
    return sum(shares) / len(shares)


def _compared(prediction: str, annotation: Annotation, rules: VqaRules) -> tuple[str, list[str]]:
    """The answer and the annotators' answers, in the form in which they are compared."""
    raw = [strip_spaces(answer.text) for answer in annotation.answers]
    differ = len(set(raw)) > 1
    tokenise = _TOKENISATIONS[rules.tokenisation]
    predicted = _text(tokenise(prediction), rules.normalise_prediction, differ)
    return predicted, [_text(tokenise(text), rules.normalise_annotations, differ) for text in raw]


def _text(text: str, when: str, differ: bool) -> str:
    return normalise(text) if when == "always" or (when == "when_answers_differ" and differ) else strip_spaces(text)


METRIC = VqaAccuracyMetric()
