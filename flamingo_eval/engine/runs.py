"""What runs there are, how far they have come, and everything about one query of a run."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from flamingo_eval.engine.folder import RunFolder
from flamingo_eval.engine.journal import Journal, journal_files
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.prepare import RootOf
from flamingo_eval.engine.records import ItemRow
from flamingo_eval.engine.reopen import reopen_answered
from flamingo_eval.engine.score_files import ItemKey, check_scored, item_rows, sample_row
from flamingo_eval.errors import UserError
from flamingo_eval.files import exists, is_folder, open_regular
from flamingo_eval.nouns import Example


@dataclass(frozen=True)
class RunState:
    """A run at a glance.

    Attributes:
        path: its folder.
        state: ``running``, ``complete``, ``unfinished``, ``partial``, or what is wrong with it.
        benchmarks: names.
        checkpoint: its name.
        shots: numbers of demonstrations.
        trials: how many there are, of all benchmarks and shots.
        answered: answers in the journals.
        planned: queries of all trials; None where the record does not say.
        age: seconds since anything was written.
        holder: which process is at work on it, if one is.
    """

    path: Path
    state: str
    benchmarks: tuple[str, ...] = ()
    checkpoint: str = ""
    shots: tuple[int, ...] = ()
    trials: int = 0
    answered: int = 0
    planned: int | None = None
    age: float = 0.0
    holder: str | None = None


def list_runs(folder: Path) -> list[RunState]:
    """The runs in a folder, the latest first. Raises UserError if there is no such folder."""
    if not is_folder(folder):
        raise UserError(f"{folder} is not a folder; runs are saved there unless --out names another one")
    return sorted((_state(path.parent) for path in _records(folder)), key=lambda run: run.age)


def _records(folder: Path) -> list[Path]:
    """What may be a run's record, in every folder of a folder, also where nobody can look into it."""
    try:
        folders = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from error
    return [one / "run.json" for one in folders if os.path.lexists(one / "run.json") or _closed(one)]


def _closed(path: Path) -> bool:
    return path.is_dir() and not os.access(path, os.R_OK | os.X_OK)


def _state(path: Path) -> RunState:
    """One run's; whatever is wrong with it is its own."""
    try:
        return _read_state(path)
    except OSError as error:
        return RunState(path, f"can't be read: {error.strerror}", age=math.inf)
    except UserError as error:
        return RunState(path, str(error), age=math.inf)


def _read_state(path: Path) -> RunState:
    folder = RunFolder(path)
    journals = journal_files(folder.journal_file)
    age = time.time() - max(file.stat().st_mtime for file in (folder.run_file, *journals))
    try:
        record = folder.read_run()
    except UserError as error:
        return RunState(path, str(error), age=age)
    names = [name for name, _, _ in record.keys]
    queries = [record.settings.benchmarks[name].queries for name in names]
    planned = sum(n for n in queries if n is not UNSET) if UNSET not in queries else None
    lines = sum(_count_lines(file) for file in journals)
    outdated = sum(row.answers for row in folder.read_failures())
    answered = lines - outdated if planned is None else min(lines - outdated, planned)
    running = folder.in_use()
    if running:
        state = "running"
    elif planned is not None and answered >= planned and exists(folder.scores_file):
        state = "complete"
    else:
        state = "partial" if folder.skipped() and exists(folder.scores_file) else "unfinished"
    return RunState(
        path=path,
        state=state,
        benchmarks=tuple(dict.fromkeys(names)),
        checkpoint=record.checkpoint.name,
        shots=tuple(sorted({shots for _, shots, _ in record.keys})),
        trials=len(names),
        answered=answered,
        planned=planned,
        age=age,
        holder=folder.holder() if running else None,
    )


def _count_lines(path: Path) -> int:
    count = 0
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return count


def query_details(
    folder: RunFolder,
    root_of: RootOf,
    id: str,
    *,
    shots: int | None = None,
    seed: int | None = None,
    data_root: str | None = None,
) -> list[dict[str, Any]]:
    """Everything about one query, for each trial that asks it: what was shown, said, compared, and scored.

    Args:
        folder: the run.
        root_of: from a data root as users name it to the folder.
        id: the query's, as the plan prints it.
        shots: only trials at this number of shots.
        seed: only this trial.
        data_root: where the data is now, if it has moved.

    Raises:
        UserError: no trial asks such a query; see also :func:`flamingo_eval.engine.reopen.reopen`.
    """
    _, trials, journal = reopen_answered(folder, root_of, data_root)
    chosen = [t for t in trials if shots in (None, t.shots) and seed in (None, t.seed)]
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
            "references": dataclasses.asdict(reference) if dataclasses.is_dataclass(reference) else reference,  # type: ignore[arg-type]
            "failed": None if prediction else reasons.get((*trial.key, id)),
        }


def _described(example: Example) -> dict[str, Any]:
    return {"id": example.id, "image": example.image, **example.fields}
