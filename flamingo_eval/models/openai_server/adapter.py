"""The model protocol, for a model behind a server."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flamingo_eval.core.errors import QueryError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.measuring import Expected
from flamingo_eval.core.progress import warn
from flamingo_eval.core.prompting import OpenAIMessage
from flamingo_eval.core.protocols import ModelBase
from flamingo_eval.core.records import Answer, Decoding, NoAnswer, Prompt, Ranking, Replied, Task
from flamingo_eval.models.openai_server.client import Client, RefusedError
from flamingo_eval.models.openai_server.messages import Messages
from flamingo_eval.models.openai_server.ranking import Ranker, reply_of
from flamingo_eval.models.openai_server.replies import Body, NoTextError

PROBES = 2
"""Requests that are sent to count an image's tokens."""

CHARACTERS = 4
"""Characters per token, roughly, for the estimate."""


@dataclass(frozen=True)
class Prepared:
    """A prompt in the form in which it is sent."""

    messages: Sequence[OpenAIMessage]


class ServerModel(ModelBase):
    """Asks a server. Each prompt has its own requests, and several prompts can be asked at once.

    Args:
        client: sends requests.
        messages: turns prompts into messages.
        body: what every request contains.
        limit: the server's name for the field that limits an answer's tokens.
        rankers: class names -> how they are ranked.
    """

    def __init__(
        self, client: Client, messages: Messages, body: Body, limit: str, rankers: Mapping[tuple[str, ...], Ranker]
    ) -> None:
        self._client, self._messages, self._body, self._limit, self._rankers = client, messages, body, limit, rankers
        self._unlisted, self._lock = 0, threading.Lock()

    @property
    def concurrency(self) -> int:
        """Requests at once, at most."""
        return self._client.gate.most

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """As many as may be asked at once, so that each of several processes claims at least that many."""
        return self.concurrency

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> Prepared:
        """Reads the images. Raises QueryError."""
        return Prepared(self._messages.of(prompt, images))

    def answer(self, prepared: Sequence[Prepared], task: Task) -> list[Answer | NoAnswer | Replied]:
        """The server's answer to each prompt, one after the other; NoAnswer if it refuses or could not answer.

        Raises UserError if the server will not answer any request, or if no more requests may be sent.
        """
        return [self._answer(one.messages, task) for one in prepared]

    def _answer(self, messages: Sequence[OpenAIMessage], task: Task) -> Replied | NoAnswer:
        try:
            return self._ask(messages, task)
        except QueryError as error:
            return NoAnswer(str(error))

    def _ask(self, messages: Sequence[OpenAIMessage], task: Task) -> Replied | NoAnswer:
        if isinstance(task, Ranking):
            ranked = self._rankers[task.names].rank(self._client, self._body, messages, task.names)
            with self._lock:
                self._unlisted += isinstance(ranked, Replied) and bool(ranked.reply.unlisted)
            return ranked
        sent = self._client.complete({**self._body, "messages": messages, self._limit: task.max_new_tokens})
        try:
            return Replied(self._client.endpoint.without_key(sent.completion.text()), reply_of(sent))
        except NoTextError as error:
            return NoAnswer(self._client.endpoint.without_key(str(error)))

    def expect(self, expected: Iterable[Expected]) -> str:
        """Estimates requests and tokens. Raises UserError if that exceeds a limit. Sends up to two requests itself."""
        kinds, budget = [*expected], self._client.spending.budget
        requests = sum(map(self._requests, kinds))
        sent = int(self._client.spending.total()["requests"])
        if budget.requests is not None and sent + PROBES + requests > budget.requests:
            raise UserError(
                f"{requests} requests to {self._client.endpoint.url}, and {sent + PROBES} to see how it answers: more "
                f"than --max-requests {budget.requests}; none of the queries was asked"
            )
        image_tokens = self._image_tokens(kinds[0]) if kinds else 0.0
        prompt_tokens = answer_tokens = 0.0
        for kind in kinds:
            asked, shown = self._requests(kind), len(kind.prompts[0].images)
            prompt_tokens += asked * (kind.prompts[0].length / CHARACTERS + shown * image_tokens)
            answer_tokens += asked * (kind.task.max_new_tokens if isinstance(kind.task, Decoding) else 1)
        counted = bool(image_tokens) or not any(kind.prompts[0].images for kind in kinds)
        return self._estimate(requests, prompt_tokens, answer_tokens, counted=counted)

    def _requests(self, kind: Expected) -> int:
        """How many requests these queries take, without retries."""
        each = self._rankers[kind.task.names].requests(len(kind.task.names)) if isinstance(kind.task, Ranking) else 1
        return kind.count * len(kind.prompts) * each

    def _estimate(self, requests: int, prompt_tokens: float, answer_tokens: float, *, counted: bool) -> str:
        budget = self._client.spending.budget
        cost = budget.price(prompt_tokens, answer_tokens)
        images = "" if counted else " and those of images, which the server does not count"
        words = (
            f"{requests} requests to {self._client.endpoint.url}, {self.concurrency} at once; about "
            f"{_rounded(prompt_tokens)} tokens of prompts{images}, at most {_rounded(answer_tokens)} of answers"
            f"{'' if cost is None else f', at most about {cost:.3g}'}"
        )
        spent = self._client.spending.total().get("cost", 0.0)
        if budget.cost is not None and cost is not None and spent + cost > budget.cost:
            raise UserError(f"{words}: more than --max-cost {budget.cost:g}; none of the queries was asked")
        return words

    def _image_tokens(self, kind: Expected) -> float:
        """Tokens of an image, from the server's counts with and without it; 0 if it counts none, or none is shown."""
        prompt = kind.prompts[0]
        try:
            shown = self._messages.of(Prompt((), prompt.query), kind.images)[-1]
        except QueryError:
            return 0.0
        images = [part for part in shown["content"] if part["type"] == "image_url"][:1]
        if not images:
            return 0.0
        word = OpenAIMessage(role="user", content=[{"type": "text", "text": "?"}])
        both = OpenAIMessage(role="user", content=[*images, {"type": "text", "text": "?"}])
        try:
            with_image, without = (
                self._client.complete({**self._body, "messages": [message], self._limit: 16}).completion.counted
                for message in (both, word)
            )
        except RefusedError as error:
            warn(f"a prompt with one image, to count its tokens: {error}")
            return 0.0
        except QueryError:
            return 0.0
        return float(max(0, with_image.prompt_tokens - without.prompt_tokens)) if with_image and without else 0.0

    def usage(self) -> Mapping[str, float]:
        """See :class:`flamingo_eval.core.measuring.SendsRequests`."""
        unlisted = {"answers with unlisted names": self._unlisted} if self._unlisted else {}
        return {**self._client.spending.total(), **unlisted}

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def _rounded(tokens: float) -> str:
    """Rounds to two significant digits.

    >>> _rounded(1234567)
    '1,200,000'
    """
    size = 10 ** max(0, int(math.log10(max(tokens, 1))) - 1)
    return f"{round(tokens / size) * size:,}"
