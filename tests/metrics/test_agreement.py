"""VQA accuracy and ROC AUC: worked out by hand, against the evaluators' own numbers, and broken input."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.prompting import extract_answer
from flamingo_eval.core.records import Annotation, HumanAnswer, Id
from flamingo_eval.core.schema import typed
from flamingo_eval.core.vqa_text import normalise, tokenise_as_mmf
from flamingo_eval.loaders.vqa import _human
from flamingo_eval.metrics.accuracy import METRIC as ACCURACY
from flamingo_eval.metrics.roc_auc import METRIC as ROC_AUC
from flamingo_eval.metrics.vqa_accuracy import METRIC as VQA
from flamingo_eval.metrics.vqa_accuracy import VqaRules, accuracy


def rules_of(name: str, protocol: str = "openflamingo") -> VqaRules:
    return typed(dict(load_benchmark(name, protocol=protocol).scoring), VqaRules, name)


RULES = load_benchmark("vizwiz").scoring
REFERENCE = rules_of("vizwiz")
CHALLENGE = rules_of("vqav2", "official")
VIZWIZ = rules_of("vizwiz", "official")


def people(*texts: str, ids: bool = True) -> Annotation:
    """Annotators' answers, with an id each or without."""
    return Annotation(tuple(HumanAnswer(text, str(i) if ids else "") for i, text in enumerate(texts)))


@pytest.mark.parametrize("name", ["textvqa", "vizwiz"])
@pytest.mark.parametrize(("key", "rules"), [("acc_of", REFERENCE), ("acc_gt", CHALLENGE)])
def test_real_questions_score_as_the_evaluators_scored_them(golden: Path, name: str, key: str, rules: VqaRules) -> None:
    cases = json.loads((golden / "vqa" / "cases.json").read_text())[name]
    annotations = {
        row["question_id"]: Annotation(tuple(_human("", answer) for answer in row["answers"]))
        for row in cases["annotations"]
    }
    for rows in cases["predictions"].values():
        assert len(rows) > 300
        for row in rows:
            assert abs(accuracy(row["answer"], annotations[row["question_id"]], rules) - row[key]) < 1e-9, row


def test_leave_one_out_by_hand() -> None:
    """Four of ten say red. Each of those four sees three other reds: 1. Each of the six others sees four: 1."""
    assert accuracy("red", people(*["red"] * 4, *["blue"] * 6), REFERENCE) == 1
    # two say red: they see one other (1/3), the eight others see two (2/3): (2 * 1/3 + 8 * 2/3) / 10 = 0.6
    assert accuracy("red", people(*["red"] * 2, *["blue"] * 8), REFERENCE) == pytest.approx(0.6)
    assert accuracy("green", people(*["red"] * 10), REFERENCE) == 0


def test_equal_records_vanish_together_under_the_references_rule_only() -> None:
    """Converted VizWiz answers have no id: all ten are one record, so nobody is left to agree with."""
    same = people(*["red"] * 10, ids=False)
    assert accuracy("red", same, REFERENCE) == 0
    assert accuracy("red", same, VIZWIZ) == 1


def test_normalisation_rules_differ() -> None:
    unanimous = people(*["two dogs"] * 10)
    assert accuracy("2 dogs", unanimous, REFERENCE) == 1
    assert accuracy("2 dogs", unanimous, CHALLENGE) == 0, "normalised only where annotators differ"
    articles = people(*["the dog"] * 10)
    assert accuracy("the dog", articles, VIZWIZ) == 0, "the prediction is normalised, the annotations are not"


@given(st.lists(st.sampled_from(["red", "blue", "2"]), min_size=10, max_size=10), st.sampled_from(["red", "two"]))
def test_order_of_annotators_changes_nothing(texts: list[str], output: str) -> None:
    annotation = people(*texts)
    shuffled = Annotation(tuple(random.Random(0).sample(annotation.answers, 10)))
    for rules in (REFERENCE, CHALLENGE, VIZWIZ):
        assert accuracy(output, annotation, rules) == pytest.approx(accuracy(output, shuffled, rules))


def test_accuracy_by_type_of_question_and_answer() -> None:
    references: dict[Id, Annotation] = {
        1: Annotation(people(*["red"] * 10).answers, "what color", "other"),
        2: Annotation(people(*["yes"] * 10).answers, "is the", "yes/no"),
    }
    score = VQA.compute([{1: "red", 2: "no"}], references, RULES)[0]
    assert score.value == 50
    assert score.per_item == {1: 100, 2: 0}
    assert score.groups == {
        "question_type": {"is the": 0, "what color": 100},
        "answer_type": {"other": 100, "yes/no": 0},
    }
    with pytest.raises(DataError, match="question 3 has an answer but no annotation"):
        VQA.compute([{3: "red"}], references, RULES)


@pytest.mark.slow
def test_as_many_questions_as_vqav2_has() -> None:
    """214,354 of ten answers, many of them different."""
    draw = random.Random(0)
    words = [f"word{i} {draw.choice(['a', 'the', 'two'])} thing{draw.randrange(50)}" for i in range(60_000)]
    references: dict[Id, Annotation] = {
        id: Annotation(
            tuple(HumanAnswer(text, str(i)) for i, text in enumerate(draw.choices(words[id % 1000 :: 1000], k=10)))
        )
        for id in range(214_354)
    }
    answers: dict[Id, str] = {id: annotation.answers[0].text for id, annotation in references.items()}
    score = VQA.compute([answers], references, RULES)[0]
    assert 0 < score.value < 100


@pytest.mark.slow
def test_okvqa_answers_are_stemmed_as_the_references(golden: Path) -> None:
    rows = json.loads((golden / "okvqa" / "stems.json").read_text())["rows"]
    assert len(rows) > 200
    rules = load_benchmark("okvqa").answer
    assert {row["text"]: extract_answer(rules, row["text"]) for row in rows} == {
        row["text"]: row["postprocessed"] for row in rows
    }


@pytest.mark.slow  # importing scikit-learn takes longer than all of this
def test_roc_auc_by_hand() -> None:
    """Scores .9 and .4 for the positives, .6 and .1 for the negatives: three of four pairs in order, 75."""
    probabilities = {1: 0.9, 2: 0.4, 3: 0.6, 4: 0.1}
    answers: dict[Id, dict[str, float]] = {
        id: {"no": math.log(1 - p), "yes": math.log(p)} for id, p in probabilities.items()
    }
    labels: dict[Id, str] = {1: "yes", 2: "yes", 3: "no", 4: "no"}
    assert ROC_AUC.compute([answers], labels, {"positive": "yes"})[0].value == pytest.approx(75)
    shuffled: dict[Id, dict[str, float]] = {id: answers[id] for id in (3, 1, 4, 2)}
    assert ROC_AUC.compute([shuffled], labels, {"positive": "yes"})[0].value == pytest.approx(75)
    ties: dict[Id, dict[str, float]] = {id: {"no": -1.0, "yes": -1.0} for id in labels}
    assert ROC_AUC.compute([ties], labels, {"positive": "yes"})[0].value == pytest.approx(50)


@pytest.mark.slow  # importing scikit-learn takes longer than all of this
def test_roc_auc_of_one_class_is_undefined() -> None:
    answers: dict[Id, dict[str, float]] = {1: {"no": -1.0, "yes": -2.0}}
    with pytest.raises(DataError, match="ROC AUC is undefined: all 1 labels are of one class"):
        ROC_AUC.compute([answers], {1: "no"}, {"positive": "yes"})
    with pytest.raises(DataError, match="query 1 has an answer but no label"):
        ROC_AUC.compute([answers], {2: "no"}, {"positive": "yes"})


@pytest.mark.slow
@given(st.permutations(range(6)))
def test_order_of_queries_changes_nothing(order: list[int]) -> None:
    output: dict[Id, str] = {id: ("red", "blue", "2")[id % 3] for id in range(6)}
    shuffled: dict[Id, str] = {id: output[id] for id in order}
    questions: dict[Id, Annotation] = {id: people(*["red"] * (id + 1), *["blue"] * (9 - id)) for id in range(6)}
    labels: dict[Id, str] = {id: ("red", "blue")[id % 2] for id in range(6)}
    names: dict[Id, dict[str, float]] = {id: {"no": -1.0, "yes": -float(id)} for id in range(6)}
    ordered = {id: names[id] for id in order}
    yes: dict[Id, str] = {id: ("yes", "no")[id % 2] for id in range(6)}
    cases: list[tuple[Any, Any, Any, Any, Any]] = [
        (VQA, output, shuffled, questions, RULES),
        (ACCURACY, output, shuffled, labels, {}),
        (ROC_AUC, names, ordered, yes, {"positive": "yes"}),
    ]
    for metric, first, second, references, rules in cases:
        one, other = (metric.compute([answers], references, rules)[0] for answers in (first, second))
        assert one.value == pytest.approx(other.value)
        assert dict(one.per_item) == dict(other.per_item)


def test_accuracy_by_hand() -> None:
    answers: dict[Id, Any] = {1: {"cat": -1.0, "dog": -0.5}, 2: {"cat": -0.1, "dog": -0.5}, 3: "dog", 4: "cow"}
    score = ACCURACY.compute([answers], {1: "dog", 2: "dog", 3: "dog", 4: "dog"}, {})[0]
    assert score.value == 50
    assert score.per_item == {1: 100, 2: 0, 3: 100, 4: 0}
    with pytest.raises(DataError, match="query 9 has an answer but no label"):
        ACCURACY.compute([{9: "dog"}], {1: "dog"}, {})


def test_textvqas_official_rule_is_its_owners(golden: Path) -> None:
    """MMF's evaluator deletes commas and question marks and splits off 's before it normalises."""
    rules = rules_of("textvqa", "official")
    cases = json.loads((golden / "textvqa_mmf.json").read_text(encoding="utf-8"))
    assert len(cases) == 300
    assert len({case["score"] for case in cases}) > 4
    for case in cases:
        assert normalise(tokenise_as_mmf(case["said"])) == case["processed"]
        assert accuracy(case["said"], people(*case["answers"]), rules) == pytest.approx(case["score"])
    assert sum(accuracy(c["said"], people(*c["answers"]), CHALLENGE) != c["score"] for c in cases) > 30, "it matters"
