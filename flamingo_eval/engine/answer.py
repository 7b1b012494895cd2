"""Answer: ask the model what the journal does not know yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flamingo_eval.engine.journal import Entry, Journal, Slot, slot_of
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.errors import DataError, QueryError
from flamingo_eval.files import changed_fields, digest, file_digest
from flamingo_eval.nouns import NO_PICTURE, Answer, Prediction, Query, Task
from flamingo_eval.ports import Model
from flamingo_eval.progress import progress_bar


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
            return file_digest(root / relative)
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
    batch_size: int,
    extra: Mapping[str, Any],
    title: str = "answering",
) -> list[Failure]:
    """Answers queries batch by batch; every batch is journalled before the next begins.

    Args:
        pending: what to answer.
        tasks: benchmark -> what the model is asked to do.
        extra: fields added to every journal line.
        title: what the progress bar says.

    Returns:
        The queries that can't be answered (unreadable pictures, prompts too long); all others are.
    """
    failures: list[Failure] = []
    with progress_bar(len(pending), "query", title) as bar:
        for task, batch in _batches(pending, tasks, batch_size):
            ready, prepared = [], []
            for item in batch:
                query = item.query
                if item.position in item.trial.failed:
                    failures.append(Failure(query, item.trial.failed[item.position]))
                    continue
                try:
                    orders = (query.prompt, *query.more_orders)
                    prepared.append([model.prepare(prompt, task) for prompt in orders])
                    ready.append(item)
                except QueryError as error:
                    failures.append(Failure(query, str(error)))
            if ready:
                answers = ensembled(model, prepared, task)
                entries = [
                    Entry(item.slot, Prediction(item.key, said, item.pictures))
                    for item, said in zip(ready, answers, strict=True)
                ]
                journal.append(entries, extra)
            bar.update(len(batch))
    return failures


def ensembled(model: Model, prepared: Sequence[Sequence[Any]], task: Task) -> list[Answer]:
    """One answer per query: of its only prompt, or the names' mean log-likelihoods over its prompts."""
    if all(len(prompts) == 1 for prompts in prepared):
        return model.answer([prompts[0] for prompts in prepared], task)
    means: list[Answer] = []
    for prompts in prepared:
        ranked = [said for said in model.answer(prompts, task) if not isinstance(said, str)]
        means.append({name: sum(said[name] for said in ranked) / len(ranked) for name in ranked[0]})
    return means


def _batches(pending: Sequence[Pending], tasks: Mapping[str, Task], size: int) -> Iterator[tuple[Task, list[Pending]]]:
    """Batches of at most ``size`` queries of one benchmark and one number of shots (so of like length)."""
    batch: list[Pending] = []
    for item in pending:
        if batch and (len(batch) == size or _kind(item) != _kind(batch[0])):
            yield tasks[batch[0].trial.cell[0]], batch
            batch = []
        batch.append(item)
    if batch:
        yield tasks[batch[0].trial.cell[0]], batch


def _kind(item: Pending) -> tuple[str, int]:
    return item.trial.cell[:2]


def describe_failures(failures: Sequence[Failure], at_most: int = 10) -> DataError:
    """One error for all queries that could not be answered."""
    reasons = dict.fromkeys(failure.reason for failure in failures)
    listed = "\n  ".join(list(reasons)[:at_most])
    more = f"\n  and {len(reasons) - at_most} more" if len(reasons) > at_most else ""
    return DataError(
        f"{len(failures)} queries could not be answered; everything else is answered and saved. "
        f"The reasons:\n  {listed}{more}"
    )
