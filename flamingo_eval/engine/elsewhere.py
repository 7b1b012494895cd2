"""Makes runs of answers from other systems, so that these have tables, intervals, comparisons and the gate, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flamingo_eval.core import registry
from flamingo_eval.core.digests import digest, file_digest
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.prompting import ELSEWHERE, Elsewhere, finish_answer
from flamingo_eval.core.protocols import Capabilities, Model, ModelInfo, ModelSource
from flamingo_eval.core.records import Answer, Decoding, Id, Prediction, Ranking
from flamingo_eval.core.run_settings import Process, RunSpec
from flamingo_eval.core.source import Source, read_source
from flamingo_eval.engine.executor import Outcome, Terms
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.engine.external import check_value
from flamingo_eval.engine.predictions import Queries, Stated, stated_in
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.engine.requests import Pending, images_digest
from flamingo_eval.engine.run import RunResult, execute
from flamingo_eval.storage.journal import Entry, Failure, Journal

Trial = tuple[int, int]
"""(shots, seed)."""

LEAST = -745.0
"""Logarithm of the smallest number above 0 that a float holds."""

BATCH = 1000
"""Answers that are written to the journal in one append."""


@dataclass(frozen=True)
class GivenAnswers:
    """The answers in a file to one benchmark's queries.

    Attributes:
        path: the file.
        trials: (shots, seed) -> query id -> finished answer.
    """

    path: Path
    trials: Mapping[Trial, Mapping[Id, Answer]]

    @property
    def shots(self) -> tuple[int, ...]:
        """The numbers of shots."""
        return tuple(sorted({shots for shots, _ in self.trials}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(sorted({seed for _, seed in self.trials}))

    @staticmethod
    def of(path: Path, source: Source, trial: Trial) -> GivenAnswers:
        """Reads the answers from a file.

        Args:
            path: the file.
            source: benchmark and data.
            trial: (shots, seed) of rows that do not have these.

        Raises:
            DataError: see :mod:`flamingo_eval.engine.predictions`; or a query has two answers in one trial, or a trial
                is missing: every number of shots needs the same seeds.
        """
        rows: dict[Trial, dict[Id, Stated]] = {}
        images = {example.id: example.image for example in source.data.test}
        queries, closed = Queries([*images], lambda: images), _names(source)
        names, metric = frozenset(closed), registry.metric(source.benchmark.metric)
        for stated in stated_in(path, metric.value_key, metric.value_kinds, [*images]):
            own, id = rows.setdefault(stated.trial or trial, {}), queries.find(stated)
            if id in own:
                raise DataError(
                    f"{stated.where}: {stated.key} {repr(stated.query)[:80]} occurs twice in one trial; rows tell "
                    "trials apart by shots and seed"
                )
            check_value(stated, closed, names)
            own[id] = stated
        given = GivenAnswers(path, {key: _answers(own, source) for key, own in rows.items()})
        lacking = [(k, seed) for k in given.shots for seed in given.seeds if (k, seed) not in rows]
        if lacking:
            raise DataError(
                f"{path} has nothing for {lacking[0][0]} shots, seed {lacking[0][1]}: every number of shots needs the "
                f"same seeds ({', '.join(map(str, given.seeds))})"
            )
        return given


def _names(source: Source) -> tuple[str, ...]:
    return source.task.names if isinstance(source.task, Ranking) else ()


def _answers(rows: Mapping[Id, Stated], source: Source) -> dict[Id, Answer]:
    """A trial's answers as they go into the journal: finished texts, or a number for each class name."""
    if isinstance(source.task, Decoding):
        rules = source.benchmark.answer
        return {id: one.value if one.finished else finish_answer(rules, one.value) for id, one in rows.items()}
    scores = {id: float(one.value) for id, one in rows.items() if isinstance(one.value, int | float)}
    chances = _as_chances(scores)
    return {id: _ranked(one, source, chances.get(id)) for id, one in rows.items()}


def _as_chances(scores: Mapping[Id, float]) -> dict[Id, float]:
    """Scores as probabilities, in the same order; if one is not from 0 to 1, all are replaced by relative ranks."""
    if all(0 <= score <= 1 for score in scores.values()):
        return {**scores}
    places = {score: place for place, score in enumerate(sorted(set(scores.values())))}
    return {id: (places[score] + 0.5) / len(places) for id, score in scores.items()}


def _ranked(stated: Stated, source: Source, chance: float | None) -> Answer:
    names, value = _names(source), stated.value
    if isinstance(value, Mapping):
        if value.keys() != set(names):
            raise DataError(f"{stated.where}: {stated.value_key} has to be of {', '.join(names[:10])}")
        return {name: float(value[name]) for name in names}
    if chance is None:
        return {name: 0.0 if name == value else -1.0 for name in names}
    positive = source.benchmark.scoring.get("positive")
    if positive not in names or len(names) != 2:
        raise UserError(f"{source.benchmark.name} ranks {len(names)} names, and a score tells of one of two")
    yes, no = (math.log(one) if one else LEAST for one in (chance, 1 - chance))
    return {name: yes if name == positive else no for name in names}


class GivenSource:
    """The model source of a system that was asked elsewhere.

    Args:
        name: the system's name.
        file: the file with its answers.
    """

    renderer: Elsewhere = ELSEWHERE
    capabilities = Capabilities()

    def __init__(self, name: str, file: Path) -> None:
        self._info = ModelInfo(
            name, digest(["elsewhere", name, file_digest(file)]), {str(file.absolute()): file_digest(file)},
            (f"answers were given elsewhere, by {name} ({file.name})",),
        )  # fmt: skip

    def info(self) -> ModelInfo:
        """The system's name, and a digest of its name and file."""
        return self._info

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """``elsewhere`` for both: device and precision are not known."""
        del device, precision
        return "elsewhere", "elsewhere"

    def load(self, device: str, precision: str) -> Model:
        """Raises UserError: the system can't be asked here."""
        del device, precision
        raise UserError(f"{self._info.name} was asked elsewhere and can't be asked here")


class GivenExecutor(LocalExecutor):
    """Takes answers from a file.

    Args:
        given: the answers.
    """

    def __init__(self, given: GivenAnswers) -> None:
        super().__init__(Process())
        self._given = given

    def run(self, requests: Sequence[Pending], model_source: ModelSource, journal: Journal, terms: Terms) -> Outcome:
        """See :class:`flamingo_eval.engine.executor.Executor`."""
        del model_source
        failures, entries = list[Failure](), list[Entry]()
        for item in requests:
            _, shots, seed, id, _ = item.slot
            answer = self._given.trials[shots, seed].get(id)
            if answer is None:
                failures.append(Failure(item.slot, f"{self._given.path} says nothing about it"))
            else:
                shown = images_digest(item.trial.source.images, ()) or ""
                entries.append(Entry(item.slot, Prediction(item.key, answer, shown)))
        for start in range(0, len(entries), BATCH):
            journal.append(entries[start : start + BATCH], terms.extra)
        return Outcome(failures, {})


def run_given(spec: RunSpec, root_of: RootOf, out: Path, file: Path, name: str, trial: Trial) -> RunResult:
    """Makes a run folder of answers from another system, and scores it.

    Args:
        spec: benchmark, protocol, split, number of samples and data.
        root_of: maps a data root, as the user names it, to its folder.
        out: the run folder.
        file: the answers.
        name: the system's name.
        trial: (shots, seed) of rows that do not have these.

    Raises:
        UserError, DataError: as :func:`flamingo_eval.engine.run.execute` and :meth:`GivenAnswers.of`.
    """
    [benchmark] = spec.benchmarks
    images = Images(root_of(spec.data_root), spec.formats)
    overrides = spec.data_overrides.get(benchmark)
    source = read_source(benchmark, images, overrides, protocol=spec.protocol, split=spec.split)
    given = GivenAnswers.of(file, source, trial)
    spec = replace(spec, shots=given.shots, seeds=given.seeds, checkpoint=name, own={})
    return execute(spec, root_of, out, GivenSource(name, file), executor=GivenExecutor(given))
