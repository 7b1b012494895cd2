"""Answer: ask the model what the journal does not know yet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from flamingo_eval.core.errors import DataError, DeviceMemoryError, QueryError, UserError, first_few
from flamingo_eval.core.progress import progress_bar, warn
from flamingo_eval.core.protocols import Model
from flamingo_eval.core.records import Answer, Decoding, NoAnswer, Prediction, Prompt, Task
from flamingo_eval.core.workers import prefetched
from flamingo_eval.engine.batches import batches_of, kinds, measure_of
from flamingo_eval.engine.requests import Pending, Request, images_digest
from flamingo_eval.storage.journal import Entry, Failure, Journal, Slot


class Answering:
    """A model at work on the queries of a run; every batch is journalled before the next begins.

    Args:
        model: who is asked.
        journal: where answers go.
        batch_size: queries per batch; None for what the model suggests.
        extra: fields added to every journal line.

    Attributes:
        failures: the queries that can't be answered (unreadable images, prompts too long, numbers that overflow).
        batches: benchmark and shots -> queries of a batch -> how many such batches were answered: in narrow precisions
            the shape of a batch decides near-ties.
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
        self._runner, self._length = _Runner(model, batch_size), measure_of(model)
        self._failed: set[Slot] = set()
        self.failures: list[Failure] = []
        self.batches: dict[str, dict[str, int]] = {}

    def batch_size(self, item: Pending) -> int:
        """Queries per batch of those like this one."""
        prompt, source = item.query.prompt, item.trial.source
        return self._runner.size(prompt, self._length(prompt, source.images), source.task)

    def refresh(self) -> int:
        """Learns what other processes have answered; how many answers that were."""
        return self._journal.refresh()

    def done(self, item: Pending) -> bool:
        """Whether a query has an answer by now, or can't have one."""
        slot = item.slot
        if slot in self._failed:
            return True
        return item.answered_by(self._journal.get(slot))

    def answer(self, pending: Sequence[Pending]) -> Iterator[int]:
        """Answers queries, and says after every batch how many these were; those that can't be answered count too."""
        for task, kind in kinds(pending):
            batches = batches_of(kind, partial(self._runner.size, task=task), self._length)
            for batch, ready in prefetched(partial(self._prepare, task), batches):
                for failure in ready.failures:
                    self._fail(failure)
                done = 0
                for answers in self._runner.answer(ready.prepared, ready.lengths, task):
                    self._keep(ready.items[done : done + len(answers)], answers)
                    done += len(answers)
                yield len(batch)

    def _keep(self, items: Sequence[tuple[Pending, str]], answers: Sequence[Answer | NoAnswer]) -> None:
        entries = []
        benchmark, shots, _ = items[0][0].trial.key
        sizes = self.batches.setdefault(f"{benchmark} {shots}", {})
        sizes[str(len(items))] = sizes.get(str(len(items)), 0) + 1
        for (item, content), result in zip(items, answers, strict=True):
            outcome = _result(item, result, content)
            if isinstance(outcome, Failure):
                self._fail(outcome)
            else:
                entries.append(Entry(item.slot, outcome))
        if entries:
            self._journal.append(entries, self._extra)

    def _fail(self, failure: Failure) -> None:
        self._failed.add(failure.slot)
        self.failures.append(failure)

    def _prepare(self, task: Task, batch: Sequence[tuple[Pending, Request]]) -> _Ready:
        ready = _Ready([], [], [], [])
        images = batch[0][1].images
        prompts = [prompt for _, request in batch if request.failed is None for prompt in request.prompts]
        with suppress(QueryError):  # whose image it is is found out when its prompt is prepared
            self._model.prefetch(prompts, task, images)
        for item, request in batch:
            prepared = _prepared(self._model, request)
            if isinstance(prepared, Failure):
                ready.failures.append(prepared)
            else:
                # the model has read them through the same object: these are the bytes that it has decoded
                ready.items.append((item, images_digest(images, request.shown) or ""))
                ready.prepared.append(prepared)
                ready.lengths.append(max(self._length(prompt, request.images) for prompt in request.prompts))
        return ready


@dataclass(frozen=True)
class _Ready:
    """A batch whose images are read: what can be asked, each in all its orders, and what can't."""

    items: list[tuple[Pending, str]]
    prepared: list[list[Any]]
    lengths: list[int]
    failures: list[Failure]


def _prepared(model: Model, request: Request) -> list[Any] | Failure:
    """A request's prompts as the model has read them, or why it can't be asked."""
    if request.failed is not None:
        return Failure(request.slot, request.failed)
    try:
        return [model.prepare(prompt, request.task, request.images) for prompt in request.prompts]
    except QueryError as error:
        return Failure(request.slot, str(error))


def _result(asked: Pending | Request, result: Answer | NoAnswer, content: str) -> Prediction | Failure:
    """What is journalled for an answer, or why there is none."""
    if isinstance(result, NoAnswer):
        benchmark, shots, seed, id, _ = asked.slot
        return Failure(asked.slot, f"query {id} of {benchmark}, {shots} shots, seed {seed}: {result.reason}")
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
    """Answers queries in this process alone, with a progress bar that has a title; see :class:`Answering`.

    Returns:
        The queries that can't be answered; all others are.
    """
    work = Answering(model, journal, batch_size=batch_size, extra=extra)
    with progress_bar(len(pending), "query", title) as bar:
        for count in work.answer(pending):
            bar.update(count)
    return work.failures


@dataclass
class _Limit:
    """How much of a device's memory holds, as far as it has been found out: characters of a batch's longest prompt,
    times its queries. It grows back, since other programs may have given memory free; later, if that was too early.

    Attributes:
        most: as much as fits.
        alone: a prompt that long does not fit even alone.
        fitted: batches of that size that did fit, since it was found out.
        patience: as many of them make it grow.
        grown: whether it has grown since something did not fit.
    """

    most: float = math.inf
    alone: float = math.inf
    fitted: int = 0
    patience: int = 16
    grown: bool = False

    def queries(self, longest: int) -> int:
        """How many fit whose prompts are at most that long."""
        if longest >= self.alone:
            return 1
        return 2**31 if self.most == math.inf else max(1, int(self.most // max(1, longest)))

    def too_much(self, queries: int, longest: int) -> None:
        """So many did not fit."""
        if self.grown:
            self.patience *= 2
        self.most, self.fitted, self.grown = queries * longest / 2, 0, False

    def fits(self, queries: int, longest: int) -> None:
        """So many did, which says something only if no more were allowed."""
        if longest >= self.alone:
            self.alone = math.inf
        if self.most != math.inf and queries == self.queries(longest):
            self.fitted += 1
            if self.fitted >= self.patience:
                self.most, self.fitted, self.grown = 1.5 * self.most, 0, True


class _Runner:
    """Answers batches, in halves where the device's memory does not hold them; what did not fit is not tried again
    soon.

    Args:
        model: the model.
        batch_size: queries per batch; None for what the model suggests.
    """

    def __init__(self, model: Model, batch_size: int | None) -> None:
        self._model, self._wanted = model, batch_size
        self._limits: dict[Task, _Limit] = {}

    def size(self, prompt: Prompt, length: int, task: Task) -> int:
        """Queries per batch, whose prompts are like this one, and as long."""
        wanted = self._wanted or max(1, self._model.suggested_batch(prompt, task))
        return min(wanted, self._limit(task).queries(length))

    def _limit(self, task: Task) -> _Limit:
        return self._limits.setdefault(task, _Limit())

    def answer(
        self, prepared: Sequence[Sequence[Any]], lengths: Sequence[int], task: Task
    ) -> Iterator[Sequence[Answer | NoAnswer]]:
        """One answer per query, in parts as they fit; none for a query that does not fit alone.

        Args:
            prepared: of each query its prompts.
            lengths: how long these are.
            task: what is asked.
        """
        limit, done = self._limit(task), 0
        before = limit.most
        while done < len(prepared):
            longest = max(lengths[done:])
            part = prepared[done : done + limit.queries(longest)]
            try:
                answers = ensembled(self._model, part, task)
                limit.fits(len(part), longest)
                before = limit.most
            except DeviceMemoryError as error:
                if len(part) > 1:
                    limit.too_much(len(part), longest)
                    fewer = limit.queries(longest)
                    warn(f"{len(part)} queries at once do not fit into memory; continuing with {fewer}")
                    continue
                limit.alone, limit.most = longest, before  # this one's fault; the others may fit as before
                answers = [NoAnswer(str(error))]
            except QueryError as error:  # an image was read again, and has gone or changed since it was prepared
                if len(part) > 1:
                    middle = len(part) // 2
                    for some in (slice(done, done + middle), slice(done + middle, done + len(part))):
                        yield from self.answer(prepared[some], lengths[some], task)
                    done += len(part)
                    continue
                answers = [NoAnswer(str(error))]
            done += len(part)
            yield answers


def _ask(model: Model, prepared: Sequence[Any], task: Task) -> list[Answer | NoAnswer]:
    """A model's answers, which are what was asked for; one that holds values that are no numbers is none.

    Raises:
        UserError: it gave another number of answers, so nobody knows which is whose, or something else than answers.
    """
    answers = [*model.answer(prepared, task)]
    if len(answers) != len(prepared):
        raise UserError(
            f"the model gave {len(answers)} answers to {len(prepared)} prompts; Model.answer gives one for each"
        )
    return [_sound(result, task) for result in answers]


def _sound(result: Any, task: Task) -> Answer | NoAnswer:
    if isinstance(result, NoAnswer) or (isinstance(result, str) and isinstance(task, Decoding)):
        return result
    if isinstance(task, Decoding) or not isinstance(result, Mapping) or result.keys() != set(task.names):
        wanted = "a text" if isinstance(task, Decoding) else f"a number for each of the {len(task.names)} class names"
        raise UserError(f"the model's answer is {repr(result)[:60]}; what was asked for is {wanted}")
    try:
        numbers = {name: _number(result[name]) for name in task.names}
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"the model's answer is {repr(result)[:60]}; log-likelihoods are numbers: {error}") from error
    if not all(map(math.isfinite, numbers.values())):
        return NoAnswer("the model's log-likelihoods are not all numbers")
    return numbers


def _number(value: Any) -> float:
    """A number of whatever library. Raises TypeError, ValueError for what is none."""
    if type(value) is float:
        return value
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is a text")
    return float(value)


def ensembled(model: Model, prepared: Sequence[Sequence[Any]], task: Task) -> Sequence[Answer | NoAnswer]:
    """One answer per query: of its only prompt, or the names' mean log-likelihoods over its prompts."""
    if all(len(prompts) == 1 for prompts in prepared):
        return _ask(model, [prompts[0] for prompts in prepared], task)
    means: list[Answer | NoAnswer] = []
    for prompts in prepared:
        try:
            result = _in_halves(model, prompts, task)
        except DeviceMemoryError as error:  # one order of one query alone
            means.append(NoAnswer(str(error)))
            continue
        none = next((one for one in result if isinstance(one, NoAnswer)), None)
        ranked = [one for one in result if not isinstance(one, str | NoAnswer)]
        means.append(none or {name: sum(one[name] for one in ranked) / len(ranked) for name in ranked[0]})
    return means


def _in_halves(model: Model, prompts: Sequence[Any], task: Task) -> list[Answer | NoAnswer]:
    """A query's orders, which may not fit into memory together."""
    try:
        return _ask(model, prompts, task)
    except DeviceMemoryError:
        if len(prompts) == 1:
            raise
    middle = len(prompts) // 2
    return _in_halves(model, prompts[:middle], task) + _in_halves(model, prompts[middle:], task)


def answer_requests(model: Model, requests: Sequence[Request]) -> list[Prediction | Failure]:
    """Answers requests as one batch for each task among them, wherever they have come from: for executors.

    Returns:
        For each a prediction to be journalled, or why there is none.
    """
    found: dict[Slot, Prediction | Failure] = {}
    for task in dict.fromkeys(request.task for request in requests):
        found |= _answer_alike(model, [request for request in requests if request.task == task])
    return [found[request.slot] for request in requests]


def _answer_alike(model: Model, requests: Sequence[Request]) -> dict[Slot, Prediction | Failure]:
    """The same for requests of one task."""
    runner, found = _Runner(model, len(requests)), dict[Slot, Prediction | Failure]()
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
        found[request.slot] = _result(request, result, images_digest(request.images, request.shown) or "")
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
