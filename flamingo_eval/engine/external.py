"""Scoring answers that came from anywhere: a plain list, no model, no images, no run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import Benchmark
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.numbers import all_finite
from flamingo_eval.core.prompting import finish_answer
from flamingo_eval.core.protocols import Metric
from flamingo_eval.core.reading import read_json, record_field
from flamingo_eval.core.records import Id, Ranking, Score

_IDS = ("question_id", "image_id", "id")


@dataclass(frozen=True)
class ExternalScore:
    """The score of a list of predictions.

    Attributes:
        benchmark: the benchmark, under the protocol that it was scored by.
        metric: title of its metric.
        score: the metric's value in its unit, with scores per item.
        alternatives: other protocols -> the value under their scoring rules.
        queries: how many were scored.
        missing: ids of the split that the list says nothing about.
        notes: what a reader of the score should know.
    """

    benchmark: Benchmark
    metric: str
    score: Score
    alternatives: Mapping[str, float]
    queries: int
    missing: tuple[Id, ...]
    notes: tuple[str, ...] = ()


def score_predictions(benchmark: Benchmark, root: Path, path: Path) -> ExternalScore:
    """Scores a JSON list of ``{"question_id", "answer"}``, ``{"image_id", "caption"}`` or ``{"id", "score"}``.

    Raises:
        DataError: the list or the annotations are malformed, an id is unknown or occurs twice, or the split has no
            public answers.
    """
    references = registry.loader(benchmark.data.loader).references(benchmark.data, root, benchmark.split)
    if not references.by_id:
        raise DataError(f"split {benchmark.split!r} of {benchmark.name} has no public answers to score against")
    metric = registry.metric(benchmark.metric)
    closed = references.names or (benchmark.task.names if isinstance(benchmark.task, Ranking) else ())
    given = _read_predictions(path, references.by_id, metric, closed)
    answers = {
        id: finish_answer(benchmark.answer, stated) if isinstance(stated, str) else stated
        for id, stated in given.items()
    }
    notes = metric.check([{id: references.by_id[id] for id in answers}])
    score = metric.compute([answers], references.by_id, benchmark.scoring)[0]
    alternatives = {
        protocol: metric.compute([answers], references.by_id, rules)[0].value
        for protocol, rules in benchmark.alternatives.items()
    }
    missing = tuple(id for id in references.by_id if id not in answers)
    return ExternalScore(benchmark, metric.title, score, alternatives, len(answers), missing, tuple(notes))


def _read_predictions(path: Path, known: Mapping[Id, Any], metric: Metric, closed: Sequence[str]) -> dict[Id, Any]:
    """Query id -> answer; where answers are chosen from ``closed`` names, they must be among these."""
    names = frozenset(closed)
    rows = read_json(path, any_kind=True)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} is not a list of predictions")
    by_text = {str(id): id for id in known}
    found: dict[Id, Any] = {}
    for number, row in enumerate(rows):
        where = f"{path}: [{number}]"
        id_key = next((key for key in _IDS if isinstance(row, dict) and key in row), _IDS[-1])
        stated = record_field(where, row, id_key, int, str)
        id = stated if stated in known else by_text.get(str(stated))
        if id is None:
            raise DataError(f"{where}: {id_key} {repr(stated)[:80]} is not in the annotations")
        if id in found:
            raise DataError(f"{where}: {id_key} {repr(stated)[:80]} occurs twice")
        value = record_field(where, row, metric.value_key, *metric.value_kinds)
        if isinstance(value, int | float) and not all_finite([value]):
            raise DataError(f"{where}: {metric.value_key} {str(value)[:30]} is not a number")
        if isinstance(value, str) and names and value not in names:
            close = difflib.get_close_matches(value.lower(), closed, n=3)
            raise DataError(
                f"{where}: the {metric.value_key} {value!r} of {id_key} {stated!r} is none of the {len(names)} "
                f"class names; such are {', '.join(map(repr, close or closed[:3]))}"
            )
        found[id] = value
    return found
