"""Area under the ROC curve of the probability of the positive class name, from ranked names.

The probability is the softmax over the names' length-normalised log-likelihoods (open_flamingo/eval/evaluate.py,
``evaluate_classification``). Scoring rules: ``positive``, the class name that counts as positive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.explaining import Explanation, Rules
from flamingo_eval.core.records import Id, Score
from flamingo_eval.core.schema import Record, typed


class RocAucRules(Record, frozen=True, kw_only=True):
    """The ``[scoring]`` section.

    Attributes:
        positive: the class name that counts as positive.
    """

    positive: str


class RocAucMetric:
    """ROC AUC x 100; single queries have no score of their own."""

    title = "ROC AUC x 100"
    value_key = "score"
    value_kinds: tuple[type, ...] = (int, float)
    rules = RocAucRules

    def check(self, trials: Sequence[Mapping[Id, Any]]) -> Sequence[str]:
        """Raises DataError if a trial's labels are of one class only."""
        for labels in trials:
            _check_classes([*labels.values()])
        return ()

    def compute(
        self,
        trials: Sequence[Mapping[Id, Mapping[str, float] | float]],
        references: Mapping[Id, str],
        rules: Rules,
    ) -> list[Score]:
        """One score per trial (query id -> class name -> log-likelihood, or query id -> a plain score).

        Raises:
            DataError: an answer to an unknown query, or labels of one class only, whose AUC is undefined.
        """
        return [
            _score(answers, references, typed(dict(rules), RocAucRules, "[scoring]").positive) for answers in trials
        ]

    def explain(
        self,
        id: Id,
        answers: Mapping[Id, Mapping[str, float] | float],
        references: Mapping[Id, str],
        rules: Rules,
    ) -> Explanation:
        """The query's value, and against how many queries with the other label it is ranked correctly."""
        positive = typed(dict(rules), RocAucRules, "[scoring]").positive
        values = {one: _positive_score(answer, positive) for one, answer in answers.items()}
        value, is_positive = values[id], references[id] == positive
        others = [values[one] for one in values if (references[one] == positive) != is_positive]
        right = sum((value > other) if is_positive else (value < other) for other in others)
        ties = sum(value == other for other in others)
        return Explanation(
            lines=(
                f"the probability of {positive!r} is {value:.4f}; the label is {references[id]!r}",
                f"of {len(others)} queries with the other label {right} stand on the right side of it"
                + (f", {ties} are equal" if ties else ""),
                "a single query has no score: the score is the share of pairs in the right order",
            )
        )


def _score(answers: Mapping[Id, Mapping[str, float] | float], references: Mapping[Id, str], positive: str) -> Score:
    from sklearn.metrics import roc_auc_score

    unknown = [id for id in answers if id not in references]
    if unknown:
        raise DataError(f"query {unknown[0]} has an answer but no label")
    _check_classes([references[id] for id in answers])
    decisions = {id: (_positive_score(answer, positive), references[id] == positive) for id, answer in answers.items()}
    values, labels = zip(*decisions.values(), strict=True)
    return Score(100 * float(roc_auc_score(labels, values)), decisions=decisions)


def _check_classes(labels: Sequence[str]) -> None:
    if labels and len(set(labels)) < 2:
        raise DataError(f"ROC AUC is undefined: all {len(labels)} labels are of one class")


def _positive_score(answer: Mapping[str, float] | float, positive: str) -> float:
    """The probability of the positive name; a plain score from another system stays as it is."""
    return probability(answer, positive) if isinstance(answer, Mapping) else float(answer)


def probability(logprobs: Mapping[str, float], name: str) -> float:
    """Softmax over class names.

    >>> round(probability({"no": -1.0, "yes": -1.0 + math.log(3)}, "yes"), 6)
    0.75
    """
    highest = max(logprobs.values())
    weights = {key: math.exp(value - highest) for key, value in logprobs.items()}
    return weights[name] / sum(weights.values())


METRIC = RocAucMetric()
