"""What servers say: chat completions, lists of models and errors, as types; what is none of these is a bad reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.schema import typed

T = TypeVar("T")

Body = Mapping[str, object]
"""What is sent: a request of the API, as JSON has it."""


class BadReplyError(Exception):
    """A reply that is cut off, or none that the API has; asked again, the server may do better."""


class NoTextError(Exception):
    """A sound reply without an answer in it, with what the server said instead."""


class _Open(msgspec.Struct, frozen=True):
    """A part of a reply; servers say more than is read here."""


class Usage(_Open, frozen=True):
    """Tokens, by the server's count."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ListedToken(_Open, frozen=True):
    """A token and its log-probability."""

    token: str
    logprob: float


class AnswerToken(_Open, frozen=True):
    """The likeliest tokens at one place of the answer."""

    top_logprobs: list[ListedToken] = []


class AnswerTokens(_Open, frozen=True):
    """The tokens of the answer, in order."""

    content: list[AnswerToken] | None = None


class SaidMessage(_Open, frozen=True):
    """What the assistant said: ``refusal`` in place of an answer, where it will not."""

    content: str | None = None
    refusal: str | None = None


class Choice(_Open, frozen=True):
    """One answer."""

    message: SaidMessage
    finish_reason: str | None = None
    logprobs: AnswerTokens | None = None


class PromptToken(_Open, frozen=True):
    """A token of the prompt and its log-probability (vLLM)."""

    logprob: float


class Completion(_Open, frozen=True):
    """A reply to a chat completion; exactly one answer was asked for."""

    choices: Annotated[list[Choice], Meta(min_length=1, max_length=1)]
    usage: Usage | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None

    @property
    def finish_reason(self) -> str:
        """Why it stopped, in the server's word."""
        return self.choices[0].finish_reason or ""

    def text(self) -> str:
        """The answer. Raises NoTextError if there is none."""
        said = self.choices[0].message
        if said.content and self.finish_reason != "content_filter":
            return said.content
        why = f"finish_reason {self.finish_reason}" if self.finish_reason else "it gives no reason"
        refusal = f"; {said.refusal}" if said.refusal else ""
        raise NoTextError(f"the server's reply has no text ({why}{refusal})")


class Model(_Open, frozen=True):
    """An entry of the list of models."""

    id: str
    root: str | None = None
    owned_by: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    hash: str | None = None


class Models(_Open, frozen=True):
    """The list of models."""

    data: list[Model]


def completion(content: bytes) -> Completion:
    """A reply to a chat completion. Raises BadReplyError."""
    return _read(content, Completion)


def models(content: bytes) -> Models:
    """A list of models. Raises BadReplyError."""
    return _read(content, Models)


def _read(content: bytes, kind: type[T]) -> T:
    try:
        return typed(json.loads(content), kind, "its reply")
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all
        raise BadReplyError("its reply is no JSON") from error
    except UserError as error:
        said, _ = error_text(content)
        raise BadReplyError(said if b'"error"' in content else str(error)) from error


LONGEST = 500
"""Characters of what a server says of an error that are kept."""


def error_text(content: bytes) -> tuple[str, str]:
    """What a server says is wrong, and its code for it: OpenAI's form, vLLM's, FastAPI's, or whatever text it is.

    >>> error_text(b'{"error": {"message": "too many images", "code": "invalid"}}')
    ('too many images', 'invalid')
    """
    text = content.decode("utf-8", "replace")
    code = ""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict):
        inner = said.get("error", said)
        if isinstance(inner, dict):
            code = str(inner.get("code") or inner.get("type") or "")
            said = inner.get("message") or inner.get("detail") or inner
        else:
            said = inner
    said = said if isinstance(said, str) else json.dumps(said)
    words = " ".join(said.split())
    return (words[:LONGEST] + ("..." if len(words) > LONGEST else "")) or "nothing", code
