"""Asking a model: batches that fit into memory, several orders of one query, and checks of the answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from flamingo_eval.core.errors import DeviceMemoryError, QueryError, UserError
from flamingo_eval.core.progress import warn
from flamingo_eval.core.protocols import Model
from flamingo_eval.core.records import Answer, Decoding, NoAnswer, Prompt, Replied, Task

Answered = Answer | NoAnswer | Replied
"""The result of asking one prompt."""


@dataclass
class _Limit:
    """The size of batches that fit into a device's memory, as far as it is known: length of a batch's longest prompt,
    times its queries. It grows again, since other programs may have freed memory. If that was too early, it waits
    longer.

    Attributes:
        most: the largest size that fits.
        alone: a prompt of this length does not fit even alone.
        fitted: number of batches of the largest size that have fitted since it was set.
        patience: number of such batches after which it grows.
        grown: whether it has grown since a batch last did not fit.
    """

    most: float = math.inf
    alone: float = math.inf
    fitted: int = 0
    patience: int = 16
    grown: bool = False

    def queries(self, longest: int) -> int:
        """How many queries fit whose prompts are at most this long."""
        if longest >= self.alone:
            return 1
        return 2**31 if self.most == math.inf else max(1, int(self.most // max(1, longest)))

    def too_much(self, queries: int, longest: int) -> None:
        """Records that a batch of this size did not fit."""
        if self.grown:
            self.patience *= 2
        self.most, self.fitted, self.grown = queries * longest / 2, 0, False

    def fits(self, queries: int, longest: int) -> None:
        """Records that a batch of this size did fit, which matters only if no larger one was allowed."""
        if longest >= self.alone:
            self.alone = math.inf
        if self.most != math.inf and queries == self.queries(longest):
            self.fitted += 1
            if self.fitted >= self.patience:
                self.most, self.fitted, self.grown = 1.5 * self.most, 0, True


class Runner:
    """Answers batches, in halves if they do not fit into the device's memory. A size that did not fit is not tried
    again soon.

    Args:
        model: the model.
        batch_size: queries per batch; None for what the model suggests.
    """

    def __init__(self, model: Model, batch_size: int | None) -> None:
        self._model, self._wanted = model, batch_size
        self._limits: dict[Task, _Limit] = {}

    def size(self, prompt: Prompt, length: int, task: Task) -> int:
        """Queries per batch for prompts that are like this one and of this length."""
        wanted = self._wanted or max(1, self._model.suggested_batch(prompt, task))
        return min(wanted, self._limit(task).queries(length))

    def _limit(self, task: Task) -> _Limit:
        return self._limits.setdefault(task, _Limit())

    def answer(
        self, prepared: Sequence[Sequence[Any]], lengths: Sequence[int], task: Task
    ) -> Iterator[Sequence[Answered]]:
        """Yields one answer per query, in parts that fit; a query that does not fit alone gets a ``NoAnswer``.

        Args:
            prepared: for each query, its prepared prompts.
            lengths: for each query, the length of its longest prompt.
            task: decoding or ranking.
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
                limit.alone, limit.most = longest, before  # only this query is too large; the others may fit as before
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


def _ask(model: Model, prepared: Sequence[Any], task: Task) -> list[Answered]:
    """A model's answers, checked; an answer with log-likelihoods that are not finite becomes a ``NoAnswer``.

    Raises:
        UserError: the model returned too few or too many answers, so they can't be matched to prompts, or something
            that is not an answer.
    """
    answers = [*model.answer(prepared, task)]
    if len(answers) != len(prepared):
        raise UserError(
            f"the model gave {len(answers)} answers to {len(prepared)} prompts; Model.answer gives one for each"
        )
    return [_sound(result, task) for result in answers]


def _sound(result: Any, task: Task) -> Answered:
    if isinstance(result, Replied):
        answer = _sound(result.answer, task)
        return answer if isinstance(answer, NoAnswer | Replied) else Replied(answer, result.reply)
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
    """A number of any library as a float. Raises TypeError, ValueError for anything else."""
    if type(value) is float:
        return value
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is a text")
    return float(value)


def ensembled(model: Model, prepared: Sequence[Sequence[Any]], task: Task) -> Sequence[Answered]:
    """One answer per query: that of its only prompt, or each name's mean log-likelihood over all its prompts."""
    if all(len(prompts) == 1 for prompts in prepared):
        return _ask(model, [prompts[0] for prompts in prepared], task)
    means: list[Answered] = []
    for prompts in prepared:
        try:
            result = _in_halves(model, prompts, task)
        except DeviceMemoryError as error:  # a single order of one query does not fit
            means.append(NoAnswer(str(error)))
            continue
        none = next((one for one in result if isinstance(one, NoAnswer)), None)
        means.append(none or _mean(result))
    return means


def _mean(result: Sequence[Answered]) -> Answered:
    """Each name's mean log-likelihood, with the sum of the server's replies."""
    replies = [one.reply for one in result if isinstance(one, Replied)]
    answers = [one.answer if isinstance(one, Replied) else one for one in result]
    ranked = [one for one in answers if not isinstance(one, str | NoAnswer)]
    mean = {name: sum(one[name] for one in ranked) / len(ranked) for name in ranked[0]}
    return Replied(mean, reduce(add, replies)) if replies else mean


def _in_halves(model: Model, prompts: Sequence[Any], task: Task) -> list[Answered]:
    """Asks a query in all its orders, in halves if they do not fit into memory together."""
    try:
        return _ask(model, prompts, task)
    except DeviceMemoryError:
        if len(prompts) == 1:
            raise
    middle = len(prompts) // 2
    return _in_halves(model, prompts[:middle], task) + _in_halves(model, prompts[middle:], task)
