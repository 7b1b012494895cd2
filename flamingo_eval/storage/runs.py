"""Lists runs, and how far each has come."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import exists, is_folder, open_regular
from flamingo_eval.storage.journal import journal_files
from flamingo_eval.storage.run_folder import RunFolder


@dataclass(frozen=True)
class RunState:
    """A run at a glance.

    Attributes:
        path: its folder.
        state: ``running``, ``complete``, ``unfinished``, ``partial``, or what is wrong with it.
        benchmarks: names of the benchmarks.
        checkpoint: name of the checkpoint.
        shots: numbers of demonstrations.
        trials: number of trials of each benchmark and number of shots; the largest if they differ.
        answered: number of answers in the journals that are still valid.
        planned: number of queries of all trials; None if the record does not state it.
        age: seconds since anything was written.
        holder: the process that works on it, if there is one.
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
    """The runs in a folder, the most recent first. Raises UserError if there is no such folder."""
    if not is_folder(folder):
        raise UserError(f"{folder} is not a folder; runs are saved there unless --out names another one")
    return sorted((_state(path.parent) for path in _records(folder)), key=lambda run: run.age)


def _records(folder: Path) -> list[Path]:
    """Paths that may be a run's record, in the folders of a folder, including folders that can't be read."""
    try:
        folders = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from error
    return [one / "run.json" for one in folders if os.path.lexists(one / "run.json") or _closed(one)]


def _closed(path: Path) -> bool:
    return path.is_dir() and not os.access(path, os.R_OK | os.X_OK)


def _state(path: Path) -> RunState:
    """The state of one run. An error in it does not affect other runs."""
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
        trials=max(Counter((name, shots) for name, shots, _ in record.keys).values(), default=0),
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
