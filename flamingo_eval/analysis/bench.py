"""Bench: measures a small sample of a configuration, and estimates the full run from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from flamingo_eval.core import registry
from flamingo_eval.core.errors import DataError, first_few
from flamingo_eval.core.images import Images
from flamingo_eval.core.measuring import Measurable, Work
from flamingo_eval.core.protocols import Model
from flamingo_eval.core.records import WITHHELD, Answer, Decoding
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.source import Source
from flamingo_eval.engine.answer import answer, describe_failures
from flamingo_eval.engine.identity import demo_note
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.prepare import RootOf, check_model, plan_all, rank_all, read_sources, trial_keys_of
from flamingo_eval.engine.requests import Pending
from flamingo_eval.engine.retrieval import Retriever
from flamingo_eval.engine.score import score_trials, text_of
from flamingo_eval.storage.journal import Journal


@dataclass(frozen=True)
class Measured:
    """The measurement at one number of shots.

    Attributes:
        shots: number of demonstrations.
        queries: how many were asked.
        wall: seconds they took.
        parts: section -> seconds; reading images at the same time is not included.
        batch: queries per batch.
        flops: section -> floating-point operations per query.
    """

    shots: int
    queries: int
    wall: float
    parts: Mapping[str, float]
    batch: int
    flops: Mapping[str, float]

    @property
    def language(self) -> float:
        """Seconds per query without encoding its images, which the full run does once for each image."""
        return (self.wall - self.parts.get("vision", 0.0)) / self.queries

    @property
    def idle(self) -> float:
        """Seconds in which the model computed nothing."""
        return self.wall - sum(self.parts.values())


@dataclass(frozen=True)
class Stability:
    """How much answers depend on how many queries are asked together, at one number of shots.

    In float32 they don't, except for rounding. In narrower types the shapes of matrix products decide how sums are
    rounded, and near-ties can go either way.

    Attributes:
        shots: number of demonstrations.
        queries: how many were asked each time.
        batch: queries per batch, as a run would have it.
        moved: another number of queries per batch -> how many answers (texts, or most likely names) changed.
        largest: the largest difference between log-likelihoods; None where texts are generated.
    """

    shots: int
    queries: int
    batch: int
    moved: Mapping[int, int]
    largest: float | None


@dataclass(frozen=True)
class Bench:
    """The measurements of a configuration.

    Attributes:
        rows: one for each number of shots.
        metric: seconds that scoring one of the sample's answers takes.
        image: seconds to encode one image; None if no encoded images were counted.
        read: seconds to read and transform one image, in all threads together.
        images: number of distinct images in the full run.
        all_queries: number of shots -> queries of the full run.
        work: what the last batch needs and what the machine could do; None if the model can't tell.
        device: where it ran.
        precision: number format of the model.
        stability: one for each number of shots, if it was asked for.
        demo: the note about the demo; empty if nothing of the demo is used.
        load: seconds that loading the model took.
    """

    rows: Sequence[Measured]
    metric: float
    image: float | None
    read: float
    images: int
    all_queries: Mapping[int, int]
    work: Work | None
    device: str
    precision: str
    stability: Sequence[Stability] = ()
    demo: str = ""
    load: float = 0.0

    @property
    def estimate(self) -> float:
        """Seconds of the full run, once the model is loaded."""
        return self.on(1) - self.load

    def on(self, workers: int) -> float:
        """Seconds of the full run, divided among workers that are like this machine and share their encoded images.

        All workers load the model at the same time; one process scores.
        """
        language = sum(row.language * self.all_queries[row.shots] for row in self.rows)
        scoring = self.metric * sum(self.all_queries.values())
        return self.load + (language + (self.image or 0.0) * self.images) / workers + scoring


def run_bench(spec: RunSpec, root_of: RootOf, queries: int, *, stability: bool = False) -> Bench:
    """Measures a sample; nothing is kept.

    Args:
        spec: one benchmark; all its numbers of shots are measured.
        root_of: maps a data root, as users name it, to its folder.
        queries: how many to ask at each number of shots, at most.
        stability: ask them again in batches of other sizes, and count the answers that change.

    Raises:
        UserError, DataError, CheckpointError: as a run would.
    """
    images = Images(root_of(spec.data_root), spec.formats)
    model_source = registry.model_source(spec.checkpoint, spec.model_options, {"keep": False})
    sources = read_sources(spec, images, model_source.renderer)
    check_model(model_source, spec, sources)
    keys = trial_keys_of(spec, sources)
    nearest = rank_all(spec, sources, keys, Retriever.of(spec))
    trials = plan_all(spec, sources, keys, model_source.renderer, nearest)
    source = next(iter(sources.values()))
    wanted = spec.of(source.benchmark.name).shots
    device, precision = model_source.resolve(spec.device, spec.precision)
    first = {trial.shots: trial for trial in reversed(trials)}
    rows, metric, seen, work = [], 0.0, 0.0, None
    began = time.perf_counter()
    with closing(model_source.load(device, precision)) as model:
        load = time.perf_counter() - began
        _ask(model, source, first[min(first)], 1, spec.batch_size)  # warm up
        for shots in wanted:
            row, scored, work = _measure(model, source, first[shots], queries, spec.batch_size)
            rows.append(row)
            metric, seen = metric + scored, seen + row.queries
        seconds, encoded = model.timings(), _encoded(model)
        moved = [_stability(model, source, first[row.shots], row) for row in rows] if stability else []
    shown = {image for trial in trials for query in trial for image in trial.render(query)[0].images} - {WITHHELD}
    all_queries = {shots: sum(len(trial) for trial in trials if trial.shots == shots) for shots in wanted}
    return Bench(
        rows=rows,
        metric=metric / seen,
        image=seconds.get("vision", 0.0) / encoded if encoded else None,
        read=seconds.get("images", 0.0) / max(encoded, 1),
        images=len(shown),
        all_queries=all_queries,
        work=work,
        device=device,
        precision=precision,
        stability=moved,
        demo=demo_note(spec) or "",
        load=load,
    )


def _stability(model: Model, source: Source, trial: TrialPlan, row: Measured) -> Stability:
    """Asks a sample in batches of the size that a run would have, then one by one and in batches of other sizes."""
    expected = _ask(model, source, trial, row.queries, row.batch).answers
    sizes = sorted({1, max(1, row.batch // 2), row.batch - 1} - {0, row.batch})
    moved, off = {}, []
    for size in sizes:
        found = _ask(model, source, trial, row.queries, size).answers
        moved[size] = sum(i not in found or text_of(found[i]) != text_of(expected[i]) for i in expected)
        off += [_difference(found[i], expected[i]) for i in expected if i in found]
    largest = None if isinstance(source.task, Decoding) else max(off, default=0.0)
    return Stability(row.shots, len(expected), row.batch, moved, largest)


def _difference(one: Answer, other: Answer) -> float:
    """The largest difference between log-likelihoods of the same names; 0 for texts."""
    if isinstance(one, str) or isinstance(other, str):
        return 0.0
    return max(abs(one[name] - other[name]) for name in one)


def _encoded(model: Model) -> int:
    return model.encoded if isinstance(model, Measurable) else 0


def _measure(
    model: Model, source: Source, trial: TrialPlan, queries: int, batch_size: int | None
) -> tuple[Measured, float, Work | None]:
    """Asks a sample of a trial; also returns the seconds that scoring it took, and what one batch needs."""
    before, start = dict(model.timings()), time.perf_counter()
    found = _ask(model, source, trial, queries, batch_size)
    answered, asked = [*found.answers], len(found.answers)
    wall = time.perf_counter() - start - found.scoring
    after = model.timings()
    parts = {key: after[key] - before.get(key, 0.0) for key in ("vision", "prefill", "decode") if key in after}
    size = min(asked, batch_size or model.suggested_batch(trial.query(answered[0]).prompt, source.task))
    work, flops = None, {}
    if isinstance(model, Measurable):
        prepared = [model.prepare(trial.query(i).prompt, source.task, source.images) for i in answered[:size]]
        work = model.work(prepared, source.task)
        flops = {key: value / (1 if key == "vision" else size) for key, value in work.flops.items()}
    return Measured(trial.shots, asked, wall, parts, size, flops), found.scoring, work


class _Asked(NamedTuple):
    """The answers by position in the trial, and the seconds that scoring them took."""

    answers: dict[int, Answer]
    scoring: float


def _ask(model: Model, source: Source, trial: TrialPlan, queries: int, batch_size: int | None) -> _Asked:
    """Asks the first queries of a trial. Raises DataError if none can be answered."""
    asked = [i for i in range(len(trial)) if i not in trial.failed][:queries]
    if not asked:
        raise DataError(f"none of the {len(trial)} queries can be asked:{first_few([*trial.failed.values()])}")
    pending = [Pending(trial, i, str(i), "") for i in asked]
    with TemporaryDirectory(prefix="flamingo-eval-bench-") as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        failures = answer(pending, model, journal, batch_size=batch_size, extra={}, title=f"{trial.shots} shots")
        known = ((item.position, journal.get(item.slot)) for item in pending)
        answers = {position: prediction.answer for position, prediction in known if prediction is not None}
        if not answers:
            raise describe_failures(failures)
        start = time.perf_counter()
        queries_of = tuple(trial.queries[i] for i in answers)
        part = TrialPlan(
            source,
            trial.renderer,
            trial.shots,
            trial.seed,
            queries_of,
            tuple(trial.demonstrations[i] for i in answers),
        )
        with suppress(DataError):  # a sample may lack what the metric needs: labels of both classes, say
            score_trials([part], journal)
        return _Asked(answers, time.perf_counter() - start)
