"""The content of a run's files, as types: ``run.json``, ``scores.json``, ``failures.json``, a baseline, a ranking.

A file is checked against these types when it is read (``core/schema.py``), and other modules see only the types. Keys
that a later version adds are ignored, but not in the identity: everything that determines answers must be known.
Optional keys are those that the first version did not always write.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from flamingo_eval.core.run_settings import NAMED_SETTINGS, SETTINGS
from flamingo_eval.storage.journal import Slot

FORMAT = 1
"""The version of the format of all these files."""

FIRST_RENDERING = "flamingo"
"""The rendering of runs whose records name none: the first version had no other."""

Number = Annotated[int, Meta(ge=0, lt=2**32)]
Positive = Annotated[int, Meta(ge=1)]
TrialKey = tuple[str, Number, Number]
"""(benchmark, shots, seed)."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A record in a file."""


class PartRecord(Stored, frozen=True, kw_only=True):
    """A model or an encoder, described for people.

    Attributes:
        name: its name.
        parts: where its parts come from.
        notes: what a reader of the numbers should know.
    """

    name: str
    parts: dict[str, Any] | UnsetType = UNSET
    notes: list[str] | UnsetType = UNSET


class CheckpointRecord(PartRecord, frozen=True, kw_only=True):
    """The model that gave the answers.

    Attributes:
        digest: digest of everything in it that determines its answers.
        server: what its server reported about it; answers from a server can't be reproduced here.
    """

    digest: str
    server: dict[str, str] | UnsetType = UNSET


class RetrievalIdentity(Stored, frozen=True, kw_only=True):
    """What determines which demonstrations are nearest; see :class:`flamingo_eval.core.protocols.Retrieval`."""

    encoder: str
    encoder_digest: str
    unique_images: bool
    exclude_same_image: bool


class BenchmarkIdentity(Stored, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What determines answers in a benchmark: digests of its prompts and plan, of how it is read, and of the data."""

    protocol: str
    split: str
    rules: str | UnsetType = UNSET
    reading: str | UnsetType = UNSET
    data: str | UnsetType = UNSET


class Identity(Stored, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that determines a run's answers, except shots and seeds: a run can be extended by more of these.

    In a file the key of ``retrieval`` is the selector's name. The ``named`` settings are keys beside the others.

    Attributes:
        checkpoint: the model's digest.
        precision: number format of the model, such as fp32.
        selector: name of the selector.
        num_samples: queries per trial; None for all.
        query_set_size: size of the pool, in training examples; None with retrieval.
        ensemble: the most orders of demonstrations in which a ranking query is asked.
        benchmarks: benchmark -> what determines answers in it.
        rendering: name of the rendering of prompts.
        retrieval: what determines which demonstrations are nearest; None without retrieval.
        selection: the selector's settings that are not the defaults.
        named: settings of a run that are not the defaults.
    """

    checkpoint: str
    precision: str
    selector: str
    num_samples: Positive | None
    query_set_size: Positive | None
    ensemble: Positive
    benchmarks: dict[str, BenchmarkIdentity]
    rendering: str = FIRST_RENDERING
    retrieval: RetrievalIdentity | None = None
    selection: dict[str, Any] = {}
    named: dict[str, Any] = {}

    def table(self) -> dict[str, Any]:
        """The identity as a file has it, in the file's order."""
        table = msgspec.to_builtins(self)
        own = {key: table.pop(key) for key in ("rendering", "retrieval", "selection", "named", "benchmarks")}
        return {
            **table,
            "rendering": own["rendering"],
            **own["named"],
            **({self.selector: own["retrieval"]} if own["retrieval"] else {}),
            **({"selection": own["selection"]} if own["selection"] else {}),
            "benchmarks": own["benchmarks"],
        }

    def differences(self, other: Identity) -> list[str]:
        """What differs between the two, with both values. A benchmark that only one of them has is no difference."""
        defaults = {"selection": {}, **{name: SETTINGS[name].default for name in NAMED_SETTINGS}}
        ours, theirs = ({**defaults, **one.table()} for one in (self, other))
        keys = sorted(key for key in ours.keys() & theirs.keys() - {"benchmarks"} if ours[key] != theirs[key])
        found = [f"{key} is {ours[key]} here, {theirs[key]} in that run" for key in keys]
        for name in self.benchmarks.keys() & other.benchmarks.keys():
            new, old = (one["benchmarks"][name] for one in (ours, theirs))
            keys = sorted(key for key in new if new[key] != old.get(key))
            found += [f"{name} {key} is {new[key]} here, {old.get(key)} in that run" for key in keys]
        return found


class BenchmarkSettings(Stored, frozen=True, kw_only=True):
    """How one benchmark of a run was read and asked.

    Attributes:
        data_root: folder of the data, or ``demo``.
        data_overrides: ``[data]`` settings that differ from the benchmark's own.
        image_formats: formats that images may have.
        pool: number of training examples that demonstrations were drawn from.
        queries: number of queries in a trial.
        task: decoding settings, or how many names are ranked.
    """

    data_root: str
    data_overrides: dict[str, Any]
    image_formats: list[str] | UnsetType = UNSET
    pool: int
    queries: int | UnsetType = UNSET
    task: dict[str, Any] | UnsetType = UNSET


class SettingsRecord(Stored, frozen=True, kw_only=True):
    """What is needed to run it again; ``weights`` is the folder that a known checkpoint's files were taken from."""

    checkpoint: str
    weights: str | None = None
    benchmarks: dict[str, BenchmarkSettings]


class SessionRecord(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """One command that added answers: when and where, how many, and with which versions.

    Attributes:
        start: when it began, ISO 8601.
        device: where the model ran.
        precision: number format of the model.
        batch_size: queries per batch that the user asked for; None for automatic.
        rank: number of the process, from 0.
        processes: how many processes shared the run.
        seconds: where its time went, in seconds.
        batches: benchmark and shots -> queries per batch -> number of such batches.
        workers: worker of a cluster -> number of answers that it gave.
        usage: what a server's model has used: requests, retries, tokens, cost.
        host: name of the machine.
        process: process id, given by the system.
        end: when it ended, ISO 8601; None while it has not.
        answered: number of answers that it added.
        versions: package -> version.
        git_commit: commit of the checkout; None for an installed package.
    """

    start: str | None = None
    device: str | None = None
    precision: str | None = None
    batch_size: int | UnsetType | None = UNSET
    rank: int | None = None
    processes: int | None = None
    seconds: dict[str, float] | UnsetType = UNSET
    batches: dict[str, dict[str, int]] | UnsetType = UNSET
    workers: dict[str, int] | UnsetType = UNSET
    usage: dict[str, float] | UnsetType = UNSET
    host: str | UnsetType = UNSET
    process: int | UnsetType = UNSET
    end: str | UnsetType | None = UNSET
    answered: int | None = None
    versions: dict[str, str] | UnsetType = UNSET
    git_commit: str | UnsetType | None = UNSET

    def same_as(self, other: SessionRecord) -> bool:
        """Whether both records are of the same command."""
        return (self.host, self.process, self.start) == (other.host, other.process, other.start)


class RunRecord(Stored, frozen=True, kw_only=True):
    """``run.json``: what the run is, how to run it again, its trials, and where its answers came from."""

    format: int
    demo: str | None
    identity: Identity
    checkpoint: CheckpointRecord
    encoder: PartRecord | UnsetType = UNSET
    settings: SettingsRecord
    cells: Annotated[list[TrialKey], Meta(min_length=1)]
    sessions: list[SessionRecord]

    @property
    def keys(self) -> list[TrialKey]:
        """The trials that it has."""
        return [(benchmark, shots, seed) for benchmark, shots, seed in self.cells]

    @property
    def marks(self) -> dict[str, str]:
        """Fields that every line of the run's other files has too."""
        return {"demo": self.demo} if self.demo else {}

    def table(self) -> dict[str, Any]:
        """The record as the file has it."""
        cells = [[*key] for key in self.cells]
        return {**msgspec.to_builtins(self), "identity": self.identity.table(), "cells": cells}


class TrialRow(Stored, frozen=True, kw_only=True, rename={"alternatives": "also"}):
    """A trial's score; ``alternatives`` (in files ``also``): by other rules, ``groups``: by kind of query."""

    seed: Number
    value: float
    queries: int
    planned: int
    alternatives: dict[str, float] | UnsetType = UNSET
    groups: dict[str, dict[str, float]] | UnsetType = UNSET


class CellRow(Stored, frozen=True, kw_only=True):
    """A cell of a table; ``mean`` and ``std`` follow from its trials."""

    benchmark: str
    split: str
    shots: Number
    selector: str
    protocol: str
    metric: str
    mean: float | UnsetType = UNSET
    std: float | UnsetType | None = UNSET
    ddof: int = 0
    complete: bool = True
    trials: Annotated[list[TrialRow], Meta(min_length=1)]

    def table(self) -> dict[str, Any]:
        """The row as files have it."""
        table: dict[str, Any] = msgspec.to_builtins(self)
        return table


class ScoresRecord(Stored, frozen=True, kw_only=True):
    """``scores.json``: the cells, what makes them comparable, and warnings and notes for their readers."""

    format: int = FORMAT
    demo: str | UnsetType | None = UNSET
    checkpoint: CheckpointRecord
    identity: Identity
    references: dict[str, str]
    scoring: dict[str, str] = {}
    versions: dict[str, str] | None = None
    warnings: list[str] = []
    notes: list[str]
    cells: list[CellRow]

    def table(self) -> dict[str, Any]:
        """The record as the file has it."""
        return {**msgspec.to_builtins(self), "identity": self.identity.table()}


class TrialColumns(Stored, frozen=True, kw_only=True, rename={"images": "pictures"}):
    """A trial's queries in a baseline: each one's image, and its score, or value and label (for metrics that rank)."""

    benchmark: str
    shots: Number
    seed: Number
    queries: list[str]
    images: list[str]
    scores: list[float] | UnsetType = UNSET
    values: list[float] | UnsetType = UNSET
    labels: list[bool] | UnsetType = UNSET


class BaselineRecord(Stored, frozen=True, kw_only=True):
    """A baseline: a run's cells, every query's score, what makes them comparable, and where the answers came from."""

    kind: str
    format: int
    written: str | None = None
    demo: str | None = None
    checkpoint: CheckpointRecord
    identity: Identity
    references: dict[str, str]
    scoring: dict[str, str]
    versions: dict[str, str] | None = None
    sessions: list[SessionRecord] | None = None
    cells: list[CellRow]
    trials: list[TrialColumns]


class ItemRow(Stored, frozen=True, kw_only=True, rename={"image": "picture"}):
    """A line of ``scores.jsonl``: the part of an answer that was scored, and its score."""

    benchmark: str
    shots: int
    seed: int
    query_id: int | str
    answer: str
    score: float | None
    image: str | UnsetType = UNSET
    value: float | UnsetType = UNSET
    label: bool | UnsetType = UNSET


class FailureRow(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A query that has no answer.

    Attributes:
        benchmark: name of the benchmark.
        shots: number of demonstrations.
        seed: seed of the trial.
        query_id: id of the query.
        occurrence: how often the trial has queried the same id before.
        reason: why it has no answer.
        skip: whether the user goes on without it.
        answers: number of its earlier answers, none of which is valid any more.
    """

    benchmark: str
    shots: int
    seed: int
    query_id: int | str
    occurrence: int
    reason: str
    skip: bool
    answers: int = 0

    @staticmethod
    def of(slot: Slot, reason: str, *, skip: bool, answers: int) -> FailureRow:
        """The row of a slot."""
        benchmark, shots, seed, id, occurrence = slot
        return FailureRow(benchmark=benchmark, shots=shots, seed=seed, query_id=id, occurrence=occurrence,
                          reason=reason, skip=skip, answers=answers)  # fmt: skip

    @property
    def slot(self) -> Slot:
        """The slot that has no answer."""
        return (self.benchmark, self.shots, self.seed, self.query_id, self.occurrence)


class RankingRecord(Stored, frozen=True, kw_only=True, rename={"images_digest": "pictures"}):
    """The training examples nearest to a run's queries, and what this ranking was made from.

    Attributes:
        format: version of the file's format.
        images_digest: digest of all images.
        nearest: path of a query's image -> numbers of training examples, the nearest first.
        failed: path of an image that could not be read -> why.
        digests: path of an image that could be read -> digest of its content; the first version kept none.
    """

    format: int
    images_digest: str
    nearest: dict[str, list[Number]]
    failed: dict[str, str]
    digests: dict[str, str] | UnsetType = UNSET
