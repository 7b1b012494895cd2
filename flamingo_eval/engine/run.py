"""Run: plan, answer what is missing, score, record where everything came from."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET
from msgspec.structs import replace

from flamingo_eval.core.cluster_settings import CLUSTER_SETTINGS
from flamingo_eval.core.errors import FlamingoEvalError, StorageError, UserError
from flamingo_eval.core.paths import exists, is_file
from flamingo_eval.core.progress import note, warn
from flamingo_eval.core.protocols import ModelSource
from flamingo_eval.core.records import Cell, Ranking
from flamingo_eval.core.run_settings import SETTINGS, RunSpec
from flamingo_eval.core.source import Source
from flamingo_eval.engine.answer import describe_failures, note_usage
from flamingo_eval.engine.executor import Alone, Distributed, Executor, Outcome, Terms, checked, make_executor
from flamingo_eval.engine.identity import check_server, git_commit, new_record, versions
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.prepare import PreparedRun, RootOf, model_digest, opening_notes, plan_all, prepare, rank_all
from flamingo_eval.engine.reopen import reopen
from flamingo_eval.engine.requests import Pending, find_pending
from flamingo_eval.engine.score import check_complete, write_scores
from flamingo_eval.storage.journal import Failure, Journal
from flamingo_eval.storage.run_folder import RunFolder, now
from flamingo_eval.storage.run_records import RunRecord, SessionRecord, TrialKey


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, and the cells that were asked for."""

    folder: RunFolder
    cells: list[Cell]


def execute(
    spec: RunSpec,
    root_of: RootOf,
    out: Path | None,
    model_source: ModelSource | None = None,
    *,
    fresh: bool = False,
    executor: Executor | None = None,
) -> RunResult:
    """Carries out a run, or continues it; in a finished run, no query is answered again.

    With several processes, the first one scores; the others return without cells when all queries are answered.

    Args:
        spec: what to run.
        root_of: maps a data root, as the user names it, to its folder.
        out: the run folder; by default one named after everything that determines answers.
        model_source: the model, if ``spec.checkpoint`` does not name it.
        fresh: start over; an existing run folder is kept beside the new one under another name.
        executor: the executor, if ``spec.executor`` does not name it.

    Raises:
        UserError, DataError, CheckpointError: before any query is answered; or, if some queries can't be answered,
            after all others are.
        StorageError: the run folder can't be written.
    """
    executor = executor or make_executor(spec.executor, spec.worker)
    if not isinstance(executor, Distributed):
        _check_no_cluster(spec)
        return _execute(prepare(spec, root_of, out, model_source), root_of, executor, fresh=fresh)
    with closing(executor):
        executor.connect(spec)
        run = prepare(spec, root_of, out, model_source, executor.resolve)
        if run.retriever is not None:
            # the ranking is computed on this machine, which may not have the workers' device
            here = dataclasses.replace(run.spec, device="auto")
            run = dataclasses.replace(run, spec=here, retriever=executor.retriever(run.retriever, run.images))
        return _execute(run, root_of, executor, fresh=fresh)


def _check_no_cluster(spec: RunSpec) -> None:
    """Raises UserError for settings of a cluster if the executor uses none."""
    given = [name for name in CLUSTER_SETTINGS if getattr(spec, name) != SETTINGS[name].default]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} goes with --executor ray")


def _execute(run: PreparedRun, root_of: RootOf, executor: Executor, *, fresh: bool) -> RunResult:
    """Carries out a prepared run."""
    for line in opening_notes(run):
        if executor.leads:
            warn(line)
    if fresh:
        _start_over(run.folder, executor)
    with executor.hold(run.folder) as held:
        planned = _plan(run, executor, held)
        outcome = _answer(run, planned, executor, held)
        planned.journal.check()
        if not executor.leads:
            return RunResult(run.folder, [])
        return _finish(run, planned, outcome, root_of)


@dataclass(frozen=True)
class PlannedRun:
    """A run with its plans.

    Attributes:
        trials: the plans, one per trial.
        journal: the run's answers.
        pending: the queries that have no answer yet.
        record: ``run.json``.
        started: when the command began.
    """

    trials: Sequence[TrialPlan]
    journal: Journal
    pending: Sequence[Pending]
    record: RunRecord
    started: str


def _plan(run: PreparedRun, executor: Executor, held: Alone) -> PlannedRun:
    """Plans the run's trials, and writes ``run.json``."""
    started, spec, folder = now(), run.spec, run.folder
    if executor.sole:
        folder.forget_unanswered(run.identity)
    folder.check_identity(run.identity)
    if exists(folder.run_file):
        check_server(run.info, folder.read_run().checkpoint)
    with held.alone("ranking"):
        reached = [*run.trial_keys, *_trials_there(folder, run.sources)]
        nearest = rank_all(spec, run.sources, reached, run.retriever, folder)
    trials = plan_all(spec, run.sources, run.trial_keys, run.model_source.renderer, nearest)
    journal = executor.journal(folder)
    for file in journal.torn if executor.leads else []:
        warn(f"{file} ended in the middle of a line; that answer is dropped")
    for source in run.sources.values():
        journal.keep_names(source.task.names if isinstance(source.task, Ranking) else ())
    model = model_digest(run.info.digest, run.precision)
    pending = list(find_pending(trials, journal, model))
    with held.alone("record"):
        folder.check_identity(run.identity)  # another process may have written the record meanwhile
        encoder = None if run.retriever is None else run.retriever.encoder
        record = new_record(folder, spec, trials, run.identity, run.info, encoder, run.sources)
        folder.write_run(record)
        outdated = _withdrawn(pending, journal)
        if outdated and executor.leads:  # so that readers of the run see them even if this command does not finish
            folder.write_failures(outdated, (), journal, skip=False)
    return PlannedRun(trials, journal, pending, record, started)


def _withdrawn(pending: Iterable[Pending], journal: Journal) -> list[Failure]:
    """Withdraws the outdated answers of pending queries, and returns these queries as failures."""
    asked = [item for item in pending if journal.answers_of(item.slot)]
    journal.withdraw(item.slot for item in asked)
    return [
        Failure(
            item.slot,
            f"query {item.slot[3]}: its image or its demonstrations have changed since it was answered, and it has not "
            "been asked again",
        )
        for item in asked
    ]


def _answer(run: PreparedRun, planned: PlannedRun, executor: Executor, held: Alone) -> Outcome:
    """Has the executor answer the pending queries."""
    if not planned.pending:
        return Outcome([], {})
    usage: dict[str, float] = {}
    terms = Terms(run.device, run.precision, run.spec.batch_size, planned.record.marks, usage.update)
    session = SessionRecord(
        start=planned.started,
        device=run.device,
        precision=run.precision,
        batch_size=run.spec.batch_size,
        rank=executor.process.rank,
        processes=executor.process.count,
        host=socket.gethostname(),
        process=os.getpid(),
        versions=versions(),
        git_commit=git_commit(),
    )
    with _recorded(run.folder, held, session, planned.journal, usage) as brought:
        planned.journal.expect({item.slot: item.key for item in planned.pending})
        outcome = executor.run(planned.pending, run.model_source, planned.journal, terms)
        outcome = checked(outcome, planned.pending, planned.journal, executor)
        brought.append(outcome)
    return outcome


def _finish(run: PreparedRun, planned: PlannedRun, outcome: Outcome, root_of: RootOf) -> RunResult:
    """Scores the answers. Raises DataError for queries without an answer, unless the user skips them."""
    folder, journal, wanted, skip = run.folder, planned.journal, set(run.trial_keys), run.spec.on_error == "skip"
    folder.write_failures(outcome.failures, wanted, journal, skip=skip)
    journal.withdraw(folder.outdated(journal))
    began = time.perf_counter()
    earlier = _earlier(folder, root_of, wanted)
    # their images, or the training examples nearest to their queries, may have changed since
    changed = _withdrawn(find_pending(earlier, journal, model_digest(run.info.digest, run.precision)), journal)
    folder.write_failures(changed, (), journal, skip=False)
    if changed:
        warn(f"{len(changed)} answers of earlier commands do not hold any more; those commands ask again")
    cells = write_scores(folder, [*planned.trials, *earlier], journal, folder.read_run())
    if planned.pending:
        _note_speed({**outcome.seconds, "scoring": time.perf_counter() - began}, journal.written)
    if outcome.failures and not skip:
        raise describe_failures(outcome.failures)
    check_complete(planned.trials, journal, wanted, folder)
    return RunResult(folder, select_cells(cells, wanted))


def _start_over(folder: RunFolder, executor: Executor) -> None:
    """Moves an existing run out of the way. Raises UserError if the run has several processes."""
    if not executor.sole:
        raise UserError(f"--fresh is for one process; for several move {folder.path} away, or name another --out")
    if exists(folder.run_file):
        with folder.lock():
            kept = folder.set_aside()
        warn(f"starting over; what was there is kept in {kept}")


def _note_speed(seconds: Mapping[str, float], queries: int) -> None:
    """Shows queries per second, and how the time was shared, if the executor has measured it."""
    if not seconds.get("answering") or not queries:
        return
    total = seconds["answering"] + seconds["scoring"]
    parts = {name: seconds[name] for name in ("vision", "prefill", "decode") if name in seconds}
    if parts:
        parts["idle"] = seconds["answering"] - sum(parts.values())
    parts["scoring"] = seconds["scoring"]
    message = ", ".join(f"{name} {100 * value / total:.0f}%" for name, value in parts.items())
    note(f"{queries / seconds['answering']:.2f} queries/s; {message}")


@contextmanager
def _recorded(
    folder: RunFolder, held: Alone, session: SessionRecord, journal: Journal, usage: Mapping[str, float]
) -> Iterator[list[Outcome]]:
    """Writes this session to ``run.json`` at its start, and with its number of answers at its end, also after an error.

    Yields a list, to which the caller appends the outcome.
    """
    brought: list[Outcome] = []

    def write(end: str | None) -> None:
        with held.alone("record"):
            if not exists(folder.run_file):
                raise StorageError(
                    f"{folder.path} has been moved or deleted while this run was answering; where it is now, the same "
                    "command continues it"
                )
            record = folder.read_run()
            outcome = brought[0] if brought else Outcome([], {})
            seconds, batches = dict(outcome.seconds), {key: dict(sizes) for key, sizes in outcome.batches.items()}
            entry = replace(session, end=end, answered=journal.written, seconds=seconds or UNSET,
                            batches=batches or UNSET, workers=dict(outcome.workers) or UNSET,
                            usage=dict(usage) or UNSET)  # fmt: skip
            others = [one for one in record.sessions if not one.same_as(session)]
            folder.write_run(replace(record, sessions=[*others, entry]))

    write(None)
    try:
        try:
            yield brought
        finally:
            if usage:
                note_usage(usage)
    except BaseException:
        with suppress(FlamingoEvalError):  # the first error says more
            write(now())
        raise
    write(now())


def _earlier(folder: RunFolder, root_of: RootOf, wanted: set[TrialKey]) -> list[TrialPlan]:
    """Plans of the trials that earlier commands put into the folder; none if their data is missing or has changed."""
    if set(folder.read_run().keys) == wanted:
        return []
    try:
        return [trial for trial in reopen(folder, root_of)[1] if trial.key not in wanted]
    except UserError as error:
        warn(f"trials of earlier commands are not scored again: {error}")
        return []


def _trials_there(folder: RunFolder, sources: Mapping[str, Source]) -> list[TrialKey]:
    """The trials of these benchmarks that earlier commands put into the folder."""
    if not is_file(folder.run_file):
        return []
    return [key for key in folder.read_run().keys if key[0] in sources]


def select_cells(cells: Sequence[Cell], wanted: set[TrialKey]) -> list[Cell]:
    """The cells that were asked for, with the trials that were asked for."""
    picked = []
    for cell in cells:
        trials = tuple(t for t in cell.trials if (cell.benchmark, cell.shots, t.seed) in wanted)
        if trials:
            picked.append(
                Cell(cell.benchmark, cell.split, cell.shots, cell.selector, cell.protocol, cell.metric, trials)
            )
    return picked
