"""A run's identity and its record: versions, commit, default folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from flamingo_eval.core import registry
from flamingo_eval.core.digests import changed_fields, digest
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import exists, user_path
from flamingo_eval.core.progress import warn
from flamingo_eval.core.protocols import EncoderSource, ModelInfo, Renderer
from flamingo_eval.core.records import Decoding, Task
from flamingo_eval.core.run_settings import SETTINGS, RunSpec
from flamingo_eval.core.settings import changed_settings
from flamingo_eval.core.source import Source
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import (
    FORMAT,
    BenchmarkIdentity,
    BenchmarkSettings,
    CheckpointRecord,
    Identity,
    PartRecord,
    RetrievalIdentity,
    RunRecord,
    SettingsRecord,
)
from flamingo_eval.version import __version__

RUNS = Path("results/runs")
_VERSIONS_OF = ("torch", "transformers", "open_clip_torch", "pycocoevalcap", "numpy", "pillow")
_DEMO_NOTE = {
    ("checkpoint", "data"): "demo: generated images and the tiny demo checkpoint; no real benchmark, no real model",
    ("checkpoint",): "demo checkpoint: tiny and trained on generated images only; no real model",
    ("data",): "demo data: generated images; no real benchmark",
}


def demo_note(spec: RunSpec) -> str | None:
    """The note that must appear with all numbers from the demo; None for a run without demo parts."""
    return _DEMO_NOTE.get(spec.demo_parts)


def run_identity(
    spec: RunSpec,
    sources: Mapping[str, Source],
    checkpoint: str,
    precision: str,
    renderer: Renderer,
    retrieval: RetrievalIdentity | None,
) -> Identity:
    """Everything that determines answers, except shots and seeds: a run can be extended with more of these.

    Numbers are those in effect: if ``num_samples`` is the number of all queries, it is the same as no limit.
    """
    counts = {len(source.data.test) for source in sources.values()}
    return Identity(
        checkpoint=checkpoint,
        precision=precision,
        selector=spec.select,
        num_samples=None if counts == {spec.num_samples} else spec.num_samples,
        query_set_size=None if retrieval else spec.pool_size,
        ensemble=spec.ensemble,
        rendering=renderer.name,
        retrieval=retrieval,
        selection=changed_settings(registry.selector(spec.select).settings, spec.selection),
        named=changed_settings([*SETTINGS.values()], vars(spec)),
        benchmarks={name: _benchmark_identity(source, renderer) for name, source in sources.items()},
    )


def _benchmark_identity(source: Source, renderer: Renderer) -> BenchmarkIdentity:
    benchmark = source.benchmark
    rules = [dict(renderer.describe(benchmark.prompt)), changed_fields(source.task), changed_fields(benchmark.plan)]
    options = {
        key: value
        for key, value in benchmark.data.options.items()
        if key not in ("references", "counts", "default_folders", "renamed")
    }
    return BenchmarkIdentity(
        protocol=benchmark.protocol,
        split=benchmark.split,
        rules=digest(rules),
        reading=digest([benchmark.data.loader, benchmark.data.folder, benchmark.data.train, options]),
        data=source.digest,
    )


def default_folder(spec: RunSpec, identity: Identity) -> Path:
    """``results/runs/<benchmark>-<digest>``; ``all-<digest>`` for several benchmarks."""
    name = "all" if len(spec.benchmarks) > 1 else spec.benchmarks[0]
    return RUNS / f"{name}-{digest(identity.table())[:10]}"


def new_record(
    folder: RunFolder,
    spec: RunSpec,
    trials: Sequence[TrialPlan],
    identity: Identity,
    info: ModelInfo,
    encoder: EncoderSource | None,
    sources: Mapping[str, Source],
) -> RunRecord:
    """The new content of ``run.json``: the existing record, extended by this command's trials."""
    old = folder.read_run() if exists(folder.run_file) else None
    queries = {trial.key[0]: len(trial) for trial in trials}
    own = {name: _settings(spec, source, queries[name]) for name, source in sources.items()}
    benchmarks = {**(old.identity.benchmarks if old else {}), **identity.benchmarks}
    return RunRecord(
        format=FORMAT,
        demo=demo_note(spec),
        identity=msgspec.structs.replace(identity, benchmarks=benchmarks),
        checkpoint=_checkpoint(info, None if old is None else old.checkpoint),
        encoder=UNSET if encoder is None else _encoder(encoder.info()),
        settings=SettingsRecord(
            checkpoint=info.found_as or _findable(spec.checkpoint),
            weights=None if spec.weights is None else str(user_path(spec.weights, "--weights").absolute()),
            benchmarks={**(old.settings.benchmarks if old else {}), **own},
        ),
        cells=list(dict.fromkeys([*(old.keys if old else ()), *(trial.key for trial in trials)])),
        sessions=old.sessions if old else [],
    )


def _checkpoint(info: ModelInfo, old: CheckpointRecord | None) -> CheckpointRecord:
    """The record of the model; what a server reports is merged with what earlier commands recorded."""
    record = CheckpointRecord(name=info.name, digest=info.digest, parts=dict(info.parts), notes=list(info.notes))
    if info.server is None:
        return record
    before = old.server or {} if old else {}
    notes = list(dict.fromkeys([*info.notes, *(old.notes or () if old else ())]))
    return msgspec.structs.replace(record, server={**before, **info.server}, notes=notes)


ANOTHER_MODEL = ("root", "parent", "hash", "answers as", "ranking", "asked with")
"""Keys of a server's report that identify the model; the server's version and its context length do not."""


def check_server(info: ModelInfo, old: CheckpointRecord) -> None:
    """Warns if a server's report has changed since the run began. Raises UserError if it is another model."""
    before, now = old.server or {}, info.server or {}
    changed = {key: f"{key} was {before[key]} and is {now[key]}" for key in sorted(before.keys() & now.keys())
               if before[key] != now[key]}  # fmt: skip
    other = [text for key, text in changed.items() if key in ANOTHER_MODEL]
    gone = sorted((before.keys() ^ now.keys()) & {*ANOTHER_MODEL} - {"ranking"}) if before and now else []
    if gone:
        warn(f"the server of {info.name} says otherwise of itself than when this run began: {', '.join(gone)}")
    if changed and not other:
        warn(f"the server of {info.name} has changed since this run began: {'; '.join(changed.values())}")
    if other:
        raise UserError(
            f"{info.name} is not what it was when this run began ({'; '.join(other)}): answers of two models "
            "would be mixed; name another --out, or start over with --fresh"
        )


def _encoder(info: ModelInfo) -> PartRecord:
    """The image encoder of retrieval, for readers; its digest is in the run's identity."""
    return PartRecord(name=info.name, parts=dict(info.parts), notes=list(info.notes))


def _findable(checkpoint: str) -> str:
    """A name of the checkpoint that also works from another folder."""
    file = user_path(checkpoint, "--checkpoint") if checkpoint.endswith(".toml") else Path(checkpoint)
    return str(file.absolute()) if file.suffix == ".toml" else checkpoint


def _settings(spec: RunSpec, source: Source, queries: int) -> BenchmarkSettings:
    """How one benchmark of a run was read and queried, as it is written to ``run.json``."""
    return BenchmarkSettings(
        data_root=spec.data_root if "data" in spec.demo_parts else str(source.root.absolute()),
        data_overrides=dict(spec.data_overrides.get(source.benchmark.name, {})),
        image_formats=list(spec.formats),
        pool=min(spec.pool_size, len(source.data.train)),
        queries=queries,
        task=describe_task(source.task),
    )


def describe_task(task: Task) -> dict[str, Any]:
    """Decoding settings, or how many names are ranked, as they are written to ``run.json``."""
    return asdict(task) if isinstance(task, Decoding) else {"ranked_names": len(task.names)}


def versions() -> dict[str, str]:
    """Versions of this package, Python, and the packages that answers and scores depend on."""
    found = {"flamingo-eval": __version__, "python": sys.version.split()[0]}
    for package in _VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def git_commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed package."""
    folder = Path(__file__).parent.parent.parent
    if not exists(folder / ".git"):
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # within a git hook, these variables name the hook's repository
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError:
        return None
    return result.stdout.strip() or None
