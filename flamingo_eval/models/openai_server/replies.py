"""Replies of servers as types: chat completions, lists of models, errors. Anything else is a bad reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.schema import typed

T = TypeVar("T")

Body = Mapping[str, object]
"""What is sent: a request of the API, as a JSON object."""


class BadReplyError(Exception):
    """A reply that is cut off, or that the API does not define; a retry may help."""


class NoTextError(Exception):
    """A valid reply without an answer; the message has the server's reason, if it gives one."""


class _Open(msgspec.Struct, frozen=True):
    """A part of a reply; servers may send more fields than are read here."""


Count = Annotated[int, Meta(ge=0, le=2**53)]


class Usage(_Open, frozen=True):
    """Numbers of tokens, by the server's count."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class ListedToken(_Open, frozen=True):
    """A token and its log-probability."""

    token: str
    logprob: float


class AnswerToken(_Open, frozen=True):
    """The likeliest tokens at one position of the answer."""

    top_logprobs: list[ListedToken] = []


class AnswerTokens(_Open, frozen=True):
    """The tokens of the answer, in order."""

    content: list[AnswerToken] | None = None


class TextPart(_Open, frozen=True):
    """A part of a message; ``text`` is empty if it is not a text."""

    text: str = ""


class ReplyMessage(_Open, frozen=True):
    """The assistant's message; if it refuses to answer, ``refusal`` has its reason."""

    content: str | list[TextPart] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """Its text, which may come in parts."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Choice(_Open, frozen=True):
    """One answer."""

    message: ReplyMessage
    finish_reason: object = None
    logprobs: AnswerTokens | None = None


class PromptToken(_Open, frozen=True):
    """A token of the prompt and its log-probability (vLLM)."""

    logprob: float


class Completion(_Open, frozen=True):
    """A reply to a chat completion; exactly one answer was asked for."""

    choices: Annotated[list[Choice], Meta(min_length=1, max_length=1)]
    usage: object = None
    model: object = None
    system_fingerprint: object = None
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None

    @property
    def finish_reason(self) -> str:
        """Why generation stopped, in the server's own word; empty if it gives none."""
        reason = self.choices[0].finish_reason
        return reason if isinstance(reason, str) else ""

    @property
    def counted(self) -> Usage | None:
        """Its numbers of tokens; None if the server does not count, or its counts are not valid."""
        try:
            return None if self.usage is None else typed(self.usage, Usage, "usage")
        except UserError:
            return None

    @property
    def names(self) -> dict[str, str]:
        """The names that it gives to the model and to the server's state (``system_fingerprint``)."""
        reported = {"answers as": self.model, "system fingerprint": self.system_fingerprint}
        return {key: value for key, value in reported.items() if isinstance(value, str) and value}

    def text(self) -> str:
        """The answer. Raises NoTextError if there is none."""
        message = self.choices[0].message
        if message.text.strip() and self.finish_reason != "content_filter":
            return message.text
        why = f"finish_reason {self.finish_reason}" if self.finish_reason else "it gives no reason"
        refusal = f"; {message.refusal}" if message.refusal else ""
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
    except (ValueError, RecursionError) as error:  # not JSON, or not text at all
        raise BadReplyError("its reply is no JSON") from error
    except UserError as error:
        raise BadReplyError(error_text(content)[0] if b'"error"' in content else str(error)) from error


LONGEST = 500
"""How many characters of a server's error message are kept."""


def error_text(content: bytes, hide: Callable[[str], str] = str) -> tuple[str, str]:
    """A server's error message and its error code: OpenAI's form, vLLM's, FastAPI's, or any text.

    ``hide`` removes secrets from the message.

    >>> error_text(b'{"error": {"message": "too many images", "code": "invalid"}}')
    ('too many images', 'invalid')
    """
    text = content.decode("utf-8", "replace")
    code = ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text
    if isinstance(found, dict):
        inner = found.get("error", found)
        if isinstance(inner, dict):
            code = str(inner.get("code") or inner.get("type") or "")
            found = inner.get("message") or inner.get("detail") or inner
        else:
            found = inner
    found = found if isinstance(found, str) else json.dumps(found)
    words = " ".join(hide(found).split()).encode("utf-8", "replace").decode()  # JSON can contain lone surrogates
    return (words[:LONGEST] + ("..." if len(words) > LONGEST else "")) or "nothing", code
