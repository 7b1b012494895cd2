"""The evidence for numbers: every query's score, from a run's folder or a baseline file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from flamingo_eval.analysis.statistics import auc_influence, mean_influence
from flamingo_eval.analysis.uncertainty import AUC, OPEN, PERCENT, Moves, Scale, Uncertainty, mean_uncertainty
from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.numbers import all_finite, same_number
from flamingo_eval.core.paths import is_file
from flamingo_eval.core.reading import read_json
from flamingo_eval.core.records import Cell, Trial
from flamingo_eval.storage.identity_tables import with_identity
from flamingo_eval.storage.outputs import write_output
from flamingo_eval.storage.run_folder import RunFolder, now
from flamingo_eval.storage.run_records import (
    FIRST_RENDERING,
    FORMAT,
    BaselineRecord,
    ItemRow,
    ScoresRecord,
    SessionRecord,
    TrialColumns,
    TrialKey,
)
from flamingo_eval.storage.scores import cell_row, item_rows, read_cells, read_scores, read_scores_record

_KIND = "flamingo-eval baseline"


@dataclass(frozen=True)
class TrialEvidence:
    """One trial's queries.

    Attributes:
        value: the trial's metric.
        influence: query -> influence value, in the metric's unit.
        images: query -> the image it is about.
        row: the same, in the form of a baseline file.
    """

    value: float
    influence: Mapping[str, float]
    images: Mapping[str, str]
    row: TrialColumns

    @property
    def moves(self) -> Moves:
        """How far each query moves the metric."""
        labels = None if self.row.labels is UNSET else dict(zip(self.row.queries, self.row.labels, strict=True))
        return Moves(self.value, self.influence, labels)

    @property
    def highest(self) -> float:
        """The highest score of a query; for ROC AUC the top of its scale."""
        return AUC.high if self.row.scores is UNSET else max(map(float, self.row.scores), default=0.0)


@dataclass(frozen=True)
class Evidence:
    """A run or a baseline.

    Attributes:
        name: its name in messages, which is the given path.
        about: what makes its numbers comparable, as ``scores.json`` has it.
        sessions: where the answers came from, as ``run.json`` has it.
        cells: (benchmark, shots) -> cell.
        trials: (benchmark, shots, seed) -> its queries.
    """

    name: str
    about: ScoresRecord
    sessions: Sequence[SessionRecord]
    cells: Mapping[tuple[str, int], Cell]
    trials: Mapping[TrialKey, TrialEvidence]

    def uncertainty(self, cell: Cell) -> Uncertainty:
        """The uncertainty of a cell's mean."""
        return self._of([self.trials[cell.benchmark, cell.shots, trial.seed] for trial in cell.trials], cell)

    def trial_interval(self, cell: Cell, seed: int) -> tuple[float, float]:
        """95% interval of one trial's metric, over its queries."""
        found = self._of([self.trials[cell.benchmark, cell.shots, seed]], cell)
        return found.low, found.high

    def _of(self, trials: Sequence[TrialEvidence], cell: Cell) -> Uncertainty:
        images = {query: image for trial in trials for query, image in trial.images.items()}
        return mean_uncertainty([trial.moves for trial in trials], images, scale_of(cell, trials[0]))


def kept_defects(cells: Sequence[Cell], rendering: str) -> list[str]:
    """Warnings about numbers that follow the reference's code where its paper describes something else."""
    if rendering != FIRST_RENDERING:  # only prompts of the Flamingo family have this defect
        return []
    names = [cell.benchmark for cell in cells if cell.shots == 0 and _keeps_images(cell)]
    if not names:
        return []
    return [
        f"{', '.join(dict.fromkeys(names))} at 0 shots: prompts hold a demonstration's image, as the reference's code "
        "has them; its paper says that images are removed, and --protocol official removes them"
    ]


def _keeps_images(cell: Cell) -> bool:
    try:
        return load_benchmark(cell.benchmark, protocol=cell.protocol).prompt.zero_shot_keeps_images
    except UserError:  # a benchmark, or a protocol, that is not installed here
        return False


def scale_of(cell: Cell, trial: TrialEvidence) -> Scale:
    """The scale of a cell's values. Accuracies are in percent, and their metric's title says so."""
    if trial.row.labels is not UNSET:
        return AUC
    return PERCENT if cell.metric.endswith("%") else OPEN


def read_evidence(path: Path) -> Evidence:
    """Reads a run's folder or a baseline file.

    Raises:
        UserError: it is neither, is not scored, is damaged, or was scored by a version that kept less than is needed.
    """
    if is_file(path):
        return _read_baseline(path)
    folder = RunFolder(path)
    cells, _ = read_scores(folder)
    rows: dict[TrialKey, list[ItemRow]] = {}
    for (benchmark, shots, seed, _), row in item_rows(folder).items():
        rows.setdefault((benchmark, shots, seed), []).append(row)
    again = UserError(f"{folder.items_file} does not hold every query's score: flamingo-eval score {path}")
    trials: dict[TrialKey, TrialEvidence] = {}
    for cell in cells:
        for trial in cell.trials:
            key = (cell.benchmark, cell.shots, trial.seed)
            if any(row.image is UNSET for row in rows.get(key, [])) or key not in rows:
                raise again
            trials[key] = _evidence(_columns(key, rows[key]), again)
            _check_value(trial, key, trials[key], again)
    return Evidence(
        str(path),
        read_scores_record(folder),
        folder.read_run().sessions,
        {(c.benchmark, c.shots): c for c in cells},
        trials,
    )


def _check_value(trial: Trial, key: TrialKey, evidence: TrialEvidence, damaged: UserError) -> None:
    """Raises UserError if a trial's value is not the one that its queries' own scores give."""
    if not same_number(trial.value, evidence.value) or not len(evidence.influence) <= trial.queries <= trial.planned:
        benchmark, shots, seed = key
        raise UserError(
            f"{damaged} ({benchmark}, {shots} shots, seed {seed}: value is {trial.value} over {trial.queries} queries "
            f"of {trial.planned}, the scores of {len(evidence.influence)} queries give {evidence.value})"
        )


def _columns(key: TrialKey, rows: Sequence[ItemRow]) -> TrialColumns:
    """A trial in the form of a baseline file: a list for each property of its queries."""
    benchmark, shots, seed = key
    ranked = rows[0].value is not UNSET
    return TrialColumns(
        benchmark=benchmark,
        shots=shots,
        seed=seed,
        queries=[str(row.query_id) for row in rows],
        images=[row.image or "" for row in rows],
        scores=UNSET if ranked else [math.nan if row.score is None else row.score for row in rows],
        values=[row.value if row.value is not UNSET else math.nan for row in rows] if ranked else UNSET,
        labels=[bool(row.label) for row in rows] if ranked else UNSET,
    )


def _evidence(row: TrialColumns, damaged: UserError) -> TrialEvidence:
    queries, images = row.queries, row.images
    ranked = row.values is not UNSET
    numbers_of, labels = (row.values or [], row.labels or []) if ranked else (row.scores or [], [])
    lengths = {len(queries), len(images), len(numbers_of), *([len(labels)] if ranked else [])}
    if not queries or len(set(queries)) != len(queries) or len(lengths) != 1 or not all_finite(numbers_of):
        raise damaged
    numbers = np.array(numbers_of, np.float64)
    if ranked:
        try:
            value, influence = auc_influence(numbers, np.array(labels, np.bool_))
        except ValueError:
            raise damaged from None
        value, influence = 100 * value, 100 * influence
    else:
        value, influence = float(numbers.mean()), mean_influence(numbers)
    moves = dict(zip(queries, influence.tolist(), strict=True))
    return TrialEvidence(value, moves, dict(zip(queries, images, strict=True)), row)


def _read_baseline(path: Path) -> Evidence:
    table = read_json(path)
    damaged = UserError(f"{path} is no baseline of this version, or is damaged; `check --update` writes a new one")
    if not isinstance(table, dict) or table.get("kind") != _KIND or table.get("format") != FORMAT:
        raise damaged
    try:
        record: BaselineRecord = with_identity(table, BaselineRecord, str(path))
    except UserError as error:
        raise UserError(f"{damaged} ({error})") from error
    cells = read_cells(record.cells, damaged)
    trials = {(row.benchmark, row.shots, row.seed): _evidence(row, damaged) for row in record.trials}
    for cell in cells:
        for trial in cell.trials:
            key = (cell.benchmark, cell.shots, trial.seed)
            if key not in trials:
                raise damaged
            _check_value(trial, key, trials[key], damaged)
    about = ScoresRecord(
        demo=record.demo, checkpoint=record.checkpoint, identity=record.identity, references=record.references,
        scoring=record.scoring, versions=record.versions, notes=[], cells=record.cells,
    )  # fmt: skip
    return Evidence(str(path), about, record.sessions or [], {(c.benchmark, c.shots): c for c in cells}, trials)


def write_baseline(path: Path, evidence: Evidence) -> None:
    """Writes a run's cells, what makes them comparable, every query's score, and where the answers came from.

    Raises:
        StorageError: the file can't be written.
    """
    about = evidence.about
    record = BaselineRecord(
        kind=_KIND,
        format=FORMAT,
        written=now(),
        demo=about.demo or None,
        # the file is shared, often in public: it has what the run is made of, but no names of machines and folders
        checkpoint=replace(about.checkpoint, parts=UNSET),
        identity=about.identity,
        references=about.references,
        scoring=about.scoring,
        versions=about.versions,
        sessions=[replace(session, host=UNSET, process=UNSET) for session in evidence.sessions],
        cells=[cell_row(cell) for cell in evidence.cells.values()],
        trials=[trial.row for trial in evidence.trials.values()],
    )
    head = {**msgspec.to_builtins(record), "identity": record.identity.table()}
    lines = [json.dumps(trial, ensure_ascii=False) for trial in head.pop("trials")]
    text = json.dumps(head, indent=1, ensure_ascii=False)
    write_output(path, text.removesuffix("\n}") + ',\n "trials": [\n' + ",\n".join(lines) + "\n ]\n}\n")
