"""Log-likelihoods of class names from a server, as well as it can give them.

Two ways, the better one first:

- ``prompt_logprobs`` (vLLM): the conversation with a name as the assistant's answer is the prompt, and the name's own
  tokens have their log-probabilities in the reply. The mean over them is what local models are ranked by.
- ``top_logprobs`` (OpenAI's API): log-probabilities of the likeliest first tokens of an answer. It tells names apart
  that begin with different letters, and nothing of their other tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from flamingo_eval.core.prompting import OpenAIMessage
from flamingo_eval.core.records import NoAnswer, Replied, Reply
from flamingo_eval.models.openai_server.client import Client, Sent
from flamingo_eval.models.openai_server.replies import Body, PromptToken

MOST_LISTED = 20
"""Tokens that OpenAI's API lists at most, and vLLM by default (``--max-logprobs``)."""


class Ranker(Protocol):
    """A way to rank names."""

    name: str
    """What records call it."""

    about: str
    """What it measures, for the table."""

    def requests(self, names: int) -> int:
        """How many requests a prompt takes."""

    def rank(
        self, client: Client, body: Body, messages: Sequence[OpenAIMessage], names: Sequence[str]
    ) -> Replied | NoAnswer:
        """Each name's log-likelihood after a prompt.

        Raises:
            QueryError: the server refuses, or could not.
            UserError: it will answer nobody.
        """


class PromptLogprobs:
    """By ``prompt_logprobs``, a request for each name."""

    name = "prompt_logprobs"
    about = "the mean log-likelihood of a name's tokens, as of a local model"

    def requests(self, names: int) -> int:
        """One for each name, and one for the prompt alone."""
        return names + 1

    def rank(
        self, client: Client, body: Body, messages: Sequence[OpenAIMessage], names: Sequence[str]
    ) -> Replied | NoAnswer:
        """See :class:`Ranker`."""
        sent = client.complete(prompt_only(body, messages, ""))
        begin, reply = sent.completion.prompt_logprobs, reply_of(sent)
        numbers: dict[str, float] = {}
        for name in names:
            sent = client.complete(prompt_only(body, messages, name))
            reply += reply_of(sent)
            mean = mean_of(begin, sent.completion.prompt_logprobs)
            if isinstance(mean, str):
                return NoAnswer(f"the server's log-probabilities of the prompt with {name!r} can't be used: {mean}")
            numbers[name] = mean
        return Replied(numbers, reply)


def prompt_only(body: Body, messages: Sequence[OpenAIMessage], name: str) -> Body:
    """A request for the log-probabilities of a prompt that ends with a name as the assistant's answer.

    Without a name it ends where the answer begins.
    """
    asked = {**body, "prompt_logprobs": 0, "max_tokens": 1}
    if not name:
        return {**asked, "messages": [*messages]}
    said = OpenAIMessage(role="assistant", content=[{"type": "text", "text": name}])
    return {**asked, "messages": [*messages, said], "add_generation_prompt": False, "continue_final_message": True}


Listed = Sequence[Mapping[str, PromptToken] | None]


def mean_of(begin: Listed | None, whole: Listed | None) -> float | str:
    """The mean log-probability of the tokens that a prompt with a name has more than one without; else what is wrong.

    Each place holds its token's number, and its log-probability (with ``prompt_logprobs`` 0 nothing else).
    """
    if not begin or not whole:
        return "there are none"
    if len(whole) <= len(begin):
        return "the prompt is not longer with a name behind it"
    if any(set(one or ()) != set(other or ()) for one, other in zip(begin, whole, strict=False)):
        return "the prompt's own tokens are others with a name behind it"
    added = [[*place.values()] if place else [] for place in whole[len(begin) :]]
    if not all(len(place) == 1 for place in added):
        return "a place does not hold one token"
    found = [place[0].logprob for place in added]
    return sum(found) / len(found) if all(map(math.isfinite, found)) else "one is no number"


class TopLogprobs:
    """By ``top_logprobs`` of the first token of an answer.

    Args:
        limit: what the server calls the number of tokens of an answer.
    """

    name = "top_logprobs"
    about = "the log-probability of a name's first token among the answer's, in small or capital letters"

    def __init__(self, limit: str) -> None:
        self._limit = limit

    def requests(self, names: int) -> int:
        """One."""
        return 1

    def rank(
        self, client: Client, body: Body, messages: Sequence[OpenAIMessage], names: Sequence[str]
    ) -> Replied | NoAnswer:
        """See :class:`Ranker`."""
        sent = client.complete(first_token(body, messages, self._limit))
        places = listed_first(sent)
        if not places:
            return NoAnswer("the server's reply lists no tokens")
        return from_tokens(places, names, reply_of(sent))


def first_token(body: Body, messages: Sequence[OpenAIMessage], limit: str) -> Body:
    """A request for the likeliest first tokens of an answer."""
    return {**body, "messages": [*messages], limit: 1, "logprobs": True, "top_logprobs": MOST_LISTED}


Token = tuple[str, float]
"""A token's text and its log-probability; two tokens may have the same text."""


def listed_first(sent: Sent) -> list[Token]:
    """The likeliest first tokens of an answer; empty where a server lists none."""
    listed = sent.completion.choices[0].logprobs
    places = listed.content or [] if listed else []
    found = [(token.token, token.logprob) for place in places[:1] for token in place.top_logprobs]
    return [(text, value) for text, value in found if math.isfinite(value) and value < 0.1]  # a logarithm of at most 1


_SPACES = " \t\n\u2581\u0120\u010a"
"""Also as SentencePiece and byte-level BPE write a space and a new line in a token."""


def from_tokens(listed: Sequence[Token], names: Sequence[str], reply: Reply) -> Replied | NoAnswer:
    """What listed tokens say of names, none of which begins as another does.

    A token is a name's if the name begins with it, whatever the case of its letters and the space before it; a name's
    tokens together are as likely as their sum. A name without one is less likely than anything listed: it gets the
    least.
    """
    least, numbers, unlisted = min(value for _, value in listed), dict[str, float](), list[str]()
    for name in names:
        own = [value for token, value in listed if (word := token.strip(_SPACES).lower()) and _begins(name, word)]
        total = sum(map(math.exp, own))
        if not total:
            unlisted.append(name)
        numbers[name] = math.log(total) if total else min(least, 0.0)
    if len(unlisted) == len(names):
        return NoAnswer(f"none of the class names is among the answer's {len(listed)} likeliest first tokens")
    return Replied(numbers, reply + Reply(reply.finish_reason, 0, 0, 0.0, 0, tuple(unlisted)))


def _begins(name: str, word: str) -> bool:
    return name.strip().lower().startswith(word)


def alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that begin with the same letter, so that a token may be the first of both; None if there are none.

    >>> alike(["no", "yes"]) is None
    True
    """
    known: dict[str, str] = {}
    for name in names:
        first = name.strip().lower()[:1]
        if first in known:
            return known[first], name
        known[first] = name
    return None


def reply_of(sent: Sent) -> Reply:
    """What is journalled of a reply."""
    usage = sent.completion.counted
    return Reply(
        finish_reason=sent.completion.finish_reason,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        seconds=round(sent.seconds, 3),
        requests=sent.requests,
    )
