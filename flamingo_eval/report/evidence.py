"""What numbers rest on: every query's score, from a run's folder or a baseline file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_eval.engine.folder import IDENTITY_SHAPE, RunFolder, now
from flamingo_eval.engine.outputs import write_output
from flamingo_eval.engine.score_files import TrialKey, cell_row, item_rows, read_cells, read_scores, same_number
from flamingo_eval.errors import UserError
from flamingo_eval.files import is_file
from flamingo_eval.nouns import Cell, Trial
from flamingo_eval.reading import fits, read_json
from flamingo_eval.report.table import Shown, Sure
from flamingo_eval.statistics import Uncertainty, auc_influence, bootstrap_interval, cluster_sums, mean_influence
from flamingo_eval.statistics import mean_uncertainty as uncertainty_of_mean

FORMAT = 1
_KIND = "flamingo-eval baseline"
_SHAPE = {
    "demo?": (str, None),
    "identity": IDENTITY_SHAPE,
    "checkpoint": {"name": str, "digest": str, "notes?": [str]},
    "references": dict,
    "scoring": dict,
    "sessions?": ([dict], None),
    "cells": [dict],
    "trials": [{"benchmark": str, "shots": int, "seed": int, "queries": [str], "pictures": [str]}],
}


@dataclass(frozen=True)
class TrialEvidence:
    """One trial's queries.

    Attributes:
        value: the trial's metric.
        influence: query -> influence value, in the metric's unit.
        pictures: query -> the picture it is about.
        row: the same as a baseline file has it.
    """

    value: float
    influence: Mapping[str, float]
    pictures: Mapping[str, str]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """A run or a baseline.

    Attributes:
        name: what to call it: the path given.
        about: ``identity``, ``checkpoint``, ``references``, ``scoring``, ``demo`` and ``versions`` as ``scores.json``
            has them, and ``sessions`` as ``run.json`` has them: where the answers came from.
        cells: (benchmark, shots) -> cell.
        trials: (benchmark, shots, seed) -> its queries.
    """

    name: str
    about: Mapping[str, Any]
    cells: Mapping[tuple[str, int], Cell]
    trials: Mapping[TrialKey, TrialEvidence]

    def uncertainty(self, cell: Cell) -> Uncertainty:
        """How sure a cell's mean is."""
        trials = [self.trials[cell.benchmark, cell.shots, trial.seed] for trial in cell.trials]
        pictures = {query: picture for trial in trials for query, picture in trial.pictures.items()}
        return uncertainty_of_mean([t.value for t in trials], [t.influence for t in trials], pictures)

    def trial_interval(self, key: TrialKey) -> tuple[float, float]:
        """95% bootstrap interval of one trial's metric, over queries, clustered by picture."""
        trial = self.trials[key]
        influence = np.array([*trial.influence.values()])
        sums = cluster_sums(influence, [trial.pictures[query] for query in trial.influence])
        return bootstrap_interval(trial.value, sums, len(influence))


def read_evidence(path: Path) -> Evidence:
    """A run's folder, or a baseline file.

    Raises:
        UserError: neither, not scored, damaged, or scored by a version that did not keep what is needed.
    """
    if is_file(path):
        return _read_baseline(path)
    folder = RunFolder(path)
    cells, _ = read_scores(folder)
    about = {**read_json(folder.scores_file), "sessions": folder.read_run()["sessions"]}
    rows: dict[TrialKey, list[dict[str, Any]]] = {}
    for (benchmark, shots, seed, _), row in item_rows(folder).items():
        rows.setdefault((benchmark, shots, seed), []).append(row)
    again = UserError(f"{folder.items_file} does not hold every query's score: flamingo-eval score {path}")
    trials: dict[TrialKey, TrialEvidence] = {}
    for cell in cells:
        for trial in cell.trials:
            key = (cell.benchmark, cell.shots, trial.seed)
            try:
                trials[key] = _evidence(_columns(key, rows[key]), again)
            except KeyError:
                raise again from None
            _check_value(trial, key, trials[key], again)
    return Evidence(str(path), about, {(c.benchmark, c.shots): c for c in cells}, trials)


def _check_value(trial: Trial, key: TrialKey, evidence: TrialEvidence, damaged: UserError) -> None:
    """A trial's value must be the one that its queries' own scores give. Raises UserError."""
    if not same_number(trial.value, evidence.value) or not len(evidence.influence) <= trial.queries <= trial.planned:
        benchmark, shots, seed = key
        raise UserError(
            f"{damaged} ({benchmark}, {shots} shots, seed {seed}: value is {trial.value} over {trial.queries} queries "
            f"of {trial.planned}, the scores of {len(evidence.influence)} queries give {evidence.value})"
        )


def _columns(key: TrialKey, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A trial as a baseline file has it: a list for each thing known of its queries."""
    columns: dict[str, Any] = dict(zip(("benchmark", "shots", "seed"), key, strict=True))
    columns |= {"queries": [str(row["query_id"]) for row in rows], "pictures": [row["picture"] for row in rows]}
    if "value" in rows[0]:
        return columns | {name + "s": [row[name] for row in rows] for name in ("value", "label")}
    return columns | {"scores": [row["score"] for row in rows]}


def _evidence(row: Mapping[str, Any], damaged: UserError) -> TrialEvidence:
    queries, pictures = row["queries"], row["pictures"]
    ranked = "values" in row
    columns = [row.get(name) for name in (("values", "labels") if ranked else ("scores",))]
    kinds = [[(int, float)], [bool]]
    if not queries or len(set(queries)) != len(queries) or not all(
        fits(column, kind) and len(column) == len(queries) == len(pictures)  # type: ignore[arg-type]
        for column, kind in zip(columns, kinds, strict=False)
    ):  # fmt: skip
        raise damaged
    try:
        numbers = np.array(columns[0], np.float64)
    except OverflowError:
        raise damaged from None
    if not np.isfinite(numbers).all():
        raise damaged
    if ranked:
        try:
            value, influence = auc_influence(numbers, np.array(columns[1], np.bool_))
        except ValueError:
            raise damaged from None
        value, influence = 100 * value, 100 * influence
    else:
        value, influence = float(numbers.mean()), mean_influence(numbers)
    moves = dict(zip(queries, influence.tolist(), strict=True))
    return TrialEvidence(value, moves, dict(zip(queries, pictures, strict=True)), row)


def _read_baseline(path: Path) -> Evidence:
    table = read_json(path)
    damaged = UserError(f"{path} is no baseline of this version, or is damaged; `check --update` writes a new one")
    if not isinstance(table, dict) or table.get("kind") != _KIND or table.get("format") != FORMAT:
        raise damaged
    if not fits(table, _SHAPE) or not fits([*table["identity"]["benchmarks"].values()], [dict]):
        raise damaged
    cells = read_cells(table["cells"], damaged)
    keys = [(row["benchmark"], row["shots"], row["seed"]) for row in table["trials"]]
    trials = {key: _evidence(row, damaged) for key, row in zip(keys, table["trials"], strict=True)}
    for cell in cells:
        for trial in cell.trials:
            key = (cell.benchmark, cell.shots, trial.seed)
            if key not in trials:
                raise damaged
            _check_value(trial, key, trials[key], damaged)
    return Evidence(str(path), table, {(c.benchmark, c.shots): c for c in cells}, trials)


def write_baseline(path: Path, evidence: Evidence) -> None:
    """Keeps a run's cells, what makes them comparable, every query's score, and where all came from.

    Raises:
        StorageError: it can't be written.
    """
    kept = ("demo", "checkpoint", "identity", "references", "scoring", "versions", "sessions")
    about: dict[str, Any] = {key: evidence.about.get(key) for key in kept}
    # it is shared, often in public: what it is made of, but not whose machine and folders
    about["checkpoint"] = {key: value for key, value in about["checkpoint"].items() if key != "parts"}
    about["sessions"] = [
        {key: value for key, value in session.items() if key not in ("host", "process")}
        for session in about["sessions"] or ()
    ]
    head = {"kind": _KIND, "format": FORMAT, "written": now(), **about}
    cells = [cell_row(cell) for cell in evidence.cells.values()]
    lines = [json.dumps(trial.row, ensure_ascii=False) for trial in evidence.trials.values()]
    text = json.dumps({**head, "cells": cells}, indent=1, ensure_ascii=False)
    write_output(path, text.removesuffix("\n}") + ',\n "trials": [\n' + ",\n".join(lines) + "\n ]\n}\n")


def shown_runs(paths: Sequence[Path], *, intervals: bool = False) -> list[Shown]:
    """Runs as tables and plots show them, by the name of their checkpoint, or of their folder where that is not enough.

    Raises:
        UserError: see :func:`read_evidence`.
    """
    parts: list[tuple[Path, list[Cell], Mapping[str, Any], list[str], Evidence | None]] = []
    for path in paths:
        evidence = read_evidence(path) if intervals or is_file(path) else None
        if is_file(path) and evidence is not None:
            parts.append((path, [*evidence.cells.values()], _as_run(evidence), [], evidence))
        else:
            folder = RunFolder(path)
            cells, notes = read_scores(folder)
            parts.append((path, cells, folder.read_run(), notes, evidence))
    names = [str(run["checkpoint"]["name"]) for _, _, run, _, _ in parts]
    for other in ([path.name for path in paths], [str(path) for path in paths]):
        names = names if len(set(names)) == len(names) else other
    return [
        Shown(name, cells, run, notes, _intervals(evidence) if intervals and evidence else {})
        for name, (_, cells, run, notes, evidence) in zip(names, parts, strict=True)
    ]


def _intervals(evidence: Evidence) -> dict[tuple[str, int], Sure]:
    found = {}
    for key, cell in evidence.cells.items():
        sure = evidence.uncertainty(cell)
        trials = tuple(evidence.trial_interval((*key, trial.seed)) for trial in cell.trials)
        found[key] = Sure(sure.low, sure.high, sure.queries, sure.demonstrations, trials)
    return found


def _as_run(evidence: Evidence) -> dict[str, Any]:
    """What a table's caption needs of ``run.json``, from a baseline file."""
    pool = evidence.about["identity"].get("query_set_size")
    settings = {"benchmarks": {name: {"pool": pool} for name in evidence.about["identity"]["benchmarks"]}}
    return {**{key: evidence.about.get(key) for key in ("demo", "identity", "checkpoint")}, "settings": settings}
