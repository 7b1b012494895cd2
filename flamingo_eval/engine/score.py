"""Score: from the journal's raw text to numbers; never needs a model or a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flamingo_eval import registry
from flamingo_eval.engine.folder import RunFolder
from flamingo_eval.engine.journal import Journal
from flamingo_eval.engine.plan import Source, TrialPlan, query_row
from flamingo_eval.errors import DataError, UserError
from flamingo_eval.files import json_text, read_json, write_atomic
from flamingo_eval.nouns import Cell, Id, Score, Trial
from flamingo_eval.prompting import extract_answer

CellKey = tuple[str, int, int]
"""(benchmark, shots, seed)."""


def raw_answers(trial: TrialPlan, journal: Journal) -> dict[Id, str]:
    """Query id -> raw text, for the queries of a trial that the journal has answers for."""
    ids = [trial.query_id(position) for position in range(len(trial))]
    found = {id: journal.get((*trial.cell, id)) for id in ids}
    return {id: prediction.raw for id, prediction in found.items() if prediction is not None}


def score_trials(trials: Sequence[TrialPlan], journal: Journal) -> dict[CellKey, tuple[dict[Id, str], Score]]:
    """(answers after post-processing, score) of every trial that is fully answered."""
    scored: dict[CellKey, tuple[dict[Id, str], Score]] = {}
    by_source: dict[int, tuple[Source, list[TrialPlan]]] = {}
    for trial in trials:
        by_source.setdefault(id(trial.source), (trial.source, []))[1].append(trial)
    for source, members in by_source.values():
        rules, complete, answers = source.benchmark.answer, [], []
        for trial in members:
            raw = raw_answers(trial, journal)
            if len(raw) == len(trial):
                complete.append(trial)
                answers.append({query: extract_answer(rules, text) for query, text in raw.items()})
        if complete:
            scores = registry.metric(source.benchmark.metric).compute(answers, source.references.by_id)
            scored |= {t.cell: pair for t, pair in zip(complete, zip(answers, scores, strict=True), strict=True)}
    return scored


def check_complete(trials: Iterable[TrialPlan], journal: Journal, wanted: set[CellKey], folder: RunFolder) -> None:
    """Refuses to present trials with answers missing as if they were whole.

    Raises:
        DataError: says how many answers are missing.
    """
    missing = {t.cell: len(t) - len(raw_answers(t, journal)) for t in trials if t.cell in wanted}
    if any(missing.values()):
        cells = "; ".join(f"{b}, {k} shots, seed {s}: {n}" for (b, k, s), n in missing.items() if n)
        raise DataError(
            f"{folder.path}: {sum(missing.values())} answers are missing ({cells}). "
            "The command that began the run continues it"
        )


def build_cells(
    trials: Sequence[TrialPlan], scored: Mapping[CellKey, tuple[dict[Id, str], Score]], selector: str
) -> list[Cell]:
    """The table's cells, trials in order of seed."""
    groups: dict[tuple[str, int], list[TrialPlan]] = {}
    for trial in trials:
        if trial.cell in scored:
            groups.setdefault(trial.cell[:2], []).append(trial)
    cells = []
    for (name, shots), members in sorted(groups.items()):
        benchmark = members[0].source.benchmark
        members.sort(key=lambda t: t.seed)
        results = tuple(
            Trial(t.seed, scored[t.cell][1].value, queries=len(scored[t.cell][0]), planned=len(t)) for t in members
        )
        cells.append(
            Cell(
                name,
                benchmark.split,
                shots,
                selector,
                benchmark.protocol,
                registry.metric(benchmark.metric).title,
                results,
            )
        )
    return cells


def write_scores(
    folder: RunFolder, trials: Sequence[TrialPlan], journal: Journal, run: Mapping[str, Any]
) -> list[Cell]:
    """Scores every complete trial and replaces ``scores.json`` and ``scores.jsonl``."""
    scored = score_trials(trials, journal)
    cells = build_cells(trials, scored, run["identity"]["selector"])
    notes = dict.fromkeys(note for t in trials if t.cell in scored for note in t.source.references.notes)
    marks = {"demo": run["demo"]} if run["demo"] else {}
    write_atomic(folder.items_file, "".join(_item_lines(scored, marks)))
    table = {"format": 1, **marks, "notes": list(notes), "cells": [cell_row(cell) for cell in cells]}
    write_atomic(folder.scores_file, json_text(table))
    return cells


def _item_lines(scored: Mapping[CellKey, tuple[dict[Id, str], Score]], marks: Mapping[str, Any]) -> Iterator[str]:
    for (benchmark, shots, seed), (answers, score) in scored.items():
        for query_id, text in answers.items():
            row = {"benchmark": benchmark, "shots": shots, "seed": seed, "query_id": query_id, "answer": text,
                   "score": score.per_item.get(query_id), **marks}  # fmt: skip
            yield json.dumps(row) + "\n"


def cell_row(cell: Cell) -> dict[str, Any]:
    """A cell as ``report --format json`` prints it."""
    return {
        "benchmark": cell.benchmark,
        "split": cell.split,
        "shots": cell.shots,
        "selector": cell.selector,
        "protocol": cell.protocol,
        "metric": cell.metric,
        "mean": cell.mean,
        "std": cell.std,
        "ddof": 0,
        "complete": cell.complete,
        "trials": [{"seed": t.seed, "value": t.value, "queries": t.queries, "planned": t.planned} for t in cell.trials],
    }


def read_scores(folder: RunFolder) -> tuple[list[Cell], list[str]]:
    """Cells and notes of ``scores.json``.

    Raises:
        UserError: the run is not scored, or the file is not one of ours.
    """
    folder.read_run()
    if not folder.scores_file.exists():
        raise UserError(f"{folder.path} is not scored yet: flamingo-eval score {folder.path}")
    table = read_json(folder.scores_file)
    try:
        cells = [
            Cell(**{key: row[key] for key in ("benchmark", "split", "shots", "selector", "protocol", "metric")},
                 trials=tuple(Trial(**trial) for trial in row["trials"]))
            for row in table["cells"]
        ]  # fmt: skip
        return cells, list(table["notes"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder.scores_file} can't be read ({error!r}): flamingo-eval score {folder.path}") from error


def samples(folder: RunFolder, trials: Iterable[TrialPlan], journal: Journal) -> Iterator[dict[str, Any]]:
    """A row per scored query: the plan's fields, raw text, answer, score."""
    read_scores(folder)
    items: dict[tuple[Any, ...], dict[str, Any]] = {}
    with folder.items_file.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            items[row["benchmark"], row["shots"], row["seed"], row["query_id"]] = row
    for trial in trials:
        for query in trial:
            slot = (*trial.cell, query.id)
            prediction, item = journal.get(slot), items.get(slot)
            if prediction is not None and item is not None:
                yield {**query_row(query), "raw": prediction.raw, "answer": item["answer"], "score": item["score"]}
