"""``scores.json`` and ``scores.jsonl``: written by scoring, read by everything that shows numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from typing import Any

from flamingo_eval.benchmark import AnswerRules
from flamingo_eval.engine.folder import RunFolder
from flamingo_eval.engine.journal import Journal
from flamingo_eval.engine.plan import TrialPlan, query_row
from flamingo_eval.errors import DataError, UserError
from flamingo_eval.files import exists, open_regular
from flamingo_eval.nouns import Answer, Cell, Prediction, Query, Trial
from flamingo_eval.prompting import extract_answer
from flamingo_eval.reading import fits, parse_json, read_json

TrialKey = tuple[str, int, int]
"""(benchmark, shots, seed)."""


_NUMBER = (int, float)


_CELL_SHAPE = {
    "benchmark": str, "split": str, "shots": int, "selector": str, "protocol": str, "metric": str,
    "trials": [{"seed": int, "value": _NUMBER, "queries": int, "planned": int}],
}  # fmt: skip


_SCORES_SHAPE = {
    "notes": [str], "cells": list, "checkpoint": dict, "identity": {"benchmarks": dict}, "references": dict,
    "scoring?": dict,
}  # fmt: skip


_ITEM_SHAPE = {
    "benchmark": str, "shots": int, "seed": int, "query_id": (int, str), "answer": str, "score": (int, float, None),
    "picture?": str,
}  # fmt: skip


def processed(rules: AnswerRules, said: Answer) -> Answer:
    return extract_answer(rules, said) if isinstance(said, str) else said


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
        "trials": [
            {"seed": t.seed, "value": t.value, "queries": t.queries, "planned": t.planned}
            | ({"also": dict(t.also)} if t.also else {})
            | ({"groups": {kind: dict(values) for kind, values in t.groups.items()}} if t.groups else {})
            for t in cell.trials
        ],
    }


def read_scores(folder: RunFolder) -> tuple[list[Cell], list[str]]:
    """Cells and notes of ``scores.json``.

    Raises:
        UserError: the run is not scored, or the file is not one of ours.
    """
    run = folder.read_run()
    if not exists(folder.scores_file):
        raise UserError(f"{folder.path} is not scored yet: flamingo-eval score {folder.path}")
    table = read_json(folder.scores_file)
    damaged = UserError(f"{folder.scores_file} is damaged: flamingo-eval score {folder.path}")
    if not fits(table, _SCORES_SHAPE) or not fits([*table["identity"]["benchmarks"].values()], [dict]):
        raise damaged
    cells = read_cells(table["cells"], damaged)
    known = {tuple(row) for row in run["cells"]}
    for cell in cells:
        own = run["identity"]["benchmarks"].get(cell.benchmark, {})
        agrees = (own.get("split"), own.get("protocol")) == (cell.split, cell.protocol)
        if not agrees or any((cell.benchmark, cell.shots, trial.seed) not in known for trial in cell.trials):
            raise _damaged(damaged, f"{cell.benchmark}, {cell.shots} shots: run.json has no such cell")
    return cells, list(table["notes"])


def read_cells(rows: Any, damaged: UserError) -> list[Cell]:
    """Cells from what :func:`cell_row` made of them. Raises ``damaged`` if they are not that."""
    if not fits(rows, [_CELL_SHAPE]) or not all(row["trials"] for row in rows):
        raise damaged
    return [_read_cell(row, damaged) for row in rows]


def _read_cell(row: Mapping[str, Any], damaged: UserError) -> Cell:
    """A cell whose mean and deviation are those of its trials."""
    where = f"{row['benchmark']}, {row['shots']} shots"
    rules = {tuple(trial["also"]) for trial in row["trials"] if isinstance(trial.get("also", None), dict)}
    if len(rules) > 1 or (rules and not all("also" in trial for trial in row["trials"])):
        raise _damaged(damaged, f"{where}: its trials are scored by different rules")
    for trial in row["trials"]:
        if not 0 < trial["queries"] <= trial["planned"]:
            raise _damaged(damaged, f"{where}, seed {trial['seed']}: {trial['queries']} of {trial['planned']} queries")
        groups = trial.get("groups", {}), {"also": trial.get("also", {})}
        if not all(fits(table, dict) and fits([*table.values()], [dict]) for table in groups):
            raise _damaged(damaged, f"{where}: also and groups are tables of numbers")
        numbers = [value for table in groups for values in table.values() for value in values.values()]
        if not fits(numbers, [_NUMBER]) or not all_finite([trial["value"], *numbers]):
            raise _damaged(damaged, f"{where}, seed {trial['seed']}: not all values are numbers")
    keys = ("benchmark", "split", "shots", "selector", "protocol", "metric")
    cell = Cell(**{key: row[key] for key in keys}, trials=tuple(_read_trial(trial) for trial in row["trials"]))
    for key, computed in (("mean", cell.mean), ("std", cell.std)):
        if key in row and not same_number(row[key], computed):
            raise _damaged(damaged, f"{where}: {key} is {str(row[key])[:40]}, its trials give {computed}")
    return cell


def _damaged(damaged: UserError, detail: str) -> UserError:
    return type(damaged)(f"{damaged} ({detail})")


def all_finite(numbers: Iterable[Any]) -> bool:
    """Whether all are numbers as a float holds them: JSON has longer ones, and Python's reads NaN."""
    try:
        return all(math.isfinite(number) for number in numbers)
    except OverflowError:
        return False


def same_number(stated: Any, computed: float | None) -> bool:
    """Whether a number of a file is the one that follows from the rest of the file, but for rounding."""
    if computed is None or not isinstance(stated, _NUMBER) or isinstance(stated, bool):
        return stated is computed
    return all_finite([stated]) and math.isclose(stated, computed, rel_tol=1e-9, abs_tol=1e-6)


def _read_trial(row: Mapping[str, Any]) -> Trial:
    known = {field.name for field in dataclasses.fields(Trial)}
    return Trial(**{key: value for key, value in row.items() if key in known})


def unscored(folder: RunFolder) -> list[TrialKey]:
    """The trials that a run was asked for and whose answers are not all there, nor skipped; or whose score is lost."""
    items = item_rows(folder).items()
    scored: set[TrialKey] = {slot[:3] for slot in folder.skipped()}
    scored |= {key[:3] for key, _ in items}
    with_scores = {key[:3] for key, row in items if row["score"] is not None or "value" in row}
    shown = {(cell.benchmark, cell.shots, trial.seed) for cell in read_scores(folder)[0] for trial in cell.trials}
    scored -= with_scores - shown
    return [cell for row in folder.read_run()["cells"] if (cell := (row[0], row[1], row[2])) not in scored]


def samples(folder: RunFolder, trials: Iterable[TrialPlan], journal: Journal) -> Iterator[dict[str, Any]]:
    """A row per scored query: the plan's fields, raw text or log-likelihoods, answer, score.

    Raises:
        UserError: the run is not scored, or its files are broken.
    """
    read_scores(folder)
    items = item_rows(folder)
    for trial in trials:
        for query in trial:
            prediction = journal.get((*trial.key, query.id, query.occurrence))
            item = items.get((*trial.key, query.id))
            check_scored(folder, trial, query, prediction, item)
            if prediction is not None and item is not None:
                yield sample_row(trial, query, prediction, item)


def check_scored(
    folder: RunFolder, trial: TrialPlan, query: Query, prediction: Prediction | None, item: Mapping[str, Any] | None
) -> None:
    """Raises UserError where the score is that of another answer: the query was asked again since it was scored.

    Of an image that is queried twice in a trial the last answer is scored.
    """
    if prediction is None or item is None or trial.last_occurrence[query.id] != query.occurrence:
        return
    if text_of(processed(trial.source.benchmark.answer, prediction.answer)) != item["answer"]:
        raise UserError(
            f"{folder.path} was scored before the answer to query {query.id} ({trial.key[0]}, {trial.shots} shots, "
            f"seed {trial.seed}) changed: flamingo-eval score {folder.path}"
        )


def text_of(said: Answer) -> str:
    """An answer as ``scores.jsonl`` has it: of a ranking the most likely name."""
    return said if isinstance(said, str) else max(said, key=lambda name: said[name])


def sample_row(
    trial: TrialPlan, query: Query, prediction: Prediction | None, item: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A query as ``samples`` prints it; what is not known is null."""
    said = prediction.answer if prediction else None
    ranked = {"class_logprobs": dict(said)} if isinstance(said, Mapping) else {}
    scored = {key: item[key] if item else None for key in ("answer", "score")}
    return {**query_row(trial, query), "raw": said if isinstance(said, str) else None, **ranked, **scored}


def item_rows(folder: RunFolder) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(benchmark, shots, seed, query id) -> its line of ``scores.jsonl``. Raises UserError if that is broken."""
    items = {}
    try:
        with open_regular(folder.items_file) as raw, TextIOWrapper(raw, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = parse_json(line, f"line {number}")
                if not fits(row, _ITEM_SHAPE):
                    raise ValueError(f"not a scored answer: {line[:80]!r}")
                row["score"] = None if row["score"] is None else float(row["score"])
                items[row["benchmark"], row["shots"], row["seed"], row["query_id"]] = row
    except (OSError, ValueError, KeyError, TypeError, OverflowError, DataError) as error:
        told = error if isinstance(error, DataError) else repr(error)
        raise UserError(f"{folder.items_file} can't be read ({told}): flamingo-eval score {folder.path}") from error
    return items
