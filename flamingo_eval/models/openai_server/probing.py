"""Finds out what a server can do, before anything is planned, by a few small requests without images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flamingo_eval.core.errors import QueryError, UserError
from flamingo_eval.core.progress import note
from flamingo_eval.core.prompting import OpenAIMessage
from flamingo_eval.models.openai_server.client import Client, RefusedError
from flamingo_eval.models.openai_server.ranking import (
    Listed,
    PromptLogprobs,
    Ranker,
    TopLogprobs,
    alike,
    first_token,
    listed_first,
    mean_of,
    prompt_only,
)
from flamingo_eval.models.openai_server.replies import Body, Completion, Model, models

MESSAGES: Sequence[OpenAIMessage] = [
    OpenAIMessage(role="user", content=[{"type": "text", "text": "Is the sky blue? Answer with yes or no."}])
]
"""A small question that shows how a server answers."""

TOLERANCE = 1e-3
"""How much a log-probability may differ when the same prompt is sent again."""

MOST_NAMES = 20
"""If there are many class names, this many are tried."""

DROPPED = ("repetition_penalty", "seed", "temperature")
"""Fields that are left out if a server refuses them."""


@dataclass(frozen=True)
class Found:
    """What is known about a server after probing it.

    Attributes:
        says: what it reports about itself and the model, for the record.
        body: what every request contains.
        limit: its name for the field that limits an answer's tokens.
        answers_as: the model's name in its replies; empty if they contain none.
        counts: whether its replies count tokens.
        notes: what a reader of the results should know.
    """

    says: Mapping[str, str]
    body: Body
    limit: str
    answers_as: str
    counts: bool
    notes: tuple[str, ...]

    @property
    def small(self) -> Body:
        """A small request, like one that the server has answered before."""
        return {**self.body, "messages": [*MESSAGES], self.limit: 16}


def look(client: Client, model: str, body: Body) -> Found:
    """Finds out what a server reports about itself, and which form of request it accepts.

    Args:
        client: the server.
        model: the model that it should have.
        body: what every request should contain.

    Raises:
        UserError: it has no such model, or does not answer.
    """
    says: dict[str, str] = {}
    listed = client.get("models", models)
    names: list[str] = []
    if listed is not None:
        found, headers = listed
        names = [one.id for one in found.data]
        says |= _of_model(next((one for one in found.data if one.id == model), None))
        reported = {name: headers[name] for name in ("server", "openai-version") if name in headers}
        says |= {name: client.endpoint.without_key(value) for name, value in reported.items()}
    try:
        asked, limit, completion, notes = _ask(client, {**body, "messages": [*MESSAGES]})
    except UserError as error:
        has = f"; its models are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else ""
        raise UserError(
            f"{client.endpoint.url}, asked for a word of {model} to see how it answers: {error}"
            f"{has if model not in names else ''}"
        ) from error
    says |= completion.names
    held = {key: value for key, value in asked.items() if key != "messages"}
    says["address"] = client.endpoint.url
    says["asked with"] = ", ".join(f"{key} {held[key]}" for key in ("temperature", "repetition_penalty") if key in held)
    return Found(says, held, limit, client.answers_as, completion.counted is not None, notes)


def _of_model(model: Model | None) -> dict[str, str]:
    """What distinguishes a model from another one of the same name.

    The creation time is left out: for some servers it is the time of the listing.
    """
    if model is None:
        return {}
    named = {"root": model.root, "owned by": model.owned_by, "parent": model.parent, "hash": model.hash,
             "max model len": model.max_model_len}  # fmt: skip
    return {name: str(value) for name, value in named.items() if value is not None}


def _ask(client: Client, asked: Body) -> tuple[Body, str, Completion, tuple[str, ...]]:
    """Asks for a word, and changes the form of the request until the server accepts it. Raises UserError.

    Returns that request, the server's name for the field that limits an answer's tokens, its reply, and notes.

    - ``max_completion_tokens`` is the name of ``max_tokens`` for OpenAI's newer models; these accept no temperature
      either.
    - ``repetition_penalty`` 1 switches off the penalty that vLLM takes from a model's own settings; not all servers
      know it.
    - ``seed`` is refused by some servers.
    """
    limit, notes = "max_tokens", list[str]()
    for _ in range(5):
        try:
            sent = client.complete({**asked, limit: 1 if limit == "max_tokens" else 16})
            return asked, limit, sent.completion, tuple(notes)
        except RefusedError as error:
            reason = str(error)
            named = next((key for key in DROPPED if key in asked and key in reason), "")
            if "max_completion_tokens" in reason and limit == "max_tokens":
                limit = "max_completion_tokens"
                continue
            named = named or ("repetition_penalty" if "repetition_penalty" in asked else "")
            if not named:
                raise
            asked = {key: value for key, value in asked.items() if key != named}
            if named == "temperature":
                notes.append("the server takes no temperature: answers are sampled, not greedy")
    raise UserError("no form of request is taken")


def find_ranker(client: Client, body: Body, names: Sequence[str], limit: str) -> Ranker:
    """The best method for ranking names that a server supports.

    Args:
        client: the server.
        body: what every request to it contains.
        names: the names.
        limit: the server's name for the field that limits an answer's tokens.

    Raises:
        UserError: it supports none; the message has the reason for each.
    """
    no_prompt_logprobs = _no_prompt_logprobs(client, body, names)
    if no_prompt_logprobs is None:
        return PromptLogprobs()
    no_top_logprobs = _no_top_logprobs(client, body, names, limit)
    if no_top_logprobs is None:
        note(f"class names are ranked by top_logprobs, since there is no prompt_logprobs: {no_prompt_logprobs}")
        return TopLogprobs(limit)
    raise UserError(
        f"class names are ranked by log-probabilities, which {client.endpoint.url} does not give: prompt_logprobs "
        f"({no_prompt_logprobs}); top_logprobs ({no_top_logprobs})"
    )


def _no_prompt_logprobs(client: Client, body: Body, names: Sequence[str]) -> str | None:
    """Why names can't be ranked by ``prompt_logprobs``; None if they can.

    Some prompts are sent again in another order: with prefix caching, some versions of vLLM return numbers that depend
    on earlier requests (vLLM issue 42019).
    """
    try:
        begin = client.complete(prompt_only(body, MESSAGES, "")).completion.prompt_logprobs
        if begin is None:
            return "the server passes the request over"
        some = names[:MOST_NAMES]
        listed = [client.complete(prompt_only(body, MESSAGES, name)).completion.prompt_logprobs for name in some]
        first = client.complete(prompt_only(body, MESSAGES, some[0])).completion.prompt_logprobs
        again = client.complete(prompt_only(body, MESSAGES, "")).completion.prompt_logprobs
    except RefusedError as error:
        return str(error)
    except QueryError as error:
        raise UserError(f"it can't be found out whether {client.endpoint.url} ranks class names: {error}") from error
    means = [(name, mean_of(begin, one)) for name, one in zip(some, listed, strict=True)]
    wrong = next((f"{name!r}: {mean}" for name, mean in means if isinstance(mean, str)), None)
    if wrong is not None:
        return wrong
    apart = max(_apart(listed[0], first), _apart(begin, again))
    if apart > TOLERANCE:
        return (
            f"the same prompt has other numbers when it is asked again, by up to {apart:.2g}; with vLLM "
            "--no-enable-prefix-caching may help"
        )
    return None


def _apart(one: Listed | None, other: Listed | None) -> float:
    """The largest difference between a prompt's log-probabilities in two replies; infinite if the tokens differ."""
    if not one or not other or len(one) != len(other):
        return math.inf
    most = 0.0
    for first, second in zip(one, other, strict=True):
        before, after = first or {}, second or {}
        if before.keys() != after.keys():
            return math.inf
        most = max([most, *(abs(before[token].logprob - after[token].logprob) for token in before)])
    return most


def _no_top_logprobs(client: Client, body: Body, names: Sequence[str], limit: str) -> str | None:
    """Why names can't be ranked by ``top_logprobs``; None if they can."""
    pair = alike(names)
    if pair is not None:
        return f"{pair[0]} and {pair[1]} begin with the same letter, so one token may begin both"
    try:
        sent = client.complete(first_token(body, MESSAGES, limit))
    except RefusedError as error:
        return str(error)
    except QueryError as error:
        raise UserError(f"it can't be found out whether {client.endpoint.url} ranks class names: {error}") from error
    return None if listed_first(sent) else "the server passes the request over"
