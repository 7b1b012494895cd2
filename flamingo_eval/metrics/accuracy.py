"""Top-1 accuracy over ranked class names; names are compared, not class numbers, as in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.explaining import Explanation, Rules
from flamingo_eval.core.records import Answer, Id, Score
from flamingo_eval.core.schema import Record


class AccuracyMetric:
    """Top-1 accuracy in percent."""

    title = "top-1 accuracy %"
    value_key = "answer"
    value_kinds: tuple[type, ...] = (str,)
    rules = Record

    def check(self, trials: Sequence[Mapping[Id, Any]]) -> Sequence[str]:  # noqa: ARG002  # defined for any labels
        """Returns no notes: the metric is defined for any labels, and needs no optional package."""
        return ()

    def compute(
        self,
        trials: Sequence[Mapping[Id, Answer]],
        references: Mapping[Id, str],
        rules: Rules,  # noqa: ARG002
    ) -> list[Score]:
        """One score per trial (query id -> a class name, or class name -> log-likelihood).

        Raises:
            DataError: an answer to an unknown query, or a trial without answers.

        >>> METRIC.compute([{1: {"cat": -1.0, "dog": -2.0}, 2: "dog"}], {1: "cat", 2: "cat"}, {})[0].value
        50.0
        """
        return [_score(answers, references) for answers in trials]

    def explain(
        self,
        id: Id,
        answers: Mapping[Id, Answer],
        references: Mapping[Id, str],
        rules: Rules,  # noqa: ARG002
    ) -> Explanation:
        """The rank of the right name among all names."""
        answer, right = answers[id], references[id]
        if isinstance(answer, str) or right not in answer:
            return Explanation(lines=(f"the right name is {right!r}",))
        above = sum(value > answer[right] for value in answer.values())
        return Explanation(lines=(f"the right name is {right!r}, number {above + 1} of {len(answer)}",))


def _score(answers: Mapping[Id, Answer], references: Mapping[Id, str]) -> Score:
    if not answers:
        raise DataError("accuracy of no answers is undefined")
    per_item = {}
    for id, answer in answers.items():
        if id not in references:
            raise DataError(f"query {id} has an answer but no label")
        best = answer if isinstance(answer, str) else max(answer, key=lambda name: answer[name])
        per_item[id] = 100.0 * (best == references[id])
    return Score(sum(per_item.values()) / len(per_item), per_item)


METRIC = AccuracyMetric()
