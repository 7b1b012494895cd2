"""The run folder: what is in it, which process may write to it, and which settings must agree with it.

Files of a run:

- ``run.json``: identity, settings, provenance.
- ``journal.jsonl``: raw answers; ``journal.numbers`` beside it has the log-likelihoods of many names.
- ``scores.json``: the cells. ``scores.jsonl``: a line per answer, with what was scored and its score.
- ``failures.json``: queries without an answer, and why.
- ``controls/``: the journals of a run's controls.
- ``<selector>-<benchmark>.json``, with retrieval: for the image of each query, the training rows nearest to it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

import msgspec

from flamingo_eval.core.errors import StorageError, UserError
from flamingo_eval.core.paths import exists, is_file, open_regular
from flamingo_eval.core.reading import read_json
from flamingo_eval.core.run_settings import Process
from flamingo_eval.core.schema import typed
from flamingo_eval.storage.files import drop_partial, json_text, open_own, storage_errors, write_atomic
from flamingo_eval.storage.identity_tables import with_identity
from flamingo_eval.storage.journal import Failure, Journal, Slot, journal_files
from flamingo_eval.storage.run_records import FORMAT, FailureRow, Identity, RunRecord, TrialKey

_LOCK = ".lock"
_OWN = ("run.json", "scores.json", "scores.jsonl", "failures.json", "*-*.json")


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """The paths of one run's files, and methods that read or write complete files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.journal_file = path / "journal.jsonl"
        self.scores_file = path / "scores.json"
        self.items_file = path / "scores.jsonl"
        self.failures_file = path / "failures.json"
        self.claims_file = path / ".claims"

    def nearest_file(self, selector: str, benchmark: str) -> Path:
        """Where the ranking that a selector uses is kept for a benchmark."""
        return self.path / f"{selector}-{benchmark}.json"

    def read_run(self) -> RunRecord:
        """The content of ``run.json``.

        Raises:
            UserError: this is not a run folder, is one of another format, or is damaged; the message says where.
        """
        if not is_file(self.run_file):
            raise UserError(f"{self.path} is not a run folder (it has no run.json)")
        table = read_json(self.run_file)
        if isinstance(table, dict) and table.get("format") != FORMAT:
            raise UserError(f"{self.run_file} is not of a format this version reads (format {FORMAT})")
        record: RunRecord = with_identity(table, RunRecord, str(self.run_file))
        for name in {*record.identity.benchmarks, *(key[0] for key in record.keys)}:
            if name not in record.identity.benchmarks or name not in record.settings.benchmarks:
                raise UserError(
                    f"{self.run_file}: identity.benchmarks and settings.benchmarks do not both have {name!r}"
                )
        return record

    def write_run(self, run: RunRecord) -> None:
        """Replaces ``run.json``."""
        write_atomic(self.run_file, json_text(run.table()))

    def forget_unanswered(self, identity: Identity) -> None:
        """Removes what a command with other settings left before it had any answer.

        Its checkpoint did not load, for example. Call it only while one process alone holds the folder.
        """
        answered = any(file.stat().st_size for file in journal_files(self.journal_file))
        if answered or exists(self.scores_file) or not exists(self.run_file):
            return
        if not identity.differences(self.read_run().identity):
            return
        with storage_errors(self.path):
            self.run_file.unlink()
            for benchmark in identity.benchmarks:
                self.nearest_file(identity.selector, benchmark).unlink(missing_ok=True)

    def check_identity(self, identity: Identity) -> None:
        """Refuses to mix answers of different runs: settings that determine answers must agree if both runs have them.

        Raises:
            UserError: settings differ; the message names them.
        """
        differences = identity.differences(self.read_run().identity) if exists(self.run_file) else []
        if differences:
            raise UserError(
                f"{self.path} holds a run with other settings: {'; '.join(differences)}. "
                "Choose another --out, or leave it out and each run gets a folder of its own"
            )

    def write_failures(
        self, failures: Collection[Failure], trials: Collection[TrialKey], journal: Journal, *, skip: bool
    ) -> None:
        """Records why queries have no answer; what is recorded of other trials is kept.

        Args:
            failures: the queries without an answer.
            trials: (benchmark, shots, seed) of the trials that were asked; their other queries are answered.
            journal: may hold earlier answers to these queries, which are no longer valid.
            skip: whether the user goes on without them.
        """
        slots = {failure.slot for failure in failures}
        rows = [row for row in self.read_failures() if row.slot[:3] not in trials and row.slot not in slots]
        for failure in failures:
            before = journal.answers_of(failure.slot)
            rows.append(FailureRow.of(failure.slot, failure.reason, skip=skip, answers=before))
        if rows or exists(self.failures_file):
            write_atomic(self.failures_file, json_text(msgspec.to_builtins(rows)))

    def read_failures(self) -> list[FailureRow]:
        """A row for each query that could not be answered when last asked, with the reason. Raises UserError."""
        if not exists(self.failures_file):
            return []
        return typed(read_json(self.failures_file), list[FailureRow], str(self.failures_file))

    def skipped(self) -> set[Slot]:
        """The queries that a run goes on without, by the user's choice (``--on-error skip``)."""
        return {row.slot for row in self.read_failures() if row.skip}

    def outdated(self, journal: Journal) -> list[Slot]:
        """The slots that have no valid answer: the answer in the journal is outdated."""
        return [row.slot for row in self.read_failures() if row.answers and journal.answers_of(row.slot) == row.answers]

    def set_aside(self) -> Path:
        """Renames the folder, and returns its new path. Call it only while the folder is held."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        names = (f"{self.path.name}.{stamp}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(2))))
        with storage_errors(self.path):
            kept = next(path for name in names if not os.path.lexists(path := self.path.with_name(name)))
            self.path.rename(kept)
        return kept

    @contextmanager
    def lock(self, process: Process = Process()) -> Iterator[None]:  # noqa: B008  # frozen
        """Holds the folder: one process alone, or the processes of a run together, each number once.

        The system releases the lock when a process ends, however it ends, so a held lock always has a living holder.

        Raises:
            UserError: another process holds it; the message names host, process and since when.
            StorageError: the folder can't be written to, or its file system has no locks.
        """
        with storage_errors(self.path / _LOCK):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise UserError(f"{self.path} is a file; a run is saved in a folder") from error
        with ExitStack() as held:
            if process.count > 1:
                held.enter_context(self._hold(f"{_LOCK}-{process.rank}", fcntl.LOCK_EX))
            held.enter_context(self._hold(_LOCK, fcntl.LOCK_EX if process.count == 1 else fcntl.LOCK_SH))
            if process.count == 1:
                drop_partial(self.path, _OWN)
            yield

    @contextmanager
    def _hold(self, name: str, kind: int) -> Iterator[None]:
        path = self.path / name
        for patience in (0.02, 0.05, 0.1, None):  # listing runs takes the lock for a moment too
            with storage_errors(path):
                handle = open_own(path, os.O_RDWR | os.O_CREAT)
            if _locked(handle, kind, path):
                break
            os.close(handle)
            if patience is None:
                raise UserError(f"{self.path} is in use by another run ({self.holder(name)})")
            time.sleep(patience)
        try:
            who = {"host": socket.gethostname(), "process": os.getpid(), "since": now()}
            with storage_errors(path):
                os.truncate(handle, 0)
                os.pwrite(handle, json.dumps(who).encode(), 0)
            yield
        finally:
            os.close(handle)

    def holder(self, name: str = "") -> str:
        """The process that holds the folder, or held it last: host, process, and since when."""
        try:
            with open_regular(self.path / (name or _LOCK)) as file:
                who = json.loads(file.read())
            age = describe_age((datetime.now(UTC) - datetime.fromisoformat(who["since"])).total_seconds())
            return f"host {who['host']}, process {who['process']}, since {who['since']}, {age} ago"
        except (OSError, ValueError, KeyError, TypeError):
            return "host and process are not known"

    def in_use(self) -> bool:
        """Whether a process holds the folder now."""
        try:
            handle = open_own(self.path / _LOCK, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)
        return False


def _locked(handle: int, kind: int, path: Path) -> bool:
    """Whether the lock was acquired, on a file that is still the one at this path.

    Raises:
        StorageError: the file system has no locks.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(handle)
        raise StorageError(
            f"{path} can't be locked ({error.strerror}): a run needs a file system with locks. "
            "Choose another --out, or have this one mounted with them (NFS 4, Lustre with -o flock)"
        ) from error
    return os.path.lexists(path) and path.lstat().st_ino == os.fstat(handle).st_ino  # --fresh may have moved the folder


def describe_age(seconds: float) -> str:
    """A span of time in its largest unit.

    >>> describe_age(7300)
    '2 h'
    """
    if not math.isfinite(seconds):
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
