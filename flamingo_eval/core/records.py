"""The frozen records that travel from stage to stage: plan, answer, score, report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

Id = int | str

WITHHELD = ""
"""In place of an image's path: the image keeps its place in the prompt, but the model is shown nothing there."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        id: its id in the annotations; unique within a split.
        image: path of its image relative to the data root, with forward slashes, not resolved.
        fields: the texts its prompt may use, such as ``caption`` or ``question``.
    """

    id: Id
    image: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """A demonstration, or the query: images, then a text, then an answer.

    Attributes:
        images: paths of the images shown, relative to the data root; ``WITHHELD`` for one that is withheld.
        text: what is stated or asked about the images.
        answer: a demonstration's answer; None for the query.
        hidden: paths of a demonstration's images where it is shown as text alone.
    """

    images: tuple[str, ...]
    text: str
    answer: str | None = None
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is shown, in structured form; a model's renderer turns it into what that model reads.

    Attributes:
        demonstrations: in prompt order, the last one next to the query.
        query: what is asked.
        separator: text after each demonstration.
        rgb: convert images to RGB *before* the transform, as ImageNet's loader in the reference does; else the
            transform gets them as they are and converts after it has resized and cropped.
        zero_shot_keeps_images: see :class:`flamingo_eval.core.benchmark.PromptRules`.
    """

    demonstrations: tuple[Turn, ...]
    query: Turn
    separator: str = ""
    rgb: bool = False
    zero_shot_keeps_images: bool = False

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images shown, in order."""
        return tuple(path for turn in (*self.demonstrations, self.query) for path in turn.images)

    @property
    def length(self) -> int:
        """Number of characters in its texts."""
        return sum(len(turn.text) + len(turn.answer or "") for turn in (*self.demonstrations, self.query))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation: images first, then a text.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        text: its text.
        images: paths of its images, relative to the data root.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rendering:
    """A prompt as a model reads it.

    Attributes:
        text: the full text, with a mark where each image is; for a conversation, its messages as JSON.
        images: paths of the images, relative to the data root; the i-th mark stands for the i-th of them.
            ``WITHHELD`` for one that is withheld (a conversation has none of these).
        rgb: convert images to RGB before the transform.
        messages: the messages of a conversation; otherwise empty.
    """

    text: str
    images: tuple[str, ...]
    rgb: bool = False
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """One question to the model, as the plan lists it.

    Attributes:
        benchmark: name of the benchmark.
        shots: number of demonstrations that count as shots (at 0 there are two without images; in a conversation none).
        seed: seed of the trial.
        id: id of the queried example.
        demonstration_ids: ids of the demonstrations in prompt order, the last one next to the query.
        prompt: what the model is shown.
        occurrence: how often the same id was queried before in this trial; above 0 only where the rows of a data set
            are captions, so that an image can be queried twice.
        more_orders: the same prompt with the demonstrations in further orders; class names are ranked by their mean
            log-likelihood over all of them.
    """

    benchmark: str
    shots: int
    seed: int
    id: Id
    demonstration_ids: tuple[Id, ...]
    prompt: Prompt
    occurrence: int = 0
    more_orders: tuple[Prompt, ...] = ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompt in all its orders."""
        return (self.prompt, *self.more_orders)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated; ``num_beams`` 1 is greedy, ``length_penalty`` as in transformers."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=100_000)]
    num_beams: Annotated[int, Meta(ge=1, le=1000)] = 3
    min_new_tokens: Annotated[int, Meta(ge=0, le=100_000)] = 0
    length_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """How class names are ranked: by the mean log-likelihood of their tokens after the prompt.

    Attributes:
        names: the class names, each once.
    """

    names: tuple[str, ...]


Task = Decoding | Ranking
"""What a model is asked to do with a prompt."""

Answer = str | Mapping[str, float]
"""A model's answer: generated text, or the length-normalised log-likelihood of each class name."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """In place of an answer: why a model has none to one prompt of a batch."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server reported with an answer.

    Attributes:
        finish_reason: why generation stopped, in the server's own word; empty if it gives none.
        prompt_tokens: number of tokens of the prompt, as the server counts them; None if it does not count.
        completion_tokens: number of tokens of the answer, likewise.
        seconds: time from the first request for the answer to the last reply.
        requests: how many requests were sent for the answer.
        unlisted: class names that the server did not list among the likeliest. They get the lowest log-likelihood of
            the list.
    """

    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    requests: int = 1
    unlisted: tuple[str, ...] = ()

    def __add__(self, other: Reply) -> Reply:
        """Adds two replies, for an answer that is made of several."""
        return Reply(
            other.finish_reason or self.finish_reason,
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
            self.seconds + other.seconds,
            self.requests + other.requests,
            tuple(dict.fromkeys((*self.unlisted, *other.unlisted))),
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


@dataclass(frozen=True, slots=True)
class Replied:
    """An answer with the server's reply; a model may return one in place of an answer."""

    answer: Answer
    reply: Reply


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer to one query, before any post-processing.

    Attributes:
        key: digest of everything that determines the answer, except the images' content.
        answer: generated text, or log-likelihoods of class names.
        images_digest: digest of the images' content.
        reply: what a server reported with it; None for a model in this process.
    """

    key: str
    answer: Answer
    images_digest: str = ""
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class HumanAnswer:
    """One annotator's answer to a question.

    Attributes:
        text: the answer.
        record: everything else that the file states about it, as one string; some rules compare full records.
    """

    text: str
    record: str = ""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What annotators answered to a question, and what kind of question it is."""

    answers: tuple[HumanAnswer, ...]
    question_type: str = "other"
    answer_type: str = "other"


@dataclass(frozen=True, slots=True)
class Trial:
    """The score of one benchmark at one number of shots with one seed.

    Attributes:
        seed: seed of the trial.
        value: the metric, in the unit the benchmark reports (CIDEr x 100, percent).
        queries: how many answers it was computed from.
        planned: how many queries the plan holds; more than ``queries`` means that the value is partial.
        alternatives: protocol -> the value under its scoring rules, for other protocols that the same answers allow.
        groups: the value within groups of queries, such as ``answer_type`` -> ``yes/no``.
    """

    seed: int
    value: float
    queries: int
    planned: int
    alternatives: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over one trial's answers.

    Attributes:
        value: the score.
        per_item: query id -> its own score, where the metric has one.
        decisions: query id -> (decision value, whether it is positive), for metrics that rank.
        groups: the value within groups of queries, such as ``answer_type`` -> ``yes/no``.
    """

    value: float
    per_item: Mapping[Id, float] = field(default_factory=dict)
    decisions: Mapping[Id, tuple[float, bool]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notes:
    """What readers of a run's numbers should know.

    Attributes:
        warnings: needed to interpret the numbers: why one is missing, or could not have another value.
        others: where the data came from, and similar facts.
    """

    warnings: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        return iter((*self.warnings, *self.others))


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table: a benchmark at a number of shots, over its trials.

    Attributes:
        benchmark: name of the benchmark.
        split: the split that was queried.
        shots: number of demonstrations.
        selector: name of the selector that picked them.
        protocol: name of the protocol.
        metric: title of the metric, with its unit.
        trials: each trial's score.
        data: the data it was measured on, set by ``evaluate``: the data root, or ``demo``; otherwise empty.
    """

    benchmark: str
    split: str
    shots: int
    selector: str
    protocol: str
    metric: str
    trials: tuple[Trial, ...]
    data: str = field(default="", compare=False)

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
