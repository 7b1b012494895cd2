"""What the page gets: plain records that become JSON. ``page/*.js`` reads these names."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from flamingo_eval.core.prompting import OpenAIMessage


class Columns(msgspec.Struct, frozen=True):
    """Some answers, a list per column.

    Attributes:
        version: the version of the run that they belong to.
        trial: number of the trial in ``RunPayload.trials``.
        position: place of the query in its trial.
        id: the query's id, as text.
        occurrence: how often the trial has asked the same id before.
        text: what the example's fields say: a question, a text on a meme.
        answer: after post-processing; for a ranking, the most likely name.
        score: in the metric's unit; None where a single query has none, or the trial is not scored yet.
        failed: why there is no answer; None if there is one.
        kind: what sort of query it is: answer type, or the right class name.
        group: what sort of question it is.
    """

    version: int
    trial: list[int]
    position: list[int]
    id: list[str]
    occurrence: list[int]
    text: list[str]
    answer: list[str]
    score: list[float | None]
    failed: list[str | None]
    kind: list[str]
    group: list[str]


class TrialPayload(msgspec.Struct, frozen=True):
    """A trial: what it is, its progress, and its score."""

    benchmark: str
    shots: int
    seed: int
    planned: int
    answered: int
    failed: int
    value: float | None


class CellPayload(msgspec.Struct, frozen=True):
    """A cell of the table; ``text``: as tables print it; ``groups``: kind of grouping -> group -> mean over trials."""

    benchmark: str
    split: str
    shots: int
    selector: str
    protocol: str
    metric: str
    mean: float
    std: float | None
    text: str
    groups: dict[str, dict[str, float]]


class CurvePayload(msgspec.Struct, frozen=True):
    """Published numbers of one source."""

    benchmark: str
    label: str
    shots: list[int]
    means: list[float]
    deviations: list[float | None]


class SessionPayload(msgspec.Struct, frozen=True):
    """A command that added answers."""

    start: str
    device: str
    precision: str
    answered: int
    seconds: dict[str, float]


class RunPayload(msgspec.Struct, frozen=True):
    """A run, without its answers.

    Attributes:
        name: the folder's name, or its path if both runs have the same name.
        path: the folder.
        version: changes if answers or scores that were there have changed; the page then reads everything again.
        rows: how many rows of answers there are.
        chunk: rows in a file of rows, at most.
        group: answers in a file of details, at most.
        live: whether a process is working on the run.
        selection: which of its answers the page has; empty for all.
        checkpoint: the checkpoint's name.
        ranking: names of the benchmarks that rank class names.
        trials: the trials, in the order that ``Columns.trial`` counts.
        cells: the cells of the table.
        caption: the line under the table.
        warnings: what its numbers can't be read without.
        notes: what else is known about them.
        published: curves behind the run's own.
        provenance: ``run.json``, for people to read.
        sessions: the commands that added the answers.
    """

    name: str
    path: str
    version: int
    rows: int
    chunk: int
    group: int
    live: bool
    selection: str
    checkpoint: str
    ranking: list[str]
    trials: list[TrialPayload]
    cells: list[CellPayload]
    caption: str
    warnings: list[str]
    notes: list[str]
    published: list[CurvePayload]
    provenance: str
    sessions: list[SessionPayload]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A reader's mark on an answer; ``gone`` takes back an earlier mark with the same tag.

    ``run`` is the name that the run's folder had when the mark was made.
    """

    run: str = ""
    benchmark: str
    shots: int
    seed: int
    query_id: str
    occurrence: int = 0
    tag: str
    gone: bool = False
    when: str = ""


class State(msgspec.Struct, frozen=True):
    """What the page loads first, and then again to stay up to date.

    Attributes:
        runs: one run or two.
        marks: the marks of each run.
        kept: where the marks of each run are kept.
        problems: what is wrong with those files.
    """

    runs: list[RunPayload]
    marks: list[list[Mark]]
    kept: list[str]
    problems: list[str]


class ImagePayload(msgspec.Struct, frozen=True):
    """An image of a prompt.

    Attributes:
        path: relative to the data root.
        file: where the page has it; empty if it can't be shown.
        problem: why not.
    """

    path: str
    file: str
    problem: str = ""


class TurnPayload(msgspec.Struct, frozen=True):
    """A demonstration, or the query; ``hidden``: images of a demonstration that is shown as text alone."""

    id: str
    images: list[ImagePayload]
    hidden: list[ImagePayload]
    text: str
    answer: str | None
    same: bool


class ReferencePayload(msgspec.Struct, frozen=True):
    """A text that an answer is compared with, and how often it occurs among the references."""

    text: str
    count: int


class DetailPayload(msgspec.Struct, frozen=True):
    """One answer: what the model was shown and answered, and what that was compared with.

    Attributes:
        turns: demonstrations and query; the query alone if it is not known what was shown.
        remarks: what a reader should know about this answer: an image has changed since, another answer counts.
        fields: the query's own fields in the data.
        rendering: the rendering's name.
        prompt: the prompt as the model read it.
        orders: in how many orders of demonstrations it was asked.
        raw: the model's raw text; None for a ranking, and without an answer.
        logprobs: the likeliest names, and the right one, with their log-likelihoods.
        names: how many names were ranked.
        references: what it was compared with.
        kinds: what sort of query it is.
    """

    turns: list[TurnPayload]
    remarks: list[str]
    fields: dict[str, str]
    rendering: str
    prompt: str | list[OpenAIMessage]
    orders: int
    raw: str | None
    logprobs: list[tuple[str, float | None]]
    names: int
    references: list[ReferencePayload]
    kinds: list[str]


class ExplanationPayload(msgspec.Struct, frozen=True):
    """How a score came about.

    Attributes:
        lines: sentences.
        parts: name -> what it adds to the score.
        agreeing: the references by which the answer is right; None where one reference alone decides nothing.
        problem: why the score can't be explained.
    """

    lines: tuple[str, ...] = ()
    parts: dict[str, float] = {}
    agreeing: list[str] | None = None
    problem: str = ""


def encode(payload: msgspec.Struct | Sequence[msgspec.Struct]) -> bytes:
    """JSON in ASCII: halves of characters (lone surrogates), which models' texts can contain, are kept."""
    return json.dumps(msgspec.to_builtins(payload), separators=(",", ":"), allow_nan=False).encode("ascii")
