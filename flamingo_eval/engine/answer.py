"""Answer: ask the model the queries that have no answer in the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from flamingo_eval.core.errors import DataError, DeviceMemoryError, QueryError, first_few
from flamingo_eval.core.measuring import Concurrent, Expected, SendsRequests
from flamingo_eval.core.progress import note, progress_bar
from flamingo_eval.core.protocols import Model
from flamingo_eval.core.records import NoAnswer, Prediction, Replied, Task
from flamingo_eval.core.workers import as_they_come, prefetched
from flamingo_eval.engine.asking import Answered, Runner, ensembled
from flamingo_eval.engine.batches import Length, batches_of, kinds, measure_of
from flamingo_eval.engine.requests import Pending, Request, images_digest
from flamingo_eval.storage.journal import Entry, Failure, Journal, Slot


class Answering:
    """Answers the queries of a run with one model. Each batch is in the journal before the next one is answered.

    Args:
        model: the model that is asked.
        journal: where answers go.
        batch_size: queries per batch; None for what the model suggests.
        extra: fields added to every journal line.

    Attributes:
        failures: the queries that can't be answered (unreadable images, prompts too long, numbers that overflow).
        batches: benchmark and shots -> queries of a batch -> how many such batches were answered. In low precision, the
            shape of a batch decides near-ties.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        *,
        batch_size: int | None,
        extra: Mapping[str, str],
    ) -> None:
        self._model, self._journal, self._extra = model, journal, extra
        self._runner, self._length = Runner(model, batch_size), measure_of(model)
        self._failed: set[Slot] = set()
        self.failures: list[Failure] = []
        self.batches: dict[str, dict[str, int]] = {}

    def batch_size(self, item: Pending) -> int:
        """Queries per batch for queries like this one."""
        prompt, source = item.query.prompt, item.trial.source
        return self._runner.size(prompt, self._length(prompt, source.images), source.task)

    def refresh(self) -> int:
        """Reads the answers that other processes have written; returns how many are new."""
        return self._journal.refresh()

    def done(self, item: Pending) -> bool:
        """Whether a query has an answer by now, or can't be answered."""
        slot = item.slot
        if slot in self._failed:
            return True
        return item.answered_by(self._journal.get(slot))

    def answer(self, pending: Sequence[Pending]) -> Iterator[int]:
        """Answers queries. Yields the number of queries after each batch; those that can't be answered count too."""
        for task, kind in kinds(pending):
            if isinstance(self._model, Concurrent):
                yield from self._one_by_one(task, kind, self._model.concurrency)
                continue
            batches = batches_of(kind, partial(self._runner.size, task=task), self._length)
            for batch, ready in prefetched(partial(self._prepare, task), batches):
                for failure in ready.failures:
                    self._fail(failure)
                done = 0
                for answers in self._runner.answer(ready.prepared, ready.lengths, task):
                    self._keep(ready.items[done : done + len(answers)], answers)
                    done += len(answers)
                yield len(batch)

    def _one_by_one(self, task: Task, kind: Sequence[Pending], at_once: int) -> Iterator[int]:
        """Like :meth:`answer`, for a model that is asked single prompts, several at once."""
        for done in as_they_come(partial(self._ask, task), kind, at_once):
            self._keep_outcomes(done)
            yield len(done)

    def _ask(self, task: Task, item: Pending) -> Prediction | Failure:
        """Answers one query; called in a separate thread."""
        request = item.request
        prepared = _prepared(self._model, request)
        if isinstance(prepared, Failure):
            return prepared
        try:
            [result] = ensembled(self._model, [prepared], task)
        except (QueryError, DeviceMemoryError) as error:
            result = NoAnswer(str(error))
        return result_of(item, result, images_digest(request.images, request.shown) or "")

    def _keep(self, items: Sequence[tuple[Pending | Request, str]], answers: Sequence[Answered]) -> None:
        benchmark, shots, *_ = items[0][0].slot
        sizes = self.batches.setdefault(f"{benchmark} {shots}", {})
        sizes[str(len(items))] = sizes.get(str(len(items)), 0) + 1
        paired = zip(items, answers, strict=True)
        self._keep_outcomes([(item, result_of(item, result, content)) for (item, content), result in paired])

    def _keep_outcomes(self, outcomes: Sequence[tuple[Pending | Request, Prediction | Failure]]) -> None:
        """Writes the answers to the journal in one append, and records the failures."""
        entries = []
        for item, outcome in outcomes:
            if isinstance(outcome, Failure):
                self._fail(outcome)
            else:
                entries.append(Entry(item.slot, outcome))
        if entries:
            self._journal.append(entries, self._extra)

    def _fail(self, failure: Failure) -> None:
        self._failed.add(failure.slot)
        self.failures.append(failure)

    def _prepare(self, task: Task, batch: Sequence[tuple[Pending, Request]]) -> ReadBatch:
        return read_batch(self._model, task, batch, self._length)


@dataclass(frozen=True)
class ReadBatch:
    """A batch whose images have been read: the queries that can be asked, in all their orders, and those that can't.

    Attributes:
        items: the queries that can be asked, each with a digest of the images that it shows.
        prepared: for each of these, its prompts as the model has prepared them.
        lengths: for each of these, the length of its longest prompt.
        failures: the queries that can't be asked.
    """

    items: list[tuple[Pending | Request, str]]
    prepared: list[list[Any]]
    lengths: list[int]
    failures: list[Failure]


def read_batch(
    model: Model, task: Task, batch: Sequence[tuple[Pending | Request, Request]], length_of: Length
) -> ReadBatch:
    """Reads the images of a batch; its requests share one ``Images`` object."""
    ready = ReadBatch([], [], [], [])
    images = batch[0][1].images
    prompts = [prompt for _, request in batch if request.failed is None for prompt in request.prompts]
    with suppress(QueryError):  # preparing each prompt shows which one has the bad image
        model.prefetch(prompts, task, images)
    for item, request in batch:
        prepared = _prepared(model, request)
        if isinstance(prepared, Failure):
            ready.failures.append(prepared)
        else:
            # the model has read them through the same object, so these are the bytes that it has decoded
            ready.items.append((item, images_digest(images, request.shown) or ""))
            ready.prepared.append(prepared)
            ready.lengths.append(max(length_of(prompt, request.images) for prompt in request.prompts))
    return ready


def _prepared(model: Model, request: Request) -> list[Any] | Failure:
    """A request's prompts as the model has prepared them, or why it can't be asked."""
    if request.failed is not None:
        return Failure(request.slot, request.failed)
    try:
        return [model.prepare(prompt, request.task, request.images) for prompt in request.prompts]
    except QueryError as error:
        return Failure(request.slot, str(error))


def result_of(asked: Pending | Request, result: Answered, content: str) -> Prediction | Failure:
    """The prediction that goes into the journal for an answer, or why there is none."""
    if isinstance(result, NoAnswer):
        return Failure(asked.slot, result.reason)
    if isinstance(result, Replied):
        return Prediction(asked.key, result.answer, content, result.reply)
    return Prediction(asked.key, result, content)


def answer(
    pending: Sequence[Pending],
    model: Model,
    journal: Journal,
    *,
    batch_size: int | None,
    extra: Mapping[str, str],
    title: str = "answering",
) -> list[Failure]:
    """Answers queries in this process alone, with a titled progress bar; see :class:`Answering`.

    Returns:
        The queries that can't be answered; all others have an answer.
    """
    work = Answering(model, journal, batch_size=batch_size, extra=extra)
    announce(model, pending)
    with progress_bar(len(pending), "query", title) as bar, reported(model, note_usage):
        for count in work.answer(pending):
            bar.update(count)
    return work.failures


def announce(model: Model, pending: Sequence[Pending], *, shown: bool = True) -> None:
    """Announces the queries to a model that sends requests, and shows the user the model's estimate.

    Raises:
        UserError: the estimate is more than the user allows.
    """
    if not isinstance(model, SendsRequests):
        return
    estimate = model.expect(
        Expected(task, kind[0].query.prompts, kind[0].trial.source.images, len(kind)) for task, kind in kinds(pending)
    )
    if shown:
        note(estimate)


@contextmanager
def reported(model: Model, report: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Reports the usage of a model that sends requests when the context ends, also after an error."""
    try:
        yield
    finally:
        if isinstance(model, SendsRequests):
            report(model.usage())


def note_usage(usage: Mapping[str, float]) -> None:
    """Shows the user what the requests have used."""
    note(", ".join(f"{value:,.10g} {name}" for name, value in usage.items()))


def answer_requests(model: Model, requests: Sequence[Request]) -> list[Prediction | Failure]:
    """Answers requests as one batch per task; for executors, also in another process than the one that made them.

    Returns:
        For each request, the prediction that goes into the journal, or why there is none.
    """
    found: dict[Slot, Prediction | Failure] = {}
    for task in dict.fromkeys(request.task for request in requests):
        found |= _answer_alike(model, [request for request in requests if request.task == task])
    return [found[request.slot] for request in requests]


def _answer_alike(model: Model, requests: Sequence[Request]) -> dict[Slot, Prediction | Failure]:
    """Like :func:`answer_requests`, for requests of one task; the results are by slot."""
    runner, found = Runner(model, len(requests)), dict[Slot, Prediction | Failure]()
    prepared: list[tuple[Request, list[Any]]] = []
    for request in requests:
        ready = _prepared(model, request)
        if isinstance(ready, Failure):
            found[request.slot] = ready
        else:
            prepared.append((request, ready))
    length_of = measure_of(model)
    lengths = [max(length_of(prompt, request.images) for prompt in request.prompts) for request, _ in prepared]
    parts = runner.answer([ready for _, ready in prepared], lengths, requests[0].task)
    answers = [result for part in parts for result in part]
    for (request, _), result in zip(prepared, answers, strict=True):
        found[request.slot] = result_of(request, result, images_digest(request.images, request.shown) or "")
    return found


def describe_failures(failures: Sequence[Failure]) -> DataError:
    """One error for all queries that could not be answered."""
    first: dict[str, Failure] = {}
    for failure in failures:
        first.setdefault(failure.reason, failure)
    reasons = [f"{_place_of(failure.slot)}: {reason}" for reason, failure in first.items()]
    return DataError(
        f"{len(failures)} queries could not be answered; everything else is answered and saved. "
        f"The reasons, each with the first query:{first_few(reasons)}"
    )


def _place_of(slot: Slot) -> str:
    benchmark, shots, seed, id, _ = slot
    return f"{benchmark}, {shots} shots, seed {seed}, query {id}"
