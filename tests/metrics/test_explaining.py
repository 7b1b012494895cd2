"""How a score came about: parts add up to it, and those who agree are those who were counted."""

from __future__ import annotations

import math
import random

import pytest

from flamingo_eval.core import registry
from flamingo_eval.core.explaining import ExplainingMetric
from flamingo_eval.core.records import Annotation, HumanAnswer, Id

pytestmark = pytest.mark.slow


def metric(name: str) -> ExplainingMetric:
    found = registry.metric(name)
    assert isinstance(found, ExplainingMetric)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_parts_of_cider_add_up_to_the_score(seed: int) -> None:
    choose = random.Random(seed)
    words = ["red", "ball", "a", "dog", "on", "the", "mat", "blue"]

    def text() -> str:
        return " ".join(choose.choices(words, k=choose.randint(1, 9)))

    references: dict[Id, list[str]] = {i: [text() for _ in range(choose.randint(1, 5))] for i in range(12)}
    answers: dict[Id, str] = {i: text() if choose.random() < 0.8 else references[i][0] for i in references}
    score = registry.metric("cider").compute([answers], references, {})[0]
    for id in answers:
        parts = metric("cider").explain(id, answers, references, {}).parts
        assert sorted(parts) == ["1-grams", "2-grams", "3-grams", "4-grams"]
        assert sum(parts.values()) == pytest.approx(score.per_item[id], abs=1e-9)


def test_parts_of_cider_by_hand() -> None:
    """Two images; "red" and "ball" occur in one of them: each weighs log 2, and the caption is its reference."""
    references: dict[Id, list[str]] = {1: ["red ball"], 2: ["a dog"]}
    parts = metric("cider").explain(1, {1: "red ball", 2: "x"}, references, {}).parts
    assert parts == pytest.approx({"1-grams": 250.0, "2-grams": 250.0, "3-grams": 0.0, "4-grams": 0.0})
    other = metric("cider").explain(1, {1: "red dog", 2: "x"}, references, {}).parts
    assert other["1-grams"] == pytest.approx(125.0)  # one of two words of the same weight


def test_annotators_who_agree() -> None:
    people = Annotation(tuple(HumanAnswer(a, str(i)) for i, a in enumerate(["Red.", "blue", "red", "the red"])))
    found = metric("vqa_accuracy").explain(1, {1: "red"}, {1: people}, {})
    assert found.agrees == (True, False, True, True)
    assert found.lines[0] == "compared as 'red'; 3 of 4 annotators gave it"


def test_places_among_names() -> None:
    answers: dict[Id, dict[str, float]] = {1: {"cat": -1.0, "dog": -2.0, "cow": -3.0}}
    assert metric("accuracy").explain(1, answers, {1: "dog"}, {}).lines == ("the right name is 'dog', number 2 of 3",)


def test_pairs_of_a_roc_auc() -> None:
    def probability(p: float) -> dict[str, float]:
        return {"yes": math.log(p), "no": math.log(1 - p)}

    answers: dict[Id, dict[str, float]] = {
        1: probability(0.6),
        2: probability(0.7),
        3: probability(0.2),
        4: probability(0.6),
    }
    labels: dict[Id, str] = {1: "yes", 2: "no", 3: "no", 4: "no"}
    lines = metric("roc_auc").explain(1, answers, labels, {"positive": "yes"}).lines
    assert lines[0] == "the probability of 'yes' is 0.6000; the label is 'yes'"
    assert lines[1] == "of 3 queries with the other label 1 stand on the right side of it, 1 are equal"
