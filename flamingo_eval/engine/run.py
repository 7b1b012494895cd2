"""Run: plan, answer what is missing, score, record where everything came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flamingo_eval import __version__, registry
from flamingo_eval.engine.answer import Failure, answer, describe_failures, find_pending
from flamingo_eval.engine.folder import FORMAT, RunFolder, now
from flamingo_eval.engine.journal import Journal
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
from flamingo_eval.engine.retrieval import encoder_of, find_nearest, read_nearest, write_nearest
from flamingo_eval.engine.score import CellKey, check_complete, write_scores
from flamingo_eval.errors import UserError
from flamingo_eval.files import changed_fields, digest
from flamingo_eval.nouns import Cell, Decoding, Task
from flamingo_eval.ports import ModelInfo, Nearest
from flamingo_eval.runspec import RunSpec

RUNS = Path("results/runs")
_VERSIONS_OF = ("torch", "transformers", "open_clip_torch", "pycocoevalcap", "numpy", "pillow")
_DEMO_NOTE = {
    ("checkpoint", "data"): "demo: generated pictures and the tiny demo checkpoint; no real benchmark, no real model",
    ("checkpoint",): "demo checkpoint: tiny and trained on generated pictures only; no real model",
    ("data",): "demo data: generated pictures; no real benchmark",
}


RootOf = Callable[[str], Path]
"""From a data root as users name it to the folder."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: where it is, and its cells, those asked for."""

    folder: RunFolder
    cells: list[Cell]


def demo_note(spec: RunSpec) -> str | None:
    """What has to be said wherever numbers from the demo appear; None for a run without demo parts."""
    return _DEMO_NOTE.get(spec.demo_parts)


def cells_of(spec: RunSpec, sources: Mapping[str, Source]) -> list[CellKey]:
    """(benchmark, shots, seed) of every trial that is run: one for each number of shots where seeds change nothing."""
    fixed = {
        name: is_deterministic(source, spec.selector, spec.num_samples, spec.ensemble)
        for name, source in sources.items()
    }
    return [cell for cell in spec.cells if not fixed[cell[0]] or cell[2] == spec.seeds[0]]


def plan_all(
    spec: RunSpec,
    sources: Mapping[str, Source],
    cells: Sequence[CellKey],
    nearest: Mapping[str, Nearest] | None = None,
) -> list[TrialPlan]:
    """The plans of the given cells; ``nearest`` is what :func:`rank_all` gives."""
    return [
        plan_trial(sources[name], shots=shots, seed=seed, selector=spec.selector,
                   num_samples=spec.num_samples, query_set_size=spec.query_set_size, ensemble=spec.ensemble,
                   nearest=(nearest or {}).get(name))
        for name, shots, seed in cells
    ]  # fmt: skip


def rank_all(spec: RunSpec, sources: Mapping[str, Source], cells: Sequence[CellKey]) -> dict[str, Nearest]:
    """For every benchmark what its queries are nearest to, once for all numbers of shots; empty without retrieval.

    Raises:
        UserError, DataError, CheckpointError: see :func:`flamingo_eval.engine.retrieval.find_nearest`.
    """
    if not registry.selector(spec.selector).needs_features:
        return {}
    encoder, nearest = encoder_of(spec), {}
    for name, source in sources.items():
        check_selector(source, spec.selector)
        wanted = max(demonstrations_needed(source, shots) for benchmark, shots, _ in cells if benchmark == name)
        seeds = {seed for benchmark, _, seed in cells if benchmark == name}
        asked = [example for seed in sorted(seeds) for example in asked_examples(source, seed, spec.num_samples)]
        nearest[name] = find_nearest(source, asked, wanted, encoder, spec.rices, spec.device)
    return nearest


def notices(spec: RunSpec, sources: Mapping[str, Source]) -> list[str]:
    """What the user should know before the run starts, but for the demo."""
    needs = registry.selector(spec.selector).needs_features
    capped = [
        f"{source.benchmark.name}: the training set has {len(source.data.train)} examples; "
        f"all of them are the pool (--query-set-size {spec.query_set_size})"
        for source in sources.values()
        if spec.query_set_size > len(source.data.train) and not source.benchmark.plan.one_set
    ]
    chosen = [f"{source.benchmark.name}: {note}" for source in sources.values() for note in source.data.notes]
    fixed = [
        f"{name}: RICES over all queries is the same with every seed: one trial, seed {spec.seeds[0]}"
        for name, source in sources.items()
        if len(spec.seeds) > 1 and is_deterministic(source, spec.selector, spec.num_samples, spec.ensemble)
    ]
    return [*chosen, *fixed, *([] if needs else capped)]


def read_sources(spec: RunSpec, root: Path) -> dict[str, Source]:
    """Every benchmark of a run with its data."""
    return {
        name: read_source(name, root, spec.data_overrides.get(name), protocol=spec.protocol, split=spec.split)
        for name in spec.benchmarks
    }


def run_identity(
    spec: RunSpec,
    sources: Mapping[str, Source],
    checkpoint: str,
    precision: str,
    retrieval: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that determines answers, but for shots and seeds, which extend a run.

    Numbers are those in effect: asking for all queries by their number is asking for all queries.
    """
    counts = {len(source.data.test) for source in sources.values()}
    return {
        "checkpoint": checkpoint,
        "precision": precision,
        "selector": spec.selector,
        "num_samples": None if counts == {spec.num_samples} else spec.num_samples,
        "query_set_size": None if retrieval else spec.query_set_size,
        "ensemble": spec.ensemble,
        **({"rices": dict(retrieval)} if retrieval else {}),
        "benchmarks": {name: _benchmark_identity(source) for name, source in sources.items()},
    }


def retrieval_identity(spec: RunSpec) -> dict[str, Any] | None:
    """What decides which demonstrations are nearest; None where that is not asked."""
    if not registry.selector(spec.selector).needs_features:
        return None
    info = encoder_of(spec).info()
    rules = {"unique_images": spec.rices.unique_images, "exclude_same_image": spec.rices.exclude_same_image}
    return {"encoder": info.name, "encoder_digest": info.digest, **rules}


def _benchmark_identity(source: Source) -> dict[str, Any]:
    benchmark = source.benchmark
    rules = (benchmark.prompt, source.task, benchmark.plan)
    options = {key: value for key, value in benchmark.data.options.items() if key not in ("references", "counts")}
    return {
        "protocol": benchmark.protocol,
        "split": benchmark.split,
        "rules": digest([changed_fields(part) for part in rules]),
        "reading": digest([benchmark.data.loader, benchmark.data.folder, benchmark.data.train, options]),
        "data": source.digest,
    }


def default_folder(spec: RunSpec, identity: Mapping[str, Any]) -> Path:
    """``results/runs/<benchmark>-<digest>``; ``all-<digest>`` for several benchmarks."""
    name = "all" if len(spec.benchmarks) > 1 else spec.benchmarks[0]
    return RUNS / f"{name}-{digest(identity)[:10]}"


def execute(spec: RunSpec, root_of: RootOf, out: Path | None) -> RunResult:
    """Carries out a run, or continues it; a finished one answers nothing again.

    Args:
        spec: what to run.
        root_of: from a data root as users name it to the folder.
        out: the run folder; by default one named after everything that determines answers.

    Raises:
        UserError, DataError, CheckpointError: before anything is answered, or, for queries that can't be answered,
            after all others are.
        StorageError: the run folder can't be written.
    """
    started = now()
    root = root_of(spec.data_root)
    model_source = registry.model_source(spec.checkpoint)
    sources = read_sources(spec, root)
    info = model_source.info()
    device, precision = model_source.resolve(spec.device, spec.precision)
    identity = run_identity(spec, sources, info.digest, precision, retrieval_identity(spec))
    folder = RunFolder(out or default_folder(spec, identity))
    note = demo_note(spec)
    for line in [*([note] if note else []), *notices(spec, sources)]:
        print(f"note: {line}", file=sys.stderr)
    cells_asked = cells_of(spec, sources)
    nearest = rank_all(spec, sources, [*cells_asked, *_cells_there(folder, sources)])
    trials = plan_all(spec, sources, cells_asked, nearest)
    for source in sources.values():
        _check_scorable(source, [trial for trial in trials if trial.source is source])
    with folder.lock():
        folder.check_identity(identity)
        for name, ranked in nearest.items():
            write_nearest(folder.nearest_file(name), ranked)
        journal = Journal(folder.journal_file)
        if journal.torn:
            print(f"note: {folder.journal_file} ended in the middle of a line; that answer is dropped", file=sys.stderr)
        pending = list(find_pending(trials, journal, digest([info.digest, precision])))
        record = _new_record(folder, spec, cells_asked, identity, info, root, sources)
        folder.write_run(record)
        failures: list[Failure] = []
        if pending:
            session = {"start": started, "device": device, "precision": precision, "batch_size": spec.batch_size}
            with _recorded(folder, record, session, journal):
                model = model_source.load(data_root=root, device=device, precision=precision)
                tasks = {name: source.task for name, source in sources.items()}
                extra = {"demo": record["demo"]} if record["demo"] else {}
                failures = answer(pending, tasks, model, journal, batch_size=spec.batch_size, extra=extra)
        wanted = set(cells_asked)
        cells = write_scores(folder, [*trials, *_earlier(folder, root_of, wanted)], journal, record)
        if failures:
            raise describe_failures(failures)
        check_complete(trials, journal, wanted, folder)
    return RunResult(folder, select_cells(cells, wanted))


@contextmanager
def _recorded(folder: RunFolder, record: dict[str, Any], session: dict[str, Any], journal: Journal) -> Iterator[None]:
    """Keeps ``run.json`` telling what is going on, and, however it ends, how many answers it brought."""
    entry = {**session, "end": None, "answered": 0, **_provenance()}
    record["sessions"].append(entry)
    folder.write_run(record)
    before = len(journal)
    try:
        yield
    finally:
        entry |= {"end": now(), "answered": len(journal) - before}
        folder.write_run(record)


def _earlier(folder: RunFolder, root_of: RootOf, wanted: set[CellKey]) -> list[TrialPlan]:
    """Plans of the cells that earlier commands put into the folder; without them if their data is gone."""
    if {(row[0], row[1], row[2]) for row in folder.read_run()["cells"]} == wanted:
        return []
    try:
        return [trial for trial in reopen(folder, root_of)[1] if trial.cell not in wanted]
    except UserError as error:
        print(f"note: trials of earlier commands are not scored again: {error}", file=sys.stderr)
        return []


def _cells_there(folder: RunFolder, sources: Mapping[str, Source]) -> list[CellKey]:
    """The cells of these benchmarks that earlier commands put into the folder."""
    if not folder.run_file.is_file():
        return []
    return [(row[0], row[1], row[2]) for row in folder.read_run()["cells"] if row[0] in sources]


def _check_scorable(source: Source, trials: Sequence[TrialPlan]) -> None:
    """Finds out now, not after a day of answering, that references are malformed or leave the metric undefined."""
    references = source.references.by_id
    asked = [[references[id] for id, _ in trial.slots if id in references] for trial in trials]
    registry.metric(source.benchmark.metric).check(asked)


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
    sources = {
        name: read_source(
            name,
            root_of(data_root or parts[name]["data_root"]),
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
    folder.check_identity(
        run_identity(spec, sources, identity["checkpoint"], identity["precision"], identity.get("rices"))
    )
    retrieved = sources if "rices" in identity else {}
    nearest = {name: read_nearest(folder.nearest_file(name)) for name in retrieved}
    return record, plan_all(spec, sources, [(row[0], row[1], row[2]) for row in record["cells"]], nearest)


def rescore(folder: RunFolder, root_of: RootOf, data_root: str | None = None) -> list[Cell]:
    """Scores a run again from its journal, as far as it is complete; no model, no pictures.

    Raises:
        UserError, DataError: see :func:`reopen`.
    """
    record, trials = reopen(folder, root_of, data_root)
    with folder.lock():
        return write_scores(folder, trials, Journal(folder.journal_file), record)


def _new_record(
    folder: RunFolder,
    spec: RunSpec,
    asked: Sequence[CellKey],
    identity: dict[str, Any],
    info: ModelInfo,
    root: Path,
    sources: Mapping[str, Source],
) -> dict[str, Any]:
    """``run.json`` as it will be written: what was there, extended by this command's cells."""
    old = folder.read_run() if folder.run_file.exists() else None
    cells = [*(tuple(c) for c in old["cells"])] if old else []
    cells += [cell for cell in asked if cell not in cells]
    own = {name: _settings(spec, source, root) for name, source in sources.items()}
    merged = {**identity, "benchmarks": {**(old["identity"]["benchmarks"] if old else {}), **identity["benchmarks"]}}
    return {
        "format": FORMAT,
        "demo": demo_note(spec),
        "identity": merged,
        "checkpoint": {"name": info.name, "digest": info.digest, "parts": dict(info.parts), "notes": list(info.notes)},
        "settings": {
            "checkpoint": spec.checkpoint,
            "benchmarks": {**(old["settings"]["benchmarks"] if old else {}), **own},
        },
        "cells": [list(cell) for cell in cells],
        "sessions": old["sessions"] if old else [],
    }


def _settings(spec: RunSpec, source: Source, root: Path) -> dict[str, Any]:
    """How one benchmark of a run was read and asked, as ``run.json`` has it."""
    return {
        "data_root": spec.data_root if "data" in spec.demo_parts else str(root.absolute()),
        "data_overrides": dict(spec.data_overrides.get(source.benchmark.name, {})),
        "pool": min(spec.query_set_size, len(source.data.train)),
        "task": describe_task(source.task),
    }


def describe_task(task: Task) -> dict[str, Any]:
    """Decoding settings, or how many names are ranked, as ``run.json`` has them."""
    return asdict(task) if isinstance(task, Decoding) else {"ranked_names": len(task.names)}


def _provenance() -> dict[str, Any]:
    versions = {"flamingo-eval": __version__, "python": sys.version.split()[0]}
    for package in _VERSIONS_OF:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed package."""
    folder = Path(__file__).parent.parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
