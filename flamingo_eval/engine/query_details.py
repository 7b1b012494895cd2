"""Everything about one query of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import exists
from flamingo_eval.core.records import Example
from flamingo_eval.engine.plan import TrialPlan, select_trials
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.engine.reopen import reopen_answered
from flamingo_eval.engine.samples import check_scored, plain_reference, sample_row
from flamingo_eval.storage.journal import Journal
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import ItemRow
from flamingo_eval.storage.scores import ItemKey, item_rows


def query_details(
    folder: RunFolder,
    root_of: RootOf,
    id: str,
    *,
    benchmark: str | None = None,
    shots: int | None = None,
    seed: int | None = None,
    data_root: str | None = None,
) -> list[dict[str, Any]]:
    """Everything about one query, for each trial that asks it: its prompt, answer, references, and score.

    Args:
        folder: the run.
        root_of: maps a data root, as the user names it, to its folder.
        id: id of the query, as the plan prints it.
        benchmark: only trials of this benchmark.
        shots: only trials with this number of shots.
        seed: only trials with this seed.
        data_root: where the data is now, if it has moved.

    Raises:
        UserError: no trial has this query; see also :func:`flamingo_eval.engine.reopen.reopen`.
    """
    _, trials, journal = reopen_answered(folder, root_of, data_root)
    chosen = [trial for trial in select_trials(trials, shots, seed) if benchmark in (None, trial.key[0])]
    reasons = {(*row.slot[:3], str(row.query_id)): row.reason for row in folder.read_failures()}
    items = (
        {key: row for key, row in item_rows(folder).items() if str(key[3]) == id} if exists(folder.items_file) else {}
    )
    found = [row for trial in chosen for row in _details(folder, trial, journal, id, items, reasons)]
    if not found:
        known = ", ".join(str(i) for i, _ in (chosen or trials)[0].slots[:5])
        raise UserError(
            f"no trial of {folder.path} has a query {id!r} at these shots and seeds; ids are such as {known}"
        )
    return found


def _details(
    folder: RunFolder,
    trial: TrialPlan,
    journal: Journal,
    id: str,
    items: Mapping[ItemKey, ItemRow],
    reasons: Mapping[tuple[Any, ...], str],
) -> Iterator[dict[str, Any]]:
    data = trial.source.data
    for position, (query_id, occurrence) in enumerate(trial.slots):
        if str(query_id) != id:
            continue
        query = trial.query(position)
        prediction = journal.get((*trial.key, query_id, occurrence))
        reference = trial.source.references.by_id.get(query_id)
        check_scored(folder, trial, query, prediction, items.get((*trial.key, query_id)))
        yield {
            **sample_row(trial, query, prediction, items.get((*trial.key, query_id))),
            "example": _described(data.test[trial.queries[position]]),
            "demonstrations": [_described(data.train[i]) for i in trial.demonstrations[position][0]],
            "references": plain_reference(reference),
            "failed": None if prediction else reasons.get((*trial.key, id)),
        }


def _described(example: Example) -> dict[str, Any]:
    return {"id": example.id, "image": example.image, **example.fields}
