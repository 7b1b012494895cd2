"""Answer: ask the model what the journal does not know yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from flamingo_eval.engine.journal import Entry, Journal, Slot, slot_of
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.errors import DataError, DeviceMemoryError, QueryError, first_few
from flamingo_eval.files import changed_fields, digest, file_digest_once
from flamingo_eval.nouns import NO_PICTURE, Answer, Prediction, Prompt, Query, Task
from flamingo_eval.ports import Model
from flamingo_eval.progress import progress_bar
from flamingo_eval.workers import ahead


@dataclass(frozen=True, slots=True)
class Pending:
    """A query that has to be answered, by its place in the plan, and the digests its answer will have.

    The query itself is built when its batch comes: a sweep's prompts all at once would not fit into memory.
    """

    trial: TrialPlan
    position: int
    key: str
    pictures: str

    @property
    def query(self) -> Query:
        """The query, built anew each time."""
        return self.trial.query(self.position)

    @property
    def slot(self) -> Slot:
        """What the answer belongs to."""
        return (*self.trial.cell, *self.trial.slots[self.position])


@dataclass(frozen=True)
class Failure:
    """A query that could not be answered."""

    query: Query
    reason: str


def picture_digests(root: Path) -> Callable[[tuple[str, ...]], str | None]:
    """A function from relative paths to one digest of the pictures' contents; None if one of them can't be read."""

    @cache
    def of_one(relative: str) -> str | None:
        try:
            return file_digest_once(root / relative)
        except OSError:
            return None

    def of_all(relatives: tuple[str, ...]) -> str | None:
        digests = [of_one(relative) for relative in relatives if relative != NO_PICTURE]
        return None if None in digests else digest(digests)

    return of_all


def answer_key(query: Query, task: Task, model: str) -> str:
    """Digest of everything that determines a query's answer, but for the pictures' content.

    Args:
        model: digest of the model, its precision included.
    """
    return digest(
        {
            "query": list(slot_of(query)),
            "demonstrations": list(query.demonstration_ids),
            "prompts": [prompt.text for prompt in (query.prompt, *query.more_orders)],
            "images": [list(prompt.images) for prompt in (query.prompt, *query.more_orders)],
            "rgb": query.prompt.rgb,
            "task": changed_fields(task),
            "model": model,
        }
    )


def find_pending(trials: Iterable[TrialPlan], journal: Journal, model: str) -> Iterator[Pending]:
    """The queries whose answers the journal does not hold, in plan order.

    An answer stays valid when a picture has gone since; it is asked for again when a picture has changed.
    """
    digests: dict[Path, Callable[[tuple[str, ...]], str | None]] = {}
    for trial in trials:
        of = digests.setdefault(trial.source.root, picture_digests(trial.source.root))
        for position, query in enumerate(trial):
            key, pictures = answer_key(query, trial.source.task, model), of(query.prompt.images)
            known = journal.get(slot_of(query))
            if known is None or known.key != key or pictures not in (known.pictures, None):
                yield Pending(trial, position, key, pictures or "")


def answer(
    pending: Sequence[Pending],
    tasks: Mapping[str, Task],
    model: Model,
    journal: Journal,
    *,
    batch_size: int | None,
    extra: Mapping[str, Any],
    title: str = "answering",
) -> list[Failure]:
    """Answers queries batch by batch; every batch is journalled before the next begins.

    Args:
        pending: what to answer.
        batch_size: queries a batch; None for what the model suggests.
        tasks: benchmark -> what the model is asked to do.
        extra: fields added to every journal line.
        title: what the progress bar says.

    Returns:
        The queries that can't be answered (unreadable pictures, prompts too long); all others are.
    """
    failures: list[Failure] = []
    runner = _Runner(model, batch_size)
    with progress_bar(len(pending), "query", title) as bar:
        for task, kind in _kinds(pending, tasks):
            size = runner.size(kind[0].query.prompt, task)
            for batch, ready in ahead(partial(_prepare, model, task), _batches(kind, size)):
                failures += ready.failures
                done = 0
                for answers in runner.answer(ready.prepared, task):
                    items = ready.items[done : done + len(answers)]
                    entries = [
                        Entry(item.slot, Prediction(item.key, said, item.pictures))
                        for item, said in zip(items, answers, strict=True)
                    ]
                    journal.append(entries, extra)
                    done += len(answers)
                bar.update(len(batch))
    return failures


@dataclass(frozen=True)
class _Ready:
    """A batch whose pictures are read: what can be asked, each in all its orders, and what can't."""

    items: list[Pending]
    prepared: list[list[Any]]
    failures: list[Failure]


def _prepare(model: Model, task: Task, batch: Sequence[tuple[Pending, Query]]) -> _Ready:
    ready = _Ready([], [], [])
    model.look_at([p for item, q in batch if not item.trial.failed for p in (q.prompt, *q.more_orders)], task)
    for item, query in batch:
        if item.position in item.trial.failed:
            ready.failures.append(Failure(query, item.trial.failed[item.position]))
            continue
        try:
            prepared = [model.prepare(prompt, task) for prompt in (query.prompt, *query.more_orders)]
        except QueryError as error:
            ready.failures.append(Failure(query, str(error)))
            continue
        ready.items.append(item)
        ready.prepared.append(prepared)
    return ready


class _Runner:
    """Answers batches, in halves where the device's memory does not hold them; what did not fit is not tried again.

    Args:
        model: the model.
        batch_size: queries a batch; None for what the model suggests.
    """

    def __init__(self, model: Model, batch_size: int | None) -> None:
        self._model, self._wanted = model, batch_size
        self._fits: dict[Task, int] = {}

    def size(self, prompt: Prompt, task: Task) -> int:
        """Queries a batch, whose prompts are like this one."""
        return self._wanted or self._model.suggested_batch(prompt, task)

    def answer(self, prepared: Sequence[Sequence[Any]], task: Task) -> Iterator[list[Answer]]:
        """One answer per query, in parts as they fit. Raises DeviceMemoryError if not even one query does."""
        size, done = min(len(prepared), self._fits.get(task, len(prepared))), 0
        while done < len(prepared):
            part = prepared[done : done + size]
            try:
                answers = ensembled(self._model, part, task)
            except DeviceMemoryError:
                if len(part) == 1:
                    raise
                size = self._fits[task] = max(1, len(part) // 2)
                print(f"note: {len(part)} queries at once do not fit into memory; on with {size}", file=sys.stderr)
                continue
            done += len(part)
            yield answers


def ensembled(model: Model, prepared: Sequence[Sequence[Any]], task: Task) -> list[Answer]:
    """One answer per query: of its only prompt, or the names' mean log-likelihoods over its prompts."""
    if all(len(prompts) == 1 for prompts in prepared):
        return model.answer([prompts[0] for prompts in prepared], task)
    means: list[Answer] = []
    for prompts in prepared:
        ranked = [said for said in _in_halves(model, prompts, task) if not isinstance(said, str)]
        means.append({name: sum(said[name] for said in ranked) / len(ranked) for name in ranked[0]})
    return means


def _in_halves(model: Model, prompts: Sequence[Any], task: Task) -> list[Answer]:
    """A query's orders, which may not fit into memory together."""
    try:
        return model.answer(prompts, task)
    except DeviceMemoryError:
        if len(prompts) == 1:
            raise
    middle = len(prompts) // 2
    return _in_halves(model, prompts[:middle], task) + _in_halves(model, prompts[middle:], task)


def _kinds(pending: Sequence[Pending], tasks: Mapping[str, Task]) -> Iterator[tuple[Task, list[Pending]]]:
    """Runs of queries of one benchmark and one number of shots."""
    for (benchmark, _), items in groupby(pending, key=lambda item: item.trial.cell[:2]):
        yield tasks[benchmark], list(items)


WINDOW = 32
"""Batches whose queries are put in order of length, so that there is little padding."""


def _batches(pending: Sequence[Pending], size: int) -> Iterator[list[tuple[Pending, Query]]]:
    """Batches of at most ``size`` queries of like length, longest first, with their prompts."""
    for start in range(0, len(pending), WINDOW * size):
        some = [(item, item.query) for item in pending[start : start + WINDOW * size]]
        some.sort(key=lambda pair: -len(pair[1].prompt.text))
        for i in range(0, len(some), size):
            yield some[i : i + size]


def describe_failures(failures: Sequence[Failure]) -> DataError:
    """One error for all queries that could not be answered."""
    reasons = list(dict.fromkeys(failure.reason for failure in failures))
    return DataError(
        f"{len(failures)} queries could not be answered; everything else is answered and saved. "
        f"The reasons:{first_few(reasons)}"
    )
