"""Asking a model: batches that fit into memory, several orders of one query, answers that are what was asked for."""

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
"""What came of asking one prompt."""


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


class Runner:
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
    ) -> Iterator[Sequence[Answered]]:
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


def _ask(model: Model, prepared: Sequence[Any], task: Task) -> list[Answered]:
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
    """A number of whatever library. Raises TypeError, ValueError for what is none."""
    if type(value) is float:
        return value
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is a text")
    return float(value)


def ensembled(model: Model, prepared: Sequence[Sequence[Any]], task: Task) -> Sequence[Answered]:
    """One answer per query: of its only prompt, or the names' mean log-likelihoods over its prompts."""
    if all(len(prompts) == 1 for prompts in prepared):
        return _ask(model, [prompts[0] for prompts in prepared], task)
    means: list[Answered] = []
    for prompts in prepared:
        try:
            result = _in_halves(model, prompts, task)
        except DeviceMemoryError as error:  # one order of one query alone
            means.append(NoAnswer(str(error)))
            continue
        none = next((one for one in result if isinstance(one, NoAnswer)), None)
        means.append(none or _mean(result))
    return means


def _mean(result: Sequence[Answered]) -> Answered:
    """The names' mean log-likelihoods, with all that a server said."""
    replies = [one.reply for one in result if isinstance(one, Replied)]
    answers = [one.answer if isinstance(one, Replied) else one for one in result]
    ranked = [one for one in answers if not isinstance(one, str | NoAnswer)]
    mean = {name: sum(one[name] for one in ranked) / len(ranked) for name in ranked[0]}
    return Replied(mean, reduce(add, replies)) if replies else mean


def _in_halves(model: Model, prompts: Sequence[Any], task: Task) -> list[Answered]:
    """A query's orders, which may not fit into memory together."""
    try:
        return _ask(model, prompts, task)
    except DeviceMemoryError:
        if len(prompts) == 1:
            raise
    middle = len(prompts) // 2
    return _in_halves(model, prompts[:middle], task) + _in_halves(model, prompts[middle:], task)
