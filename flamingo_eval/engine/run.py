"""Run: plan, answer what is missing, score, record where everything came from."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_eval import registry
from flamingo_eval.engine.answer import Answering, Pending, check_asked, describe_failures, find_pending
from flamingo_eval.engine.folder import FIRST_RENDERING, RunFolder, now, retrieval_part
from flamingo_eval.engine.journal import Failure, Journal
from flamingo_eval.engine.plan import (
    Source,
    TrialPlan,
    asked_examples,
    check_selector,
    demonstrations_needed,
    is_deterministic,
    plan_trial,
    read_source,
)
from flamingo_eval.engine.processes import Claims, divide
from flamingo_eval.engine.record import (
    default_folder,
    demo_note,
    new_record,
    provenance,
    run_identity,
)
from flamingo_eval.engine.retrieval import Retriever, all_pictures_digest, find_nearest, read_nearest, write_nearest
from flamingo_eval.engine.score import check_complete, write_scores
from flamingo_eval.engine.score_files import CellKey
from flamingo_eval.errors import DataError, FlamingoEvalError, StorageError, UserError
from flamingo_eval.files import digest, exists, is_file
from flamingo_eval.images import FORMATS, Images, formats_with
from flamingo_eval.nouns import Cell, Decoding, Example, Ranking
from flamingo_eval.ports import NOTHING, Capabilities, ModelSource, Nearest, Renderer
from flamingo_eval.progress import note, progress_bar
from flamingo_eval.runspec import Process, RunSpec

RootOf = Callable[[str], Path]
"""From a data root as users name it to the folder."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: where it is, and its cells, those asked for."""

    folder: RunFolder
    cells: list[Cell]


def cells_of(spec: RunSpec, sources: Mapping[str, Source]) -> list[CellKey]:
    """(benchmark, shots, seed) of every trial that is run: one for each number of shots where seeds change nothing."""
    fixed = {
        name: is_deterministic(source, spec.selector, spec.num_samples, spec.ensemble)
        for name, source in sources.items()
    }
    return list(
        dict.fromkeys((b, k, sources[b].benchmark.plan.seeds[0] if fixed[b] else seed) for b, k, seed in spec.cells)
    )


def plan_all(
    spec: RunSpec,
    sources: Mapping[str, Source],
    cells: Sequence[CellKey],
    renderer: Renderer,
    nearest: Mapping[str, Nearest] | None = None,
) -> list[TrialPlan]:
    """The plans of the given cells; ``nearest`` is what :func:`rank_all` gives."""
    return [
        plan_trial(sources[name], renderer, shots=shots, seed=seed, selector=spec.selector,
                   num_samples=spec.num_samples, query_set_size=spec.query_set_size, ensemble=spec.ensemble,
                   nearest=(nearest or {}).get(name))
        for name, shots, seed in cells
    ]  # fmt: skip


def rank_all(
    spec: RunSpec,
    sources: Mapping[str, Source],
    cells: Sequence[CellKey],
    retriever: Retriever | None,
    folder: RunFolder | None = None,
) -> dict[str, Nearest]:
    """For every benchmark what its queries are nearest to, once for all numbers of shots; empty without retrieval.

    Args:
        retriever: what the run retrieves by.
        folder: a run that keeps its ranking: one made from the same pictures that reaches far enough is used, also
            where the pictures have gone since.

    Raises:
        UserError, DataError, CheckpointError: see :func:`flamingo_eval.engine.retrieval.find_nearest`.
    """
    nearest: dict[str, Nearest] = {}
    if retriever is None:
        return nearest
    for name, source in sources.items():
        check_selector(source, spec.selector)
        asked, count = _reach(spec, source, cells)
        pictures, whole = all_pictures_digest(source, asked)
        kept = None if folder is None else folder.nearest_file(spec.selector, name)
        if kept is not None and is_file(kept):
            try:
                saved, made_from = read_nearest(kept, source, asked, count)
            except DataError:  # too short, or damaged: made anew
                made_from = None
            if made_from == pictures or (made_from is not None and not whole):
                nearest[name] = saved
                continue
        nearest[name] = find_nearest(source, asked, count, retriever, spec.device)
        if kept is not None:
            write_nearest(kept, nearest[name], pictures)
    return nearest


def _reach(spec: RunSpec, source: Source, cells: Sequence[CellKey]) -> tuple[list[Example], int]:
    """Which examples the cells of a benchmark query, and how many demonstrations they need at most."""
    own = [cell for cell in cells if cell[0] == source.benchmark.name]
    seeds = sorted({seed for _, _, seed in own})
    asked = [example for seed in seeds for example in asked_examples(source, seed, spec.num_samples)]
    return asked, max(demonstrations_needed(source, shots) for _, shots, _ in own)


def notices(spec: RunSpec, sources: Mapping[str, Source]) -> list[str]:
    """What the user should know before the run starts, but for the demo."""
    retrieves = registry.selector(spec.selector).needs != NOTHING
    capped = [
        f"{source.benchmark.name}: the training set has {len(source.data.train)} examples; "
        f"all of them are the pool (--query-set-size {spec.query_set_size})"
        for source in sources.values()
        if spec.query_set_size > len(source.data.train) and not source.benchmark.plan.one_set
    ]
    chosen = [f"{source.benchmark.name}: {note}" for source in sources.values() for note in source.data.notes]
    fixed = [
        f"{name}: {spec.selector} over all queries is the same with every seed: one trial, seed "
        f"{source.benchmark.plan.seeds[0]}"
        for name, source in sources.items()
        if len(spec.seeds) > 1 and is_deterministic(source, spec.selector, spec.num_samples, spec.ensemble)
    ]
    return [*chosen, *fixed, *([] if retrieves else capped)]


def read_sources(spec: RunSpec, images: Images) -> dict[str, Source]:
    """Every benchmark of a run with its data; they share their images."""
    return {
        name: read_source(name, images, spec.data_overrides.get(name), protocol=spec.protocol, split=spec.split)
        for name in spec.benchmarks
    }


def check_capabilities(capabilities: Capabilities, spec: RunSpec, sources: Mapping[str, Source]) -> None:
    """Refuses what a model can't do, before anything is planned. Raises UserError, which says what to change."""
    most = max(spec.shots, default=0) + 1
    if capabilities.images is not None and most > capabilities.images:
        raise UserError(
            f"{spec.checkpoint} takes at most {capabilities.images} images a prompt, and {most - 1} shots need {most}: "
            f"--shots up to {capabilities.images - 1}"
        )
    for name, source in sources.items():
        if isinstance(source.task, Ranking) and not capabilities.ranking:
            raise UserError(f"{name} ranks class names by their log-likelihoods, which {spec.checkpoint} does not give")
        if isinstance(source.task, Decoding) and source.task.num_beams > 1 and not capabilities.beams:
            raise UserError(
                f"{name} under protocol {spec.protocol} is answered by beam search ({source.task.num_beams} beams), "
                f"and {spec.checkpoint} generates greedily only: choose a benchmark file or protocol with num_beams = 1"
            )


def execute(
    spec: RunSpec, root_of: RootOf, out: Path | None, model_source: ModelSource | None = None, *, fresh: bool = False
) -> RunResult:
    """Carries out a run, or continues it; a finished one answers nothing again.

    Of several processes the first one scores; the others return when all is answered, without cells.

    Args:
        spec: what to run.
        root_of: from a data root as users name it to the folder.
        out: the run folder; by default one named after everything that determines answers.
        model_source: the model, where it is not one that ``spec.checkpoint`` names.
        fresh: start over; what there is already is kept beside it under another name.

    Raises:
        UserError, DataError, CheckpointError: before anything is answered, or, for queries that can't be answered,
            after all others are.
        StorageError: the run folder can't be written.
    """
    started = now()
    images = Images(root_of(spec.data_root), spec.image_formats)
    model_source = model_source or registry.model_source(spec.checkpoint, spec.model_options)
    sources = read_sources(spec, images)
    check_capabilities(model_source.capabilities, spec, sources)
    info, retriever = model_source.info(), Retriever.of(spec)
    device, precision = model_source.resolve(spec.device, spec.precision)
    retrieval = None if retriever is None else retriever.identity()
    identity = run_identity(spec, sources, info.digest, precision, model_source.renderer, retrieval)
    folder = RunFolder(out or default_folder(spec, identity))
    first = spec.process.rank == 0
    cells_asked = cells_of(spec, sources)
    for line in _told_beforehand(spec, sources, cells_asked):
        if first:
            note(line)
    if fresh:
        _start_over(folder, spec)
    with folder.lock(spec.process), closing(Claims(folder.claims_file)) as claims:
        if spec.process.count == 1:
            folder.forget_unanswered(identity)
        folder.check_identity(identity)
        with claims.alone("ranking"):
            nearest = rank_all(spec, sources, [*cells_asked, *_cells_there(folder, sources)], retriever, folder)
        trials = plan_all(spec, sources, cells_asked, model_source.renderer, nearest)
        journal = Journal(folder.journal_file, spec.process.rank)
        for file in journal.torn if first else []:
            note(f"{file} ended in the middle of a line; that answer is dropped")
        pending = list(find_pending(trials, journal, _model_digest(info.digest, precision)))
        if spec.process.count > 1:
            journal.begin()  # others must find it long before there is something in it
        with claims.alone("record"):
            folder.check_identity(identity)  # another process may have made the record meanwhile
            record = new_record(
                folder,
                spec,
                trials,
                identity,
                info,
                None if retriever is None else retriever.encoder,
                images.root,
                sources,
            )
            folder.write_run(record)
        failures: list[Failure] = []
        seconds: dict[str, float] = {}
        if pending:
            session: dict[str, Any] = {"start": started, "device": device, "precision": precision,
                                       "batch_size": spec.batch_size, "rank": spec.process.rank,
                                       "processes": spec.process.count}  # fmt: skip
            with _recorded(folder, claims, session, journal):
                model = model_source.load(device, precision)
                tasks = {name: source.task for name, source in sources.items()}
                extra = {"demo": record["demo"]} if record["demo"] else {}
                work = Answering(tasks, model, journal, batch_size=spec.batch_size, extra=extra)
                began = time.perf_counter()
                with closing(model):
                    _answer(pending, work, spec.process, claims)
                    failures = work.failures
                    seconds = session["seconds"] = {"answering": time.perf_counter() - began, **model.timings()}
        journal.check()
        if not first:
            return RunResult(folder, [])
        wanted = set(cells_asked)
        folder.write_failures(failures, wanted, skip=spec.on_error == "skip")
        began = time.perf_counter()
        cells = write_scores(folder, [*trials, *_earlier(folder, root_of, wanted)], journal, folder.read_run())
        if pending:
            _tell_speed({**seconds, "scoring": time.perf_counter() - began}, journal.written)
        if failures and spec.on_error != "skip":
            raise describe_failures(failures)
        check_complete(trials, journal, wanted, folder)
    return RunResult(folder, select_cells(cells, wanted))


def _told_beforehand(spec: RunSpec, sources: Mapping[str, Source], cells: Sequence[CellKey]) -> Iterator[str]:
    """What is said before anything is answered. Raises DataError where the references could not be scored with."""
    demo = demo_note(spec)
    if demo:
        yield demo
    yield from notices(spec, sources)
    for name, source in sources.items():
        yield from (f"{name}: {line}" for line in _check_scorable(source, spec, cells))


def _answer(pending: Sequence[Pending], work: Answering, process: Process, claims: Claims) -> None:
    """Answers what is pending, alone or together with other processes; the first one's bar shows what all have done."""
    with progress_bar(len(pending), "query", "answering", shown=process.rank == 0) as bar:
        parts = divide(pending, process, claims, work, work.batch_size, bar.update) if process.count > 1 else [pending]
        for part in parts:
            for count in work.answer(part):
                bar.update(count)


def _start_over(folder: RunFolder, spec: RunSpec) -> None:
    """Moves a run out of the way. Raises UserError where several processes would do so."""
    if spec.process.count > 1:
        raise UserError(f"--fresh is for one process; for several move {folder.path} away, or name another --out")
    if exists(folder.run_file):
        with folder.lock():
            kept = folder.set_aside()
        note(f"starting over; what was there is kept in {kept}")


def _tell_speed(seconds: Mapping[str, float], queries: int) -> None:
    """Queries a second, and shares of the time."""
    whole = seconds["answering"] + seconds["scoring"]
    parts = {name: seconds[name] for name in ("vision", "prefill", "decode") if name in seconds}
    if parts:
        parts["idle"] = seconds["answering"] - sum(parts.values())
    parts["scoring"] = seconds["scoring"]
    told = ", ".join(f"{name} {100 * value / whole:.0f}%" for name, value in parts.items())
    note(f"{queries / seconds['answering']:.2f} queries/s; {told}")


@contextmanager
def _recorded(folder: RunFolder, claims: Claims, session: dict[str, Any], journal: Journal) -> Iterator[None]:
    """Keeps ``run.json`` telling what is going on, and, however it ends, how many answers it brought."""
    who = {"host": socket.gethostname(), "process": os.getpid(), "start": session["start"]}
    about = provenance()

    def write(end: str | None) -> None:
        with claims.alone("record"):
            if not exists(folder.run_file):
                raise StorageError(
                    f"{folder.path} has been moved or deleted while this run was answering; where it is now, the same "
                    "command continues it"
                )
            record = folder.read_run()
            others = [entry for entry in record["sessions"] if {key: entry.get(key) for key in who} != who]
            entry = {**session, **who, "end": end, "answered": journal.written, **about}
            folder.write_run({**record, "sessions": [*others, entry]})

    write(None)
    try:
        yield
    except BaseException:
        with suppress(FlamingoEvalError):  # what has gone wrong already says more
            write(now())
        raise
    write(now())


def _earlier(folder: RunFolder, root_of: RootOf, wanted: set[CellKey]) -> list[TrialPlan]:
    """Plans of the cells that earlier commands put into the folder; without them if their data is gone."""
    if {(row[0], row[1], row[2]) for row in folder.read_run()["cells"]} == wanted:
        return []
    try:
        return [trial for trial in reopen(folder, root_of)[1] if trial.cell not in wanted]
    except UserError as error:
        note(f"trials of earlier commands are not scored again: {error}")
        return []


def _cells_there(folder: RunFolder, sources: Mapping[str, Source]) -> list[CellKey]:
    """The cells of these benchmarks that earlier commands put into the folder."""
    if not is_file(folder.run_file):
        return []
    return [(row[0], row[1], row[2]) for row in folder.read_run()["cells"] if row[0] in sources]


def _check_scorable(source: Source, spec: RunSpec, cells: Sequence[CellKey]) -> Sequence[str]:
    """Finds out now, not after a day of answering, that references are malformed or leave the metric undefined."""
    references, asked = source.references.by_id, []
    for seed in sorted({seed for name, _, seed in cells if name == source.benchmark.name}):
        ids = [example.id for example in asked_examples(source, seed, spec.num_samples, spec.query_set_size)]
        lacking = [id for id in ids if id not in references] if references else []
        if lacking:
            files = ", ".join(map(str, source.references.files))
            raise DataError(
                f"{source.benchmark.name}: {len(lacking)} queries have no reference in {files}, such as {lacking[0]}"
            )
        asked.append({id: references[id] for id in ids} if references else {})
    return registry.metric(source.benchmark.metric).check(asked)


def select_cells(cells: Sequence[Cell], wanted: set[CellKey]) -> list[Cell]:
    """The cells asked for, with the trials asked for."""
    picked = []
    for cell in cells:
        trials = tuple(t for t in cell.trials if (cell.benchmark, cell.shots, t.seed) in wanted)
        if trials:
            picked.append(
                Cell(cell.benchmark, cell.split, cell.shots, cell.selector, cell.protocol, cell.metric, trials)
            )
    return picked


def reopen(folder: RunFolder, root_of: RootOf, data_root: str | None = None) -> tuple[dict[str, Any], list[TrialPlan]]:
    """The record of a run and the plans of all its cells, made again from the data.

    Args:
        folder: the run.
        root_of: from a data root as users name it to the folder.
        data_root: where the data is now, if it has moved.

    Raises:
        UserError: no run folder, data missing, or the data is not what the run was made from.
    """
    record = folder.read_run()
    identity, parts = record["identity"], record["settings"]["benchmarks"]
    shared: dict[tuple[Path, tuple[str, ...]], Images] = {}

    def images_of(name: str) -> Images:
        """Where a benchmark's images are; benchmarks that share them share what is known of their content too."""
        root, formats = root_of(data_root or parts[name]["data_root"]), parts[name].get("image_formats", FORMATS)
        known = formats_with(name for name in formats if name not in FORMATS)
        return shared.setdefault((root, known), Images(root, known))

    sources = {
        name: read_source(
            name,
            images_of(name),
            parts[name]["data_overrides"],
            protocol=part["protocol"],
            split=part["split"],
        )
        for name, part in identity["benchmarks"].items()
    }
    spec = RunSpec(
        benchmarks=tuple(sources),
        shots=(),
        seeds=(),
        checkpoint=record["settings"]["checkpoint"],
        selector=identity["selector"],
        num_samples=identity["num_samples"],
        query_set_size=identity["query_set_size"] or RunSpec.query_set_size,
        ensemble=identity["ensemble"],
    )
    renderer = registry.renderer(identity.get("rendering", FIRST_RENDERING))
    folder.check_identity(
        run_identity(spec, sources, identity["checkpoint"], identity["precision"], renderer, retrieval_part(identity))
    )
    retrieved = sources if retrieval_part(identity) else {}
    cells = [(row[0], row[1], row[2]) for row in record["cells"]]
    nearest = {
        name: read_nearest(folder.nearest_file(spec.selector, name), source, *_reach(spec, source, cells))[0]
        for name, source in retrieved.items()
    }
    return record, plan_all(spec, sources, cells, renderer, nearest)


def reopen_answered(
    folder: RunFolder, root_of: RootOf, data_root: str | None = None
) -> tuple[dict[str, Any], list[TrialPlan], Journal]:
    """The same with the journal, whose answers are those to the plans' queries.

    Raises:
        UserError, DataError: see :func:`reopen` and :func:`flamingo_eval.engine.answer.check_asked`.
    """
    record, trials = reopen(folder, root_of, data_root)
    journal = Journal(folder.journal_file)
    check_asked(trials, journal, _model_digest(record["identity"]["checkpoint"], record["identity"]["precision"]))
    return record, trials, journal


def _model_digest(checkpoint: str, precision: str) -> str:
    """What answers' keys call the model."""
    return digest([checkpoint, precision])


def rescore(folder: RunFolder, root_of: RootOf, data_root: str | None = None) -> list[Cell]:
    """Scores a run again from its journal, as far as it is complete; no model, no pictures.

    Raises:
        UserError, DataError: see :func:`reopen`.
    """
    folder.read_run()  # before the lock would make a folder
    with folder.lock():
        record, trials, journal = reopen_answered(folder, root_of, data_root)
        return write_scores(folder, trials, journal, record)
