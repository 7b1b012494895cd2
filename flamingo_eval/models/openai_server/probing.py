"""Finding out what a server can do, before anything is planned: a few small requests without images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flamingo_eval.core.errors import QueryError, UserError
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
from flamingo_eval.models.openai_server.replies import Body, Model, models

MESSAGES: Sequence[OpenAIMessage] = [
    OpenAIMessage(role="user", content=[{"type": "text", "text": "Is the sky blue? Answer with yes or no."}])
]
"""What is asked to see how a server answers."""

TOLERANCE = 1e-3
"""By how much a log-probability may differ when the same prompt is asked again."""

_OTHER_LIMIT = "max_completion_tokens"
"""What OpenAI's newer models call ``max_tokens``."""


@dataclass(frozen=True)
class Found:
    """What has been found out of a server.

    Attributes:
        says: what it says of itself and of the model, for the record.
        limit: what it calls the number of tokens of an answer.
        answers_as: what its replies call the model; empty if they don't.
    """

    says: dict[str, str]
    limit: str
    answers_as: str


def look(client: Client, model: str, template: Body) -> Found:
    """What a server says of itself, and whether it answers at all.

    Args:
        client: the server.
        model: the model that it is to have.
        template: what every request holds.

    Raises:
        UserError: it has no such model, or does not answer.
    """
    says: dict[str, str] = {}
    listed = client.get("models", models)
    if listed is not None:
        found, headers = listed
        names = [one.id for one in found.data]
        if names and model not in names:
            raise UserError(
                f"{client.endpoint.url} has no model {model}; it has {', '.join(names[:10])}"
                f"{', ...' if len(names) > 10 else ''}"
            )
        says |= _of_model(next((one for one in found.data if one.id == model), None))
        says |= {name: headers[name] for name in ("server", "openai-version") if name in headers}
    limit = _limit(client, template)
    named = {"answers as": client.answers_as} if client.answers_as else {}
    return Found({**says, **named}, limit, client.answers_as)


def _of_model(model: Model | None) -> dict[str, str]:
    """What tells a model from another one of the same name; not when it was listed, which some call its creation."""
    if model is None:
        return {}
    named = {"root": model.root, "owned by": model.owned_by, "parent": model.parent, "hash": model.hash,
             "max model len": model.max_model_len}  # fmt: skip
    return {name: str(value) for name, value in named.items() if value is not None}


def _limit(client: Client, template: Body) -> str:
    """What a server calls the number of tokens of an answer. Raises UserError if it does not answer."""
    try:
        client.complete({**template, "messages": [*MESSAGES], "max_tokens": 1})
    except RefusedError as error:
        if _OTHER_LIMIT not in str(error):
            raise _no_answer(client, error) from error
        try:
            client.complete({**template, "messages": [*MESSAGES], _OTHER_LIMIT: 16})
        except QueryError as second:
            raise _no_answer(client, second) from second
        return _OTHER_LIMIT
    except QueryError as error:
        raise _no_answer(client, error) from error
    return "max_tokens"


def _no_answer(client: Client, error: QueryError) -> UserError:
    return UserError(f"{client.endpoint.url}, asked for one word to see whether it answers: {error}")


def find_ranker(client: Client, body: Body, names: Sequence[str], limit: str) -> Ranker:
    """The best way to rank names that a server has.

    Args:
        client: the server.
        body: what every request for it holds.
        names: the names.
        limit: what the server calls the number of tokens of an answer.

    Raises:
        UserError: it has none; with the reason for each.
    """
    no_prompt_logprobs = _no_prompt_logprobs(client, body, names)
    if no_prompt_logprobs is None:
        return PromptLogprobs()
    no_top_logprobs = _no_top_logprobs(client, body, names, limit)
    if no_top_logprobs is None:
        return TopLogprobs(limit)
    raise UserError(
        f"class names are ranked by log-probabilities, which {client.endpoint.url} does not give: prompt_logprobs "
        f"({no_prompt_logprobs}); top_logprobs ({no_top_logprobs})"
    )


def _no_prompt_logprobs(client: Client, body: Body, names: Sequence[str]) -> str | None:
    """Why names can't be ranked by ``prompt_logprobs``; None if they can.

    The same prompts are asked in two orders: with prefix caching some versions of vLLM give numbers that depend on what
    was asked before (vLLM issue 42019).
    """
    order = [names[0], names[1 % len(names)], names[0]]
    try:
        begin = client.complete(prompt_only(body, MESSAGES, "")).completion.prompt_logprobs
        if begin is None:
            return "the server passes the request over"
        listed = [client.complete(prompt_only(body, MESSAGES, name)).completion.prompt_logprobs for name in order]
        again = client.complete(prompt_only(body, MESSAGES, "")).completion.prompt_logprobs
    except QueryError as error:
        return str(error)
    means = [mean_of(begin, one) for one in listed]
    wrong = next((one for one in means if isinstance(one, str)), None)
    if wrong is not None:
        return wrong
    if not (_same(listed[0], listed[2]) and _same(begin, again)):
        return "the same prompt has other numbers when it is asked again; --no-enable-prefix-caching may help with vLLM"
    return None


def _same(one: Listed | None, other: Listed | None) -> bool:
    """Whether a prompt's tokens have the same log-probabilities twice."""
    if not one or not other or len(one) != len(other):
        return False
    for first, second in zip(one, other, strict=True):
        if set(first or ()) != set(second or ()):
            return False
        if any(abs(first[token].logprob - second[token].logprob) > TOLERANCE for token in first or ()):  # type: ignore[index]  # neither is None then
            return False
    return True


def _no_top_logprobs(client: Client, body: Body, names: Sequence[str], limit: str) -> str | None:
    """Why names can't be ranked by ``top_logprobs``; None if they can."""
    pair = alike(names)
    if pair is not None:
        return f"{pair[0]} and {pair[1]} begin with the same letter, so one token may begin both"
    try:
        sent = client.complete(first_token(body, MESSAGES, limit))
    except QueryError as error:
        return str(error)
    return None if listed_first(sent) else "the server passes the request over"
