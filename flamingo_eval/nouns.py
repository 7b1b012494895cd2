"""The frozen records that travel from stage to stage: plan, answer, score, report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Id = int | str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        id: what the annotations call it; unique within a split.
        image: path of its picture relative to the data root, with forward slashes, not resolved.
        fields: the texts its prompt may use, such as ``caption`` or ``question``.
    """

    id: Id
    image: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is shown: text, and one picture path (relative to the data root) per ``<image>`` in it."""

    text: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """One question to the model, as the plan lists it.

    Attributes:
        benchmark: name of the benchmark.
        shots: number of demonstrations that count as shots (0 has two text-only ones).
        seed: seed of the trial.
        id: id of the queried example.
        demonstration_ids: ids of the demonstrations in prompt order, the last one next to the query.
        prompt: what the model is shown.
    """

    benchmark: str
    shots: int
    seed: int
    id: Id
    demonstration_ids: tuple[Id, ...]
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated; ``num_beams`` 1 is greedy, ``length_penalty`` as in transformers."""

    max_new_tokens: int
    num_beams: int = 3
    min_new_tokens: int = 0
    length_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model said to one query, before any post-processing.

    Attributes:
        key: digest of everything that determines the answer; how the journal finds it again.
        raw: generated text.
    """

    key: str
    raw: str


@dataclass(frozen=True, slots=True)
class Trial:
    """The score of one benchmark at one number of shots with one seed.

    Attributes:
        seed: seed of the trial.
        value: the metric, in the unit the benchmark reports (CIDEr x 100, percent).
        queries: how many answers it was computed from.
        planned: how many queries the plan holds; more than ``queries`` means the number is partial.
    """

    seed: int
    value: float
    queries: int
    planned: int


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over one trial's answers; ``per_item`` maps the item's id to its own score, where there is one."""

    value: float
    per_item: Mapping[Id, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table: a benchmark at a number of shots, over its trials."""

    benchmark: str
    split: str
    shots: int
    selector: str
    protocol: str
    metric: str
    trials: tuple[Trial, ...]

    @property
    def complete(self) -> bool:
        """Whether every planned query of every trial was answered."""
        return all(trial.queries == trial.planned for trial in self.trials)

    @property
    def mean(self) -> float:
        """Mean over trials."""
        return sum(trial.value for trial in self.trials) / len(self.trials)

    @property
    def std(self) -> float | None:
        """Population standard deviation over trials (ddof 0, as the reference reports); None for one trial."""
        n = len(self.trials)
        if n < 2:
            return None
        mean = self.mean
        return math.sqrt(sum((trial.value - mean) ** 2 for trial in self.trials) / n)
