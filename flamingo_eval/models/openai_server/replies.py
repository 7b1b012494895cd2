"""What servers say: chat completions, lists of models and errors, as types; what is none of these is a bad reply."""

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
"""What is sent: a request of the API, as JSON has it."""


class BadReplyError(Exception):
    """A reply that is cut off, or none that the API has; asked again, the server may do better."""


class NoTextError(Exception):
    """A sound reply without an answer in it, with what the server said instead."""


class _Open(msgspec.Struct, frozen=True):
    """A part of a reply; servers say more than is read here."""


Count = Annotated[int, Meta(ge=0, le=2**53)]


class Usage(_Open, frozen=True):
    """Tokens, by the server's count."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0


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


class TextPart(_Open, frozen=True):
    """A part of a message; those that are no text have none."""

    text: str = ""


class SaidMessage(_Open, frozen=True):
    """What the assistant said: ``refusal`` in place of an answer, where it will not."""

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

    message: SaidMessage
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
        """Why it stopped, in the server's word."""
        reason = self.choices[0].finish_reason
        return reason if isinstance(reason, str) else ""

    @property
    def counted(self) -> Usage | None:
        """Its tokens; None where the server does not count, or not in numbers."""
        try:
            return None if self.usage is None else typed(self.usage, Usage, "usage")
        except UserError:
            return None

    @property
    def names(self) -> dict[str, str]:
        """What it calls the model, and the server's state."""
        told = {"answers as": self.model, "system fingerprint": self.system_fingerprint}
        return {key: value for key, value in told.items() if isinstance(value, str) and value}

    def text(self) -> str:
        """The answer. Raises NoTextError if there is none."""
        said = self.choices[0].message
        if said.text.strip() and self.finish_reason != "content_filter":
            return said.text
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
        raise BadReplyError(error_text(content)[0] if b'"error"' in content else str(error)) from error


LONGEST = 500
"""Characters of what a server says of an error that are kept."""


def error_text(content: bytes, hide: Callable[[str], str] = str) -> tuple[str, str]:
    """What a server says is wrong, and its code for it: OpenAI's form, vLLM's, FastAPI's, or whatever text it is.

    ``hide`` takes out what nobody must see.

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
    words = " ".join(hide(said).split()).encode("utf-8", "replace").decode()  # JSON can spell half of a character
    return (words[:LONGEST] + ("..." if len(words) > LONGEST else "")) or "nothing", code
