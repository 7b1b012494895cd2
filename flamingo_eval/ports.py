"""What the engine expects of its plug-ins: loaders, selectors, models and metrics.

Each plug-in is one file with one fixed name in it (``LOADER``, ``SELECTOR``, ``MODEL``, ``METRIC``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flamingo_eval.benchmark import DataRules
from flamingo_eval.nouns import Answer, Example, Id, Prompt, Score, Task


@dataclass(frozen=True)
class DataSet:
    """The examples of one benchmark.

    Attributes:
        train: what demonstrations are drawn from, in the file's order.
        test: what can be queried, in the file's order.
        files: the annotation files that were read.
        notes: what a user should know about the choice of files.
        names: class names to rank, where the data decides them.
    """

    train: Sequence[Example]
    test: Sequence[Example]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class References:
    """What answers are compared with.

    Attributes:
        by_id: query id -> what the metric compares with (captions, an Annotation, a label), in the order of the
            evaluator's own file; empty where the split has no public answers.
        files: the files they were read from.
        notes: what a reader of the numbers should know about them.
    """

    by_id: Mapping[Id, Any]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


class Loader(Protocol):
    """Reads a data set's files; pictures stay paths."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Training and test examples. Raises DataError, naming file and record."""

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """References of the test examples. Raises DataError, naming file and record."""


@dataclass(frozen=True)
class Selection:
    """What a selector may use to pick the demonstrations of one trial.

    Attributes:
        train: all training examples.
        queries: the trial's queries in the order visited.
        count: demonstrations per query.
        pool_size: how many training examples random demonstrations are drawn from.
        pool: numbers of the pool's training examples, where they were drawn together with the queries.
        generator: NumPy generator to draw the pool from, in the state that the protocol has it in.
        seed: seed of the trial.
        ensemble: how many orders of the demonstrations each query is asked in, at most.
    """

    train: Sequence[Example]
    queries: Sequence[Example]
    count: int
    pool_size: int
    pool: Sequence[int] | None
    generator: np.random.RandomState
    seed: int
    ensemble: int = 1


class Selector(Protocol):
    """Picks the demonstrations of every query of a trial."""

    def select(self, selection: Selection) -> list[list[list[int]]]:
        """For each query, and each order it is asked in, the numbers of its demonstrations in ``train``."""


class Metric(Protocol):
    """Scores answers; never needs a model."""

    title: str
    """Name and unit, such as ``CIDEr x 100``."""

    value_key: str
    """What a predictions file calls an answer: ``caption``, ``answer`` or ``score``."""

    value_kinds: tuple[type, ...]
    """Types that such a value may have."""

    def check(self, trials: Sequence[Sequence[Any]]) -> None:
        """Called before any query is answered, with the references of each trial's queries, where they are public.

        Raises UserError when the metric can't be computed here, DataError when it is undefined for these references.
        """

    def compute(
        self, trials: Sequence[Mapping[Id, Any]], references: Mapping[Id, Any], rules: Mapping[str, Any]
    ) -> list[Score]:
        """One score per trial (query id -> answer) by the benchmark's scoring rules; shared work is done once."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself without being loaded.

    Attributes:
        name: the name people know it by.
        digest: digest of everything in it that determines its answers.
        parts: where its parts come from, for the record.
        notes: what a reader of the numbers should know.
    """

    name: str
    digest: str
    parts: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class Model(Protocol):
    """A loaded model."""

    def prepare(self, prompt: Prompt, task: Task) -> Any:
        """Reads pictures and tokens of one prompt. Raises QueryError if that can't be done."""

    def answer(self, prepared: Sequence[Any], task: Task) -> list[Answer]:
        """For each prepared prompt of a batch generated text, or log-likelihoods of class names."""


class ModelSource(Protocol):
    """A model that can be loaded."""

    def info(self) -> ModelInfo:
        """Name and digest, without importing torch. Raises CheckpointError."""

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """What ``auto`` stands for on this machine: (device, precision). Raises UserError for what it doesn't have."""

    def load(self, *, data_root: Path, device: str, precision: str) -> Model:
        """Loads the model; device and precision are resolved ones. Raises CheckpointError."""


class ModelFamily(Protocol):
    """A kind of model: knows checkpoints by name, and files that describe one."""

    def known(self) -> Mapping[str, str]:
        """Names of its known checkpoints -> one line about each."""

    def find(self, checkpoint: str) -> ModelSource | None:
        """The model a name or file stands for, or None if that is not of this family. Raises CheckpointError."""
