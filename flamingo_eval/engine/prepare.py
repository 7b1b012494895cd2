"""Prepare: reads and checks everything before the run folder is locked, and makes the plans of the run's trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo_eval.core import registry
from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.measuring import Asking
from flamingo_eval.core.paths import is_file
from flamingo_eval.core.prompting import is_chat, is_elsewhere
from flamingo_eval.core.protocols import NOTHING, Capabilities, ModelInfo, ModelSource, Nearest, Renderer
from flamingo_eval.core.records import Decoding, Example, Ranking, Task
from flamingo_eval.core.run_settings import RunSettings, RunSpec
from flamingo_eval.core.source import Source, read_source
from flamingo_eval.engine.identity import default_folder, demo_note, run_identity
from flamingo_eval.engine.plan import (
    TrialPlan,
    asked_examples,
    check_selector,
    demonstrations_needed,
    is_deterministic,
    plan_trial,
)
from flamingo_eval.engine.retrieval import Retriever, Seen, find_nearest, read_nearest, write_nearest
from flamingo_eval.storage.run_folder import RunFolder
from flamingo_eval.storage.run_records import Identity, TrialKey

RootOf = Callable[[str], Path]
"""Maps a data root, as the user names it, to its folder."""


def trial_keys_of(spec: RunSpec, sources: Mapping[str, Source]) -> list[TrialKey]:
    """(benchmark, shots, seed) of every trial to run; one trial per number of shots if seeds change nothing."""
    keys = []
    for name, source in sources.items():
        own, protocol = spec.of(name), source.benchmark.plan.seeds
        seeds = protocol[:1] if is_deterministic(source, spec) else own.seeds_by(protocol)
        keys += [(name, shots, seed) for shots in own.shots for seed in seeds]
    return keys


def plan_all(
    spec: RunSpec,
    sources: Mapping[str, Source],
    keys: Sequence[TrialKey],
    renderer: Renderer,
    nearest: Mapping[str, Nearest] | None = None,
) -> list[TrialPlan]:
    """The plans of the given trials; ``nearest`` is what :func:`rank_all` returns."""
    return [
        plan_trial(sources[name], renderer, spec, shots=shots, seed=seed, nearest=(nearest or {}).get(name))
        for name, shots, seed in keys
    ]


def rank_all(
    spec: RunSpec,
    sources: Mapping[str, Source],
    keys: Sequence[TrialKey],
    retriever: Retriever | None,
    folder: RunFolder | None = None,
) -> dict[str, Nearest]:
    """For each benchmark, the training examples nearest to its queries, once for all shots; empty without retrieval.

    Args:
        spec: the run.
        sources: its benchmarks, by name.
        keys: the trials that need a ranking.
        retriever: the retrieval rules and the encoder; None without retrieval.
        folder: the run folder that keeps the ranking. A saved ranking is used if it was made from the same images and
            is long enough, even if the images have been deleted since.

    Raises:
        UserError, DataError, CheckpointError: see :func:`flamingo_eval.engine.retrieval.find_nearest`.
    """
    nearest: dict[str, Nearest] = {}
    if retriever is None:
        return nearest
    for name, source in sources.items():
        check_selector(source, spec.select)
        asked, count = reach(spec, source, keys)
        seen = Seen.of(source, asked)
        kept = None if folder is None else folder.nearest_file(spec.select, name)
        if kept is not None and is_file(kept):
            try:
                saved, record = read_nearest(kept, source, asked, count)
            except DataError:  # too short, or damaged: made again
                record = None
            if record is not None and seen.matches(record):
                nearest[name] = saved
                continue
        nearest[name] = find_nearest(source, asked, count, retriever, spec.device)
        if kept is not None:
            write_nearest(kept, nearest[name], seen)
    return nearest


def reach(spec: RunSpec, source: Source, keys: Sequence[TrialKey]) -> tuple[list[Example], int]:
    """The examples that the trials of a benchmark query, and how many demonstrations they need at most."""
    own = [key for key in keys if key[0] == source.benchmark.name]
    seeds = sorted({seed for _, _, seed in own})
    asked = [example for seed in seeds for example in asked_examples(source, seed, spec)]
    return asked, max(demonstrations_needed(source, shots) for _, shots, _ in own)


def notices(spec: RunSpec, sources: Mapping[str, Source]) -> list[str]:
    """What the user should know before the run starts, except the note about the demo."""
    retrieves = registry.selector(spec.select).needs != NOTHING
    capped = [
        f"{source.benchmark.name}: the training set has {len(source.data.train)} examples; "
        f"all of them are the pool (--pool-size {spec.pool_size})"
        for source in sources.values()
        if spec.pool_size > len(source.data.train) and not source.benchmark.plan.one_set
    ]
    chosen = [f"{source.benchmark.name}: {note}" for source in sources.values() for note in source.data.notes]
    fixed = [
        f"{name}: {spec.select} over all queries is the same with every seed: one trial, seed "
        f"{source.benchmark.plan.seeds[0]}{_no_effect(spec.of(name))}"
        for name, source in sources.items()
        if is_deterministic(source, spec)
    ]
    unused = [f"--pool-size {spec.pool_size} has no effect: {spec.select} searches the entire training set"]
    return [*chosen, *fixed, *((unused if spec.pool_size != RunSpec.pool_size else []) if retrieves else capped)]


def _no_effect(settings: RunSettings) -> str:
    ignored = "seeds" if settings.seeds is not None else "trials" if settings.trials is not None else ""
    return f"; --{ignored} has no effect" if ignored else ""


def read_sources(spec: RunSpec, images: Images, renderer: Renderer) -> dict[str, Source]:
    """Every benchmark of a run with its data, in the form that the renderer needs; all share one ``Images`` object."""
    return {
        name: read_source(
            name,
            images,
            spec.data_overrides.get(name),
            protocol=spec.protocol,
            split=spec.split,
            chat=is_chat(renderer),
            finished=is_elsewhere(renderer),
        )
        for name in spec.benchmarks
    }


def check_model(model_source: ModelSource, spec: RunSpec, sources: Mapping[str, Source]) -> None:
    """Refuses tasks that a model can't do, before anything is planned; a server is asked. Raises UserError."""
    check_capabilities(model_source.capabilities, spec, sources)
    find_out(model_source, [source.task for source in sources.values()])


def find_out(model_source: ModelSource, tasks: Sequence[Task]) -> None:
    """Has a source that is ``Asking`` find out whether it can do these tasks. Raises UserError if it can't."""
    if isinstance(model_source, Asking):
        model_source.find_out(tasks)


def check_capabilities(capabilities: Capabilities, spec: RunSpec, sources: Mapping[str, Source]) -> None:
    """Refuses tasks that a model can't do, before anything is planned. Raises UserError, which says what to change."""
    most = max((shots for name in sources for shots in spec.of(name).shots), default=0) + 1
    if capabilities.images is not None and capabilities.images < 1:
        raise UserError(f"{spec.checkpoint} takes no images, and every query here shows one")
    if capabilities.images is not None and most > capabilities.images:
        raise UserError(
            f"{spec.checkpoint} takes at most {capabilities.images} images per prompt, and {most - 1} shots need "
            f"{most}: --shots up to {capabilities.images - 1}{_because(capabilities)}"
        )
    for name, source in sources.items():
        if isinstance(source.task, Ranking) and not capabilities.ranking:
            raise UserError(f"{name} ranks class names by their log-likelihoods, which {spec.checkpoint} does not give")
        if isinstance(source.task, Decoding) and source.task.num_beams > 1 and not capabilities.beams:
            raise UserError(
                f"{name} under protocol {spec.protocol} is answered by beam search ({source.task.num_beams} beams), "
                f"and {spec.checkpoint} generates greedily only: choose a benchmark file or protocol with num_beams = 1"
            )


def _because(capabilities: Capabilities) -> str:
    return f". {capabilities.images_reason}" if capabilities.images_reason else ""


@dataclass(frozen=True)
class PreparedRun:
    """A run before its folder is locked: everything that was read and checked.

    Attributes:
        spec: what the user asked for.
        images: the images under the data root.
        sources: the benchmarks with their data.
        model_source: the model.
        info: the model's name, digest and parts.
        retriever: retrieves the demonstrations; None without retrieval.
        device: the model's device.
        precision: the model's precision.
        identity: everything that determines answers.
        folder: the run folder.
        trial_keys: (benchmark, shots, seed) of the trials that are asked for.
    """

    spec: RunSpec
    images: Images
    sources: Mapping[str, Source]
    model_source: ModelSource
    info: ModelInfo
    retriever: Retriever | None
    device: str
    precision: str
    identity: Identity
    folder: RunFolder
    trial_keys: Sequence[TrialKey]


def prepare(
    spec: RunSpec,
    root_of: RootOf,
    out: Path | None,
    model_source: ModelSource | None = None,
    resolve: Callable[[ModelSource], tuple[str, str]] | None = None,
) -> PreparedRun:
    """Reads what a run needs, and checks that it can be carried out. Parameters and errors as :func:`execute`.

    ``resolve`` returns the model's device and precision, if the model does not run on this machine.
    """
    images = Images(root_of(spec.data_root), spec.formats)
    model_source = model_source or registry.model_source(spec.checkpoint, spec.model_options)
    sources = read_sources(spec, images, model_source.renderer)
    check_model(model_source, spec, sources)
    info, retriever = model_source.info(), Retriever.of(spec)
    device, precision = resolve(model_source) if resolve else model_source.resolve(spec.device, spec.precision)
    retrieval = None if retriever is None else retriever.identity()
    identity = run_identity(spec, sources, info.digest, precision, model_source.renderer, retrieval)
    folder = RunFolder(out or default_folder(spec, identity))
    keys = trial_keys_of(spec, sources)
    return PreparedRun(spec, images, sources, model_source, info, retriever, device, precision, identity, folder, keys)


def opening_notes(run: PreparedRun) -> Iterator[str]:
    """The notes before any query is answered. Raises DataError if answers can't be scored with the references."""
    demo = demo_note(run.spec)
    if demo:
        yield demo
    if not run.model_source.capabilities.reproducible and run.info.server is None:
        yield f"{run.info.name} is not deterministic: asked again, it may score differently"
    yield from notices(run.spec, run.sources)
    for name, source in run.sources.items():
        yield from (f"{name}: {line}" for line in _check_scorable(source, run.spec, run.trial_keys))


def _check_scorable(source: Source, spec: RunSpec, keys: Sequence[TrialKey]) -> Sequence[str]:
    """Finds malformed references, or an undefined metric, before a day of answering. Returns the metric's notes."""
    references, asked = source.references.by_id, []
    for seed in sorted({seed for name, _, seed in keys if name == source.benchmark.name}):
        ids = [example.id for example in asked_examples(source, seed, spec)]
        lacking = [id for id in ids if id not in references] if references else []
        if lacking:
            files = ", ".join(map(str, source.references.files))
            raise DataError(
                f"{source.benchmark.name}: {len(lacking)} queries have no reference in {files}, such as {lacking[0]}"
            )
        asked.append({id: references[id] for id in ids} if references else {})
    return registry.metric(source.benchmark.metric).check(asked)


def model_digest(checkpoint: str, precision: str) -> str:
    """Digest of the model and its precision, which is part of the keys of answers."""
    return digest([checkpoint, precision])
