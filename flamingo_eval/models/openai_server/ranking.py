"""Log-likelihoods of class names from a server, by the best method that it supports.

There are two methods, the better one first:

- ``prompt_logprobs`` (vLLM): the prompt is the conversation with a name as the assistant's answer, and the reply
  contains the log-probabilities of the name's own tokens. Their mean is the same score that local models use.
- ``top_logprobs`` (OpenAI's API): log-probabilities of the likeliest first tokens of an answer. It distinguishes only
  names that begin with different letters, and ignores their other tokens.
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
"""The most tokens that OpenAI's API lists; vLLM's default is the same (``--max-logprobs``)."""


class Ranker(Protocol):
    """A way to rank names."""

    name: str
    """Its name in records."""

    about: str
    """What it measures, for the table."""

    def requests(self, names: int) -> int:
        """Number of requests for one prompt with ``names`` class names."""

    def rank(
        self, client: Client, body: Body, messages: Sequence[OpenAIMessage], names: Sequence[str]
    ) -> Replied | NoAnswer:
        """Each name's log-likelihood after a prompt.

        Raises:
            QueryError: the server refuses, or could not answer.
            UserError: the server will not answer any request.
        """


class PromptLogprobs:
    """Ranks by ``prompt_logprobs``, with one request for each name and one for the prompt alone."""

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

    Without a name the prompt ends where the answer begins.
    """
    asked = {**body, "prompt_logprobs": 0, "max_tokens": 1}
    if not name:
        return {**asked, "messages": [*messages]}
    answer = OpenAIMessage(role="assistant", content=[{"type": "text", "text": name}])
    return {**asked, "messages": [*messages, answer], "add_generation_prompt": False, "continue_final_message": True}


Listed = Sequence[Mapping[str, PromptToken] | None]


def mean_of(begin: Listed | None, full: Listed | None) -> float | str:
    """The mean log-probability of the tokens that a name adds to the prompt; a string with the reason if there is none.

    ``begin`` is the reply for the prompt alone, ``full`` for the prompt with the name. Each position maps its token's
    id to its log-probability (and, with ``prompt_logprobs`` 0, nothing else).
    """
    if not begin or not full:
        return "there are none"
    if len(full) <= len(begin):
        return "the prompt is not longer with a name behind it"
    if any(set(one or ()) != set(other or ()) for one, other in zip(begin, full, strict=False)):
        return "the prompt's own tokens are others with a name behind it"
    added = [[*place.values()] if place else [] for place in full[len(begin) :]]
    if not all(len(place) == 1 for place in added):
        return "a place does not hold one token"
    found = [place[0].logprob for place in added]
    return sum(found) / len(found) if all(map(math.isfinite, found)) else "one is no number"


class TopLogprobs:
    """Ranks by ``top_logprobs`` of the first token of an answer.

    Args:
        limit: the server's name for the field that limits an answer's tokens.
    """

    name = "top_logprobs"
    about = "the log-probability of a name's first token among the answer's, in small or capital letters"

    def __init__(self, limit: str) -> None:
        self._limit = limit

    def requests(self, names: int) -> int:
        """Always 1."""
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
    """The likeliest first tokens of an answer; empty if the server lists none."""
    listed = sent.completion.choices[0].logprobs
    places = listed.content or [] if listed else []
    found = [(token.token, token.logprob) for place in places[:1] for token in place.top_logprobs]
    return [(text, value) for text, value in found if math.isfinite(value) and value < 0.1]  # at most log 1 = 0


_SPACES = " \t\n\u2581\u0120\u010a"
"""Spaces and new lines, also as SentencePiece and byte-level BPE write them in a token."""


def from_tokens(listed: Sequence[Token], names: Sequence[str], reply: Reply) -> Replied | NoAnswer:
    """Scores names by the listed tokens; no two names may begin with the same letter.

    A token belongs to a name if the name begins with it; case and surrounding spaces are ignored. A name's probability
    is the sum over its tokens. A name without a token is less likely than anything listed: it gets the lowest
    listed value.
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
    """Two names that begin with the same letter, so that one token may begin both; None if there are none.

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
    """What the journal records about a reply."""
    usage = sent.completion.counted
    return Reply(
        finish_reason=sent.completion.finish_reason,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        seconds=round(sent.seconds, 3),
        requests=sent.requests,
    )
