"""Runs as tables and plots show them, read from their folders or from baseline files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flamingo_eval.analysis.evidence import Evidence, read_evidence
from flamingo_eval.core.paths import is_file
from flamingo_eval.core.records import Cell, Notes
from flamingo_eval.report.shown import Interval, Shown
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import FORMAT, BenchmarkSettings, RunRecord, SettingsRecord
from flamingo_eval.storage.scores import read_scores


def shown_runs(paths: Sequence[Path], *, intervals: bool = False) -> list[Shown]:
    """Runs as tables and plots show them, named by checkpoint; if two names are equal, by folder, then by path.

    Raises:
        UserError: see :func:`read_evidence`.
    """
    parts: list[tuple[Path, list[Cell], RunRecord, Notes, Evidence | None]] = []
    for path in paths:
        evidence = read_evidence(path) if intervals or is_file(path) else None
        if is_file(path) and evidence is not None:
            parts.append((path, [*evidence.cells.values()], _as_run(evidence), Notes(), evidence))
        else:
            folder = RunFolder(path)
            cells, notes = read_scores(folder)
            parts.append((path, cells, folder.read_run(), notes, evidence))
    names = [run.checkpoint.name for _, _, run, _, _ in parts]
    for other in ([path.name for path in paths], [str(path) for path in paths]):
        names = names if len(set(names)) == len(names) else other
    return [
        Shown(name, cells, run, notes, _intervals(evidence) if intervals and evidence else {})
        for name, (_, cells, run, notes, evidence) in zip(names, parts, strict=True)
    ]


def _intervals(evidence: Evidence) -> dict[tuple[str, int], Interval]:
    found = {}
    for key, cell in evidence.cells.items():
        uncertainty = evidence.uncertainty(cell)
        trials = tuple(evidence.trial_interval(cell, trial.seed) for trial in cell.trials)
        found[key] = Interval(
            uncertainty.low, uncertainty.high, uncertainty.queries, uncertainty.demonstrations, trials, uncertainty.rare
        )
    return found


def _as_run(evidence: Evidence) -> RunRecord:
    """The parts of ``run.json`` that a table needs, from a baseline file."""
    about = evidence.about
    pool = about.identity.query_set_size or 0
    settings = {
        name: BenchmarkSettings(data_root="", data_overrides={}, pool=pool) for name in about.identity.benchmarks
    }
    return RunRecord(
        format=FORMAT,
        demo=about.demo or None,
        identity=about.identity,
        checkpoint=about.checkpoint,
        settings=SettingsRecord(checkpoint=about.checkpoint.name, benchmarks=settings),
        cells=[*evidence.trials],
        sessions=[*evidence.sessions],
    )
