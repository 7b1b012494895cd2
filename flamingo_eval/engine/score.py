"""Score: from the journal's raw answers to numbers; never needs a model or an image."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import AnswerRules, Benchmark
from flamingo_eval.core.digests import changed_fields, digest
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.prompting import extract_answer
from flamingo_eval.core.records import Answer, Cell, Id, Ranking, Score, Trial
from flamingo_eval.core.source import Source
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.storage.files import json_text, write_atomic
from flamingo_eval.storage.journal import Journal, Slot
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import RunRecord, ScoresRecord, TrialKey
from flamingo_eval.storage.scores import cell_row

NO_ANSWERS = "no public answers"
"""Part of the warning of a run whose answers can't be scored here."""


@dataclass(frozen=True)
class ScoredTrial:
    """A trial's answers after post-processing, its score, its alternative scores, and the number of answers.

    ``undefined`` says why there is no score, if the metric is undefined because queries were skipped.
    """

    answers: Mapping[Id, Answer]
    score: Score | None
    alternatives: Mapping[str, float]
    answered: int
    undefined: str | None = None


def raw_answers(trial: TrialPlan, journal: Journal) -> list[tuple[Id, Answer]]:
    """(query id, answer) in plan order, for the queries of a trial that the journal has answers for."""
    found = ((id, journal.get((*trial.key, id, occurrence))) for id, occurrence in trial.slots)
    return [(id, prediction.answer) for id, prediction in found if prediction is not None]


def processed(rules: AnswerRules, answer: Answer) -> Answer:
    """An answer in the form that is scored: text is cut by the benchmark's rules, log-likelihoods stay as they are."""
    return extract_answer(rules, answer) if isinstance(answer, str) else answer


def text_of(answer: Answer) -> str:
    """An answer as it is in ``scores.jsonl``; for a ranking, the most likely name."""
    return answer if isinstance(answer, str) else max(answer, key=lambda name: answer[name])


def is_complete(trial: TrialPlan, journal: Journal, skipped: Collection[Slot] = ()) -> bool:
    """Whether each query of a trial is answered or skipped, and at least one is answered."""
    missing = missing_slots(trial, journal)
    return len(missing) < len(trial) and all(slot in skipped for slot in missing)


def missing_slots(trial: TrialPlan, journal: Journal, skipped: Collection[Slot] = ()) -> list[Slot]:
    """The queries of a trial that are neither answered nor skipped."""
    slots: Iterator[Slot] = ((*trial.key, id, occurrence) for id, occurrence in trial.slots)
    return [slot for slot in slots if journal.get(slot) is None and slot not in skipped]


def score_trials(
    trials: Sequence[TrialPlan], journal: Journal, skipped: Collection[Slot] = ()
) -> dict[TrialKey, ScoredTrial]:
    """Scores every complete trial; trials of a split without public answers have no score.

    An image queried twice in one trial keeps its last caption, as the reference's result file does.
    """
    scored: dict[TrialKey, ScoredTrial] = {}
    by_source: dict[int, tuple[Source, list[TrialPlan]]] = {}
    for trial in trials:
        by_source.setdefault(id(trial.source), (trial.source, []))[1].append(trial)
    for source, members in by_source.values():
        rules, complete, answers, counts = source.benchmark.answer, [], [], []
        for trial in members:
            if is_complete(trial, journal, skipped):
                raw = raw_answers(trial, journal)
                complete.append(trial)
                _check_kinds(trial, raw, journal.path)
                answers.append({id: processed(rules, answer) for id, answer in raw})
                counts.append(len(raw))
                if len(raw) < len(trial) and (reason := _undefined(source, answers[-1])):
                    answered = ScoredTrial(answers.pop(), None, {}, counts.pop(), reason)
                    scored[complete.pop().key] = answered
        scores = _scores(source, answers, source.benchmark.scoring)
        others = {name: _scores(source, answers, rules) for name, rules in source.benchmark.alternatives.items()}
        for i, trial in enumerate(complete):
            alternatives = {name: score.value for name, results in others.items() if (score := results[i]) is not None}
            scored[trial.key] = ScoredTrial(answers[i], scores[i], alternatives, counts[i])
    return scored


def _undefined(source: Source, answers: Mapping[Id, Answer]) -> str | None:
    """Why the metric is undefined for a trial with skipped queries; None if it is defined."""
    references = source.references.by_id
    try:
        registry.metric(source.benchmark.metric).check([{id: references[id] for id in answers}] if references else [])
    except DataError as error:
        return str(error)
    return None


def _check_kinds(trial: TrialPlan, raw: Iterable[tuple[Id, Answer]], path: Path) -> None:
    """Raises DataError for an answer that does not fit the task: not a text, or not a ranking of the class names."""
    task = trial.source.task
    names = frozenset(task.names) if isinstance(task, Ranking) else None
    for id, answer in raw:
        fits_task = isinstance(answer, str) if names is None else not isinstance(answer, str) and set(answer) == names
        if not fits_task:
            benchmark, shots, seed = trial.key
            wanted = "a text" if names is None else f"log-likelihoods of the {len(names)} class names"
            raise DataError(
                f"{path}: the answer to query {id} of {benchmark}, {shots} shots, seed {seed} is not {wanted}"
            )


def _scores(source: Source, answers: Sequence[Mapping[Id, Answer]], rules: Mapping[str, Any]) -> list[Score | None]:
    if not answers or not source.references.by_id:
        return [None] * len(answers)
    return [*registry.metric(source.benchmark.metric).compute(answers, source.references.by_id, rules)]


def check_complete(trials: Iterable[TrialPlan], journal: Journal, wanted: set[TrialKey], folder: RunFolder) -> None:
    """Refuses trials with missing answers, so that they are not presented as complete.

    Raises:
        DataError: answers are missing; the message says how many.
    """
    skipped = folder.skipped()
    missing = {t.key: len(missing_slots(t, journal, skipped)) for t in trials if t.key in wanted}
    if any(missing.values()):
        listed = "; ".join(f"{b}, {k} shots, seed {s}: {n}" for (b, k, s), n in missing.items() if n)
        raise DataError(
            f"{folder.path}: {sum(missing.values())} answers are missing ({listed}). "
            "The command that began the run continues it"
        )


def build_cells(trials: Sequence[TrialPlan], scored: Mapping[TrialKey, ScoredTrial], selector: str) -> list[Cell]:
    """The table's cells, with their trials in order of seed; trials without a score are left out."""
    groups: dict[tuple[str, int], list[TrialPlan]] = {}
    for trial in trials:
        if trial.key in scored and scored[trial.key].score is not None:
            groups.setdefault(trial.key[:2], []).append(trial)
    cells = []
    for (name, shots), members in sorted(groups.items()):
        benchmark = members[0].source.benchmark
        results = tuple(_trial(t, scored[t.key]) for t in sorted(members, key=lambda t: t.seed))
        title = registry.metric(benchmark.metric).title
        cells.append(Cell(name, benchmark.split, shots, selector, benchmark.protocol, title, results))
    return cells


def _trial(plan: TrialPlan, scored: ScoredTrial) -> Trial:
    if scored.score is None:
        raise ValueError(f"{plan.key} has no score")
    return Trial(
        seed=plan.seed,
        value=scored.score.value,
        queries=scored.answered,
        planned=len(plan),
        alternatives=scored.alternatives,
        groups=scored.score.groups,
    )


def write_scores(folder: RunFolder, trials: Sequence[TrialPlan], journal: Journal, run: RunRecord) -> list[Cell]:
    """Scores every complete trial and replaces ``scores.json`` and ``scores.jsonl``."""
    scored = score_trials(trials, journal, folder.skipped())
    cells = build_cells(trials, scored, run.identity.selector)
    sources = {id(t.source): t.source for t in trials if t.key in scored}.values()
    several = len(sources) > 1
    notes = _named(((s, (*s.data.notes, *s.references.notes)) for s in sources), several)
    warnings = _named(((s, _metric_notes(s, trials, scored)) for s in sources), several)
    for (benchmark, shots, seed), one in scored.items():
        if one.undefined:
            where = f"{benchmark}, {shots} shots, seed {seed}"
            warnings[f"{where}: no score, since queries were left out: {one.undefined}"] = None
    for source in sources:
        if not source.references.by_id:
            count = sum(scored[t.key].answered for t in trials if t.source is source and t.key in scored)
            name, split = source.benchmark.name, source.benchmark.split
            warnings[f"split {split} of {name} has {NO_ANSWERS}: {count} answers, no score"] = None
    write_atomic(folder.items_file, "".join(_item_lines(trials, scored, run.marks)))
    record = ScoresRecord(
        demo=run.demo or UNSET,
        checkpoint=run.checkpoint,
        identity=run.identity,
        references={s.benchmark.name: s.digest_of(s.references.files) for s in sources},
        scoring={s.benchmark.name: _scoring_digest(s.benchmark) for s in sources},
        versions=(run.sessions[-1].versions or None) if run.sessions else None,
        warnings=list(warnings),
        notes=list(notes),
        cells=[cell_row(cell) for cell in cells],
    )
    write_atomic(folder.scores_file, json_text(record.table()))
    return cells


def _named(notes: Iterable[tuple[Source, Iterable[str]]], several: bool) -> dict[str, None]:
    """Notes without duplicates; if there are several benchmarks, each note begins with its benchmark's name."""
    pairs = ((source.benchmark.name, note) for source, own in notes for note in own)
    return dict.fromkeys(f"{name}: {note}" if several else note for name, note in pairs)


def _metric_notes(source: Source, trials: Iterable[TrialPlan], scored: Mapping[TrialKey, ScoredTrial]) -> Sequence[str]:
    """The metric's notes about the references that answers were compared with."""
    own = [scored[trial.key] for trial in trials if trial.source is source and trial.key in scored]
    # trials with one seed have the same queries, apart from those that were left out
    asked = dict.fromkeys(tuple(one.answers) for one in own if one.score is not None)
    references = [{id: source.references.by_id[id] for id in ids} for ids in asked]
    return registry.metric(source.benchmark.metric).check(references)


def _scoring_digest(benchmark: Benchmark) -> str:
    """Digest of everything that turns a raw answer into a score, except the references."""
    return digest([benchmark.metric, dict(benchmark.scoring), changed_fields(benchmark.answer)])


def _item_lines(
    trials: Iterable[TrialPlan], scored: Mapping[TrialKey, ScoredTrial], marks: Mapping[str, str]
) -> Iterator[str]:
    for plan in trials:
        if plan.key not in scored:
            continue
        trial, data = scored[plan.key], plan.source.data.test
        images = {data[number].id: data[number].image for number in plan.queries}
        benchmark, shots, seed = plan.key
        per_item, decisions = (trial.score.per_item, trial.score.decisions) if trial.score else ({}, {})
        for query_id, answer in trial.answers.items():
            row = {"benchmark": benchmark, "shots": shots, "seed": seed, "query_id": query_id,
                   "answer": text_of(answer), "score": per_item.get(query_id), "picture": images[query_id]}  # fmt: skip
            decided = dict(zip(("value", "label"), decisions[query_id], strict=True)) if query_id in decisions else {}
            yield json.dumps({**row, **decided, **marks}) + "\n"
