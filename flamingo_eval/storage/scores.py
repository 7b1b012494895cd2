"""``scores.json`` and ``scores.jsonl``: written by scoring, read by everything that shows numbers."""

from __future__ import annotations

from collections.abc import Sequence
from io import TextIOWrapper

from msgspec import UNSET

from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.numbers import all_finite, same_number
from flamingo_eval.core.paths import exists, open_regular
from flamingo_eval.core.reading import parse_json, read_json
from flamingo_eval.core.records import Cell, Id, Notes, Trial
from flamingo_eval.core.schema import typed
from flamingo_eval.storage.identity_tables import with_identity
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import CellRow, ItemRow, ScoresRecord, TrialKey, TrialRow

ItemKey = tuple[str, int, int, Id]
"""(benchmark, shots, seed, query id)."""


def cell_row(cell: Cell) -> CellRow:
    """A cell in the form of files and of ``report --format json``."""
    return CellRow(
        benchmark=cell.benchmark,
        split=cell.split,
        shots=cell.shots,
        selector=cell.selector,
        protocol=cell.protocol,
        metric=cell.metric,
        mean=cell.mean,
        std=cell.std,
        complete=cell.complete,
        trials=[_trial_row(trial) for trial in cell.trials],
    )


def _trial_row(trial: Trial) -> TrialRow:
    groups = {kind: dict(values) for kind, values in trial.groups.items()}
    return TrialRow(seed=trial.seed, value=trial.value, queries=trial.queries, planned=trial.planned,
                    alternatives=dict(trial.alternatives) or UNSET, groups=groups or UNSET)  # fmt: skip


def read_scores_record(folder: RunFolder) -> ScoresRecord:
    """The content of ``scores.json``.

    Raises:
        UserError: the run is not scored, or the file is damaged; the message says where.
    """
    if not exists(folder.scores_file):
        folder.read_run()
        raise UserError(f"{folder.path} is not scored yet: flamingo-eval score {folder.path}")
    table = read_json(folder.scores_file)
    try:
        record: ScoresRecord = with_identity(table, ScoresRecord, str(folder.scores_file))
    except UserError as error:
        raise UserError(f"{error}. It is damaged: flamingo-eval score {folder.path}") from error
    return record


def read_scores(folder: RunFolder) -> tuple[list[Cell], Notes]:
    """Cells and notes of ``scores.json``.

    Raises:
        UserError: the run is not scored, or the file is damaged, or contradicts itself or ``run.json``.
    """
    run, record = folder.read_run(), read_scores_record(folder)
    damaged = UserError(f"{folder.scores_file} is damaged: flamingo-eval score {folder.path}")
    cells, known = read_cells(record.cells, damaged), set(run.keys)
    for cell in cells:
        own = run.identity.benchmarks.get(cell.benchmark)
        agrees = own is not None and (own.split, own.protocol) == (cell.split, cell.protocol)
        if not agrees or any((cell.benchmark, cell.shots, trial.seed) not in known for trial in cell.trials):
            raise _damaged(damaged, f"{cell.benchmark}, {cell.shots} shots: run.json has no such cell")
    return cells, Notes(tuple(record.warnings), tuple(record.notes))


def read_cells(rows: Sequence[CellRow], damaged: UserError) -> list[Cell]:
    """Cells from rows that :func:`cell_row` made. Raises ``damaged`` if they contradict themselves."""
    return [_read_cell(row, damaged) for row in rows]


def _read_cell(row: CellRow, damaged: UserError) -> Cell:
    """A cell from its row, once it is checked that mean and deviation are those of its trials."""
    where = f"{row.benchmark}, {row.shots} shots"
    rules = {tuple(trial.alternatives or ()) for trial in row.trials}
    if len(rules) > 1:
        raise _damaged(damaged, f"{where}: its trials are scored by different rules")
    for trial in row.trials:
        if not 0 < trial.queries <= trial.planned:
            raise _damaged(damaged, f"{where}, seed {trial.seed}: {trial.queries} of {trial.planned} queries")
        tables = [trial.alternatives or {}, *(trial.groups or {}).values()]
        if not all_finite([trial.value, *(value for table in tables for value in table.values())]):
            raise _damaged(damaged, f"{where}, seed {trial.seed}: not all values are numbers")
    trials = tuple(
        Trial(trial.seed, trial.value, trial.queries, trial.planned, trial.alternatives or {}, trial.groups or {})
        for trial in row.trials
    )
    cell = Cell(row.benchmark, row.split, row.shots, row.selector, row.protocol, row.metric, trials)
    for key, stated, computed in (("mean", row.mean, cell.mean), ("std", row.std, cell.std)):
        if stated is not UNSET and not same_number(stated, computed):
            raise _damaged(damaged, f"{where}: {key} is {str(stated)[:40]}, its trials give {computed}")
    return cell


def _damaged(damaged: UserError, detail: str) -> UserError:
    return type(damaged)(f"{damaged} ({detail})")


def unscored(folder: RunFolder) -> list[TrialKey]:
    """The trials of a run whose answers are neither all there nor skipped, or whose score is lost."""
    items = item_rows(folder).items()
    scored: set[TrialKey] = {slot[:3] for slot in folder.skipped()}
    scored |= {key[:3] for key, _ in items}
    with_scores = {key[:3] for key, row in items if row.score is not None or row.value is not UNSET}
    shown = {(cell.benchmark, cell.shots, trial.seed) for cell in read_scores(folder)[0] for trial in cell.trials}
    scored -= with_scores - shown
    return [key for key in folder.read_run().keys if key not in scored]


def item_rows(folder: RunFolder) -> dict[ItemKey, ItemRow]:
    """(benchmark, shots, seed, query id) -> its line of ``scores.jsonl``. Raises UserError if that can't be read."""
    items = {}
    try:
        with open_regular(folder.items_file) as raw, TextIOWrapper(raw, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = typed(parse_json(line, f"line {number}"), ItemRow, f"line {number}")
                items[row.benchmark, row.shots, row.seed, row.query_id] = row
    except (OSError, ValueError, DataError, UserError) as error:
        reason = error if isinstance(error, DataError | UserError) else repr(error)
        raise UserError(f"{folder.items_file} can't be read ({reason}): flamingo-eval score {folder.path}") from error
    return items
