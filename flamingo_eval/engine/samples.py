"""Samples: one row per scored query, with its prompt, answer and references."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.records import Prediction, Query
from flamingo_eval.engine.plan import TrialPlan, query_row
from flamingo_eval.engine.score import processed, text_of
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import ItemRow
from flamingo_eval.storage.scores import item_rows, read_scores


def samples(folder: RunFolder, trials: Iterable[TrialPlan], journal: Journal) -> Iterator[dict[str, Any]]:
    """One row per scored query: the plan's fields, raw text or log-likelihoods, answer, references, score, and
    whether the run is a demo.

    Raises:
        UserError: the run is not scored, or its files are broken.
    """
    read_scores(folder)
    items, demo = item_rows(folder), bool(folder.read_run().demo)
    for trial in trials:
        for query in trial:
            prediction = journal.get((*trial.key, query.id, query.occurrence))
            item = items.get((*trial.key, query.id))
            check_scored(folder, trial, query, prediction, item)
            if prediction is not None and item is not None:
                reference = plain_reference(trial.source.references.by_id.get(query.id))
                yield {**sample_row(trial, query, prediction, item), "references": reference, "demo": demo}


def plain_reference(reference: Any) -> Any:
    """A query's reference as a JSON value: a text, texts, or annotators' answers."""
    return dataclasses.asdict(reference) if dataclasses.is_dataclass(reference) else reference  # type: ignore[arg-type]


def check_scored(
    folder: RunFolder, trial: TrialPlan, query: Query, prediction: Prediction | None, item: ItemRow | None
) -> None:
    """Raises UserError if the score belongs to an older answer: the query was asked again after scoring.

    If an image is queried twice in a trial, only the last answer is scored, and only that one is checked.
    """
    if prediction is None or item is None or trial.last_occurrence[query.id] != query.occurrence:
        return
    if text_of(processed(trial.source.benchmark.answer, prediction.answer)) != item.answer:
        raise UserError(
            f"{folder.path} was scored before the answer to query {query.id} ({trial.key[0]}, {trial.shots} shots, "
            f"seed {trial.seed}) changed: flamingo-eval score {folder.path}"
        )


def sample_row(trial: TrialPlan, query: Query, prediction: Prediction | None, item: ItemRow | None) -> dict[str, Any]:
    """A query as ``samples`` prints it; unknown values are null."""
    answer = prediction.answer if prediction else None
    ranked = {"class_logprobs": dict(answer)} if isinstance(answer, Mapping) else {}
    scored = {"answer": item.answer if item else None, "score": item.score if item else None}
    if prediction is not None and trial.last_occurrence[query.id] != query.occurrence:
        # the query is asked again later in the trial: the last answer counts, as in the reference's result file
        scored = {"answer": text_of(processed(trial.source.benchmark.answer, prediction.answer)), "score": None}
    return {**query_row(trial, query), "raw": answer if isinstance(answer, str) else None, **ranked, **scored}
