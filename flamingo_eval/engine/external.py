"""Scores a plain list of answers from any system, without a model, images or a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import Benchmark
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.numbers import all_finite
from flamingo_eval.core.prompting import finish_answer
from flamingo_eval.core.protocols import Metric
from flamingo_eval.core.records import Id, Ranking, Score
from flamingo_eval.engine.predictions import Queries, Stated, stated_in


@dataclass(frozen=True)
class ExternalScore:
    """The score of a list of predictions.

    Attributes:
        benchmark: the benchmark, under the protocol that it was scored by.
        metric: title of its metric.
        score: the metric's value in its unit, with scores per item.
        alternatives: other protocols -> the value under their scoring rules.
        queries: how many were scored.
        missing: ids of the split that are not in the list.
        notes: what a reader of the score should know.
    """

    benchmark: Benchmark
    metric: str
    score: Score
    alternatives: Mapping[str, float]
    queries: int
    missing: tuple[Id, ...]
    notes: tuple[str, ...] = ()


class _Given(NamedTuple):
    """An answer, and whether it needs no more post-processing."""

    value: Any
    finished: bool


def _images_of(benchmark: Benchmark, root: Path) -> Mapping[Id, str]:
    """Query id -> path of its image in the benchmark's folder; empty where the examples can't be read."""
    try:
        data = registry.loader(benchmark.data.loader).examples(benchmark.data, root, benchmark.split)
    except DataError:
        return {}
    return {example.id: example.image for example in data.test}


def score_predictions(benchmark: Benchmark, root: Path, path: Path) -> ExternalScore:
    """Scores a file of ``{"question_id", "answer"}``, ``{"image_id", "caption"}`` or ``{"id", "score"}``.

    :mod:`flamingo_eval.engine.predictions` describes the forms that the file may have.

    Raises:
        DataError: the list or the annotations are malformed, an id is unknown or occurs twice, or the split has no
            public answers.
    """
    references = registry.loader(benchmark.data.loader).references(benchmark.data, root, benchmark.split)
    if not references.by_id:
        raise DataError(f"split {benchmark.split!r} of {benchmark.name} has no public answers to score against")
    metric = registry.metric(benchmark.metric)
    closed = references.names or (benchmark.task.names if isinstance(benchmark.task, Ranking) else ())
    given = _read_predictions(path, references.by_id, metric, closed, partial(_images_of, benchmark, root))
    answers = {
        id: finish_answer(benchmark.answer, one.value) if isinstance(one.value, str) and not one.finished else one.value
        for id, one in given.items()
    }
    notes = metric.check([{id: references.by_id[id] for id in answers}])
    score = metric.compute([answers], references.by_id, benchmark.scoring)[0]
    alternatives = {
        protocol: metric.compute([answers], references.by_id, rules)[0].value
        for protocol, rules in benchmark.alternatives.items()
    }
    missing = tuple(id for id in references.by_id if id not in answers)
    return ExternalScore(benchmark, metric.title, score, alternatives, len(answers), missing, tuple(notes))


def _read_predictions(
    path: Path, known: Mapping[Id, Any], metric: Metric, closed: Sequence[str], images: Callable[[], Mapping[Id, str]]
) -> dict[Id, _Given]:
    """Query id -> answer; if there are ``closed`` names, text answers must be among them."""
    names, queries, found = frozenset(closed), Queries([*known], images), dict[Id, _Given]()
    for stated in stated_in(path, metric.value_key, metric.value_kinds, [*known]):
        id, value = queries.find(stated), stated.value
        if id in found:
            raise DataError(f"{stated.where}: {stated.key} {repr(stated.query)[:80]} occurs twice{_trials(stated)}")
        check_value(stated, closed, names)
        found[id] = _Given(value, stated.finished)
    return found


def check_value(stated: Stated, closed: Sequence[str], names: frozenset[str]) -> None:
    """Raises DataError for a score that is not finite, or a name that is not in ``closed`` (as a set: ``names``)."""
    value = stated.value
    if isinstance(value, int | float) and not all_finite([value]):
        raise DataError(f"{stated.where}: {stated.value_key} {str(value)[:30]} is not a number")
    if isinstance(value, str) and names and value not in names:
        close = difflib.get_close_matches(value.lower(), closed, n=3)
        raise DataError(
            f"{stated.where}: the {stated.value_key} {value!r} of {stated.key} {stated.query!r} is none of the "
            f"{len(names)} class names; such are {', '.join(map(repr, close or closed[:3]))}"
        )


def _trials(stated: Stated) -> str:
    return ": the file holds several trials; give one of them" if stated.finished else ""
