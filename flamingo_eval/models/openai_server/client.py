"""Requests to a server: retried until there is a valid reply or the retries are used up, counted, and limited.

This uses httpx2, the client that huggingface_hub installs, and not the package openai. We must know exactly what is
sent, how often and to which address, and that package retries and follows redirects by its own rules.
"""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2

from flamingo_eval.core.errors import QueryError, UserError
from flamingo_eval.core.progress import warn
from flamingo_eval.models.openai_server import replies
from flamingo_eval.models.openai_server.endpoint import KEY_VARIABLE, Endpoint
from flamingo_eval.models.openai_server.gate import Gate
from flamingo_eval.models.openai_server.replies import BadReplyError, Body, Completion, error_text
from flamingo_eval.models.openai_server.spending import Spending

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""First and longest wait in seconds before a retry: doubled each time; up to half of it is left out at random."""

LONGEST_RETRY_AFTER = 600.0
"""The longest wait, in seconds, that a server may ask for."""

MOST_BYTES = 64 << 20
"""The largest reply that is accepted, in bytes."""

PUSHED_BACK = frozenset({429, 503, 529})
"""Statuses of an overloaded server (529: Anthropic's)."""

LOST = 32
"""Failed requests in a row after which we check that the server still answers (or twice the concurrency, if that is
more)."""

ASKED = 3
"""How often a server is asked for information about itself before we give up."""

AGAIN = (PUSHED_BACK | {408, 409, 425} | {*range(500, 600)}) - {501, 505}
"""Statuses after which the same request may succeed later."""

_NO_MORE = ("insufficient_quota", "billing_hard_limit_reached")
"""Error codes, sent with status 429, for which waiting does not help."""


@dataclass(frozen=True)
class Sent:
    """A valid reply.

    Attributes:
        completion: its content.
        seconds: time since the first request for it.
        requests: how many requests were sent for it.
    """

    completion: Completion
    seconds: float
    requests: int


class RefusedError(QueryError):
    """The server refuses this request, and retrying does not help. Has the ``status`` and the server's reason."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _AgainError(Exception):
    """The request should be sent again; ``wait``: after how many seconds, if the server states it."""

    def __init__(self, message: str, wait: float | None = None, *, pushed_back: bool = False) -> None:
        super().__init__(message)
        self.wait, self.pushed_back = wait, pushed_back


@dataclass(frozen=True)
class _Raw:
    """A reply as it was received."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Client:
    """Sends requests. Can be called from several threads at once.

    Args:
        endpoint: where they are sent.
        spending: counts requests and tokens, and limits them.
        concurrency: requests at once, at most.
        timeout: seconds until the complete reply must have arrived.
        retries: how often a request is sent again.
        answers_as: the model's name in earlier replies; empty if there were none.
        small: a request that the server has answered before, with the same key. It is sent after many failures in a
            row, to check that the server still answers. None if there is none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        spending: Spending,
        *,
        concurrency: int,
        timeout: float,
        retries: int,
        answers_as: str = "",
        small: Body | None = None,
    ) -> None:
        self.endpoint, self.gate, self.spending = endpoint, Gate(concurrency), spending
        self._timeout, self._retries, self._small, self._accepted = timeout, retries, small, small is not None
        self._random, self._lock, self.answers_as, self._lost = random.Random(), threading.Lock(), answers_as, 0
        key = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
        try:
            self._http = httpx2.Client(
                headers=key,
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 30.0)),
                limits=httpx2.Limits(max_connections=concurrency + 1, max_keepalive_connections=concurrency + 1),
                verify=_trusted(endpoint),
                trust_env=not endpoint.is_here,  # a proxy would see the key, and can't reach this machine
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise UserError(
                f"the proxy or the certificates that the environment names can't be used: {error}"
            ) from error

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def _is_there(self) -> bool:
        """Whether the server still answers the small request. Raises UserError."""
        if self._small is None:
            return False
        self.spending.begin(again=True)
        try:
            self._once(self._small)
        except (_AgainError, BadReplyError, RefusedError):
            return False
        return True

    def get(self, path: str, read: Callable[[bytes], T]) -> tuple[T, Mapping[str, str]] | None:
        """What a server reports about itself, with the reply's headers; None if it refuses, or does not answer."""
        for attempt in range(ASKED):
            try:
                raw = self._exchange("GET", path, None)
                if raw.status == 200:
                    return read(raw.content), raw.headers
                if raw.status not in AGAIN:
                    return None
            except (_AgainError, BadReplyError):
                pass
            self.gate.rest(self._pause(attempt, None))
        return None

    def complete(self, body: Body) -> Sent:
        """A chat completion.

        Raises:
            RefusedError: the server refuses this request; the message has its reason.
            QueryError: the server did not answer, and the retries are used up.
            UserError: the server will not answer any request, or nothing more may be sent.
        """
        try:
            return self._complete(body)
        except QueryError:
            raise
        except UserError as error:
            self.gate.stop(error)
            raise

    def _complete(self, body: Body) -> Sent:
        began, problems = 0.0, list[str]()
        for attempt in range(self._retries + 1):
            with self.gate.passed() as sent:
                began = began or sent
                self.spending.begin(again=attempt > 0)
                problem = self._try(body)
                if isinstance(problem, Completion):
                    return Sent(problem, time.monotonic() - began, attempt + 1)
                if problem.pushed_back and self.gate.pushed_back(sent, problem.wait):
                    later = f", and nothing for {problem.wait:g} s" if problem.wait and problem.wait > 1 else ""
                    warn(f"the server pushes back ({problem}): {self.gate.limit} requests at once for now{later}")
            problems.append(str(problem))
            self._check_alive(problem)
            if attempt < self._retries:
                self.gate.rest(self._pause(attempt, problem.wait))
        reasons = ", ".join(dict.fromkeys(problems))
        raise QueryError(f"the server did not answer, asked {self._retries + 1} times: {reasons}")

    def _try(self, body: Body) -> Completion | _AgainError:
        """One request. Raises RefusedError, UserError."""
        try:
            completion = self._once(body)
        except BadReplyError as error:
            return _AgainError(self.endpoint.without_key(str(error)))
        except _AgainError as error:
            return error
        self.gate.went_well()
        with self._lock:
            self._lost, self._accepted = 0, True
        return completion

    def _pause(self, attempt: int, wait: float | None) -> float:
        """Seconds until the next attempt: at least what the server asked for, plus a random part to spread requests."""
        longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
        return max(longest / 2, wait or 0.0) + longest / 2 * self._random.random()

    def _check_alive(self, problem: _AgainError) -> None:
        """Counts a failed request, unless it was pushed back. Raises UserError if the server no longer answers."""
        if problem.pushed_back:
            return
        with self._lock:
            self._lost += 1
            ask = self._lost >= max(LOST, 2 * self.gate.most)
            if ask:
                self._lost = 0  # other requests continue in the meantime
        if ask and not self._is_there():
            raise UserError(
                f"{self.endpoint.url} does not answer any more ({problem}); what is answered is saved, and the same "
                "command goes on"
            )

    def _once(self, body: Body) -> Completion:
        raw = self._exchange("POST", "chat/completions", body)
        if raw.status == 200:
            completion = replies.completion(raw.content)
            self.spending.end(completion.counted)
            self._check_name(completion.names.get("answers as", ""))
            return completion
        reason, code = error_text(raw.content, self.endpoint.without_key)
        self._check_stop(raw, reason, code)
        if raw.status in AGAIN:
            pushed_back = raw.status in PUSHED_BACK
            raise _AgainError(f"{raw.status} {reason}", _retry_after(raw.headers), pushed_back=pushed_back)
        raise RefusedError(f"the server refuses ({raw.status}): {reason}", raw.status)

    def _check_stop(self, raw: _Raw, reason: str, code: str) -> None:
        """Raises UserError for an error that every other request would have, too."""
        where = f"{self.endpoint.url} answers {raw.status} ({reason})"
        if raw.status == 401 or (raw.status == 403 and not self._accepted):  # some servers refuse an image with 403
            key = "no key was sent" if self.endpoint.key is None else "the key that was sent is not accepted"
            raise UserError(f"{where}: {key}; it comes from --api-key-file or {KEY_VARIABLE}")
        if raw.status == 404:
            raise UserError(where)
        if raw.status == 402 or code in _NO_MORE:
            raise UserError(f"{where}: nothing more can be asked with this key")
        if 300 <= raw.status < 400:
            raise UserError(
                f"{self.endpoint.url} redirects to {self._place_of(raw)}, and redirects are not "
                "followed, since the key would go there: give that address, if you trust it"
            )

    def _place_of(self, raw: _Raw) -> str:
        """Where a reply redirects to: scheme and host."""
        try:
            to = urlsplit(urljoin(self.endpoint.url, raw.headers.get("location", "")))
            return self.endpoint.without_key(f"{to.scheme}://{to.netloc.rpartition('@')[2]}")
        except ValueError:
            return "what is no address"

    def _check_name(self, name: str) -> None:
        """Raises UserError if replies come from another model than before."""
        with self._lock:
            self.answers_as = self.answers_as or name
        if name and name != self.answers_as:
            raise UserError(
                f"{self.endpoint.url} answered as {self.answers_as} and now answers as {name}: another model, so "
                "nothing more is asked; what is answered is saved"
            )

    def _exchange(self, method: str, path: str, body: Body | None) -> _Raw:
        """One reply.

        Raises:
            _AgainError: there was no reply, or it was incomplete or too large.
            UserError: the address is invalid, or the server's certificate is not trusted.
        """
        url, deadline, content = f"{self.endpoint.url}/{path}", time.monotonic() + self._timeout, bytearray()
        data = None if body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        try:
            with self._http.stream(method, url, content=data, headers=kind) as response:
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise _AgainError(f"a reply of more than {MOST_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise _AgainError(f"no complete reply in {self._timeout:g} s")
                return _Raw(response.status_code, response.headers, bytes(content))
        except httpx2.TimeoutException as error:
            raise _AgainError(f"no reply in {self._timeout:g} s") from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
            raise UserError(f"{self.endpoint.url} is no address of a server: {error}") from error
        except (httpx2.TransportError, httpx2.DecodingError, OSError) as error:
            reason = self.endpoint.without_key(str(error))
            if "CERTIFICATE" in reason.upper():
                raise UserError(f"{self.endpoint.url}: {reason}; --ca-file names more certificates to trust") from error
            what = "no connection" if isinstance(error, httpx2.ConnectError) else "the connection broke"
            raise _AgainError(f"{what}: {reason}") from error


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a server's ``Retry-After`` header: a number, or a date.

    >>> _retry_after({"retry-after": "3"})
    3.0
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, wait), LONGEST_RETRY_AFTER) if wait == wait else None


def _trusted(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """The system's certificates, and those of a file. Raises UserError for a file that contains none."""
    if endpoint.ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=endpoint.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"--ca-file {endpoint.ca_file} holds no certificates in PEM form: {error}") from error
    return context
