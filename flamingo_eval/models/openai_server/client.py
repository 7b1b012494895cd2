"""Requests to a server, sent until there is a sound reply or no more hope; counted, and never more than allowed.

httpx2, the client that huggingface_hub brings, and not the package openai: what is sent, how often and to whom must be
known exactly here, and that package retries and follows redirects by rules of its own.
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
"""Seconds before a request is sent again: doubled each time, and a random part of them left out."""

LONGEST_RETRY_AFTER = 600.0
"""Seconds that a server may ask to be left alone."""

MOST_BYTES = 64 << 20
"""Of a reply."""

PUSHED_BACK = frozenset({429, 503, 529})
"""The server has too much to do (529: Anthropic's)."""

LOST = 32
"""Requests in a row without a reply until it is found out whether the server is still there (or twice as many as there
may be at once)."""

ASKED = 3
"""How often a server is asked what it says of itself."""

AGAIN = (PUSHED_BACK | {408, 409, 425} | {*range(500, 600)}) - {501, 505}
"""What may be otherwise the next time."""

_NO_MORE = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that waiting does not help."""


@dataclass(frozen=True)
class Sent:
    """A sound reply.

    Attributes:
        completion: what it says.
        seconds: since the first request for it.
        requests: how many were sent.
    """

    completion: Completion
    seconds: float
    requests: int


class RefusedError(QueryError):
    """The server will not answer this request, however often it is sent; ``status`` and its own words."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _AgainError(Exception):
    """To be sent again; ``wait``: after so many seconds, if the server said."""

    def __init__(self, message: str, wait: float | None = None, *, pushed_back: bool = False) -> None:
        super().__init__(message)
        self.wait, self.pushed_back = wait, pushed_back


@dataclass(frozen=True)
class _Raw:
    """A reply as it came."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Client:
    """Sends requests, from several threads at once.

    Args:
        endpoint: where.
        spending: what may be sent.
        concurrency: requests at once, at most.
        timeout: seconds until there must be a whole reply.
        retries: how often a request is sent again.
        answers_as: what replies have called the model before; empty if there were none.
        small: a request that the server has answered before, and its key with it: sent after many losses in a row, to
            see whether it is still there. None if there is none.
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
                trust_env=not endpoint.is_here,  # a proxy would see the key, and not find what is on this machine
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise UserError(
                f"the proxy or the certificates that the environment names can't be used: {error}"
            ) from error

    def close(self) -> None:
        """Lets go of its connections."""
        self._http.close()

    def _is_there(self) -> bool:
        """Whether the server still answers something. Raises UserError."""
        if self._small is None:
            return False
        self.spending.begin(again=True)
        try:
            self._once(self._small)
        except (_AgainError, BadReplyError, RefusedError):
            return False
        return True

    def get(self, path: str, read: Callable[[bytes], T]) -> tuple[T, Mapping[str, str]] | None:
        """What a server tells of itself, with the headers; None where it does not, or not with this key."""
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
            RefusedError: the server won't, in its own words.
            QueryError: it could not, as often as it was asked.
            UserError: it will answer nobody, or nothing more may be sent.
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
        """Seconds until the next try: no less than the server said, and not the same for all."""
        longest: float = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
        return max(longest / 2, wait or 0.0) + longest / 2 * self._random.random()

    def _check_alive(self, problem: _AgainError) -> None:
        """Counts one more request without a reply. Raises UserError if the server does not answer anything any more."""
        if problem.pushed_back:
            return
        with self._lock:
            self._lost += 1
            ask = self._lost >= max(LOST, 2 * self.gate.most)
            if ask:
                self._lost = 0  # others go on meanwhile
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
        said, code = error_text(raw.content, self.endpoint.without_key)
        self._check_stop(raw, said, code)
        if raw.status in AGAIN:
            pushed_back = raw.status in PUSHED_BACK
            raise _AgainError(f"{raw.status} {said}", _retry_after(raw.headers), pushed_back=pushed_back)
        raise RefusedError(f"the server refuses ({raw.status}): {said}", raw.status)

    def _check_stop(self, raw: _Raw, said: str, code: str) -> None:
        """Raises UserError for what no other request would fare better with."""
        where = f"{self.endpoint.url} answers {raw.status} ({said})"
        if raw.status == 401 or (raw.status == 403 and not self._accepted):  # some refuse an image with 403
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
            _AgainError: there was none, or not all of it.
            UserError: certificates are not trusted.
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
            said = self.endpoint.without_key(str(error))
            if "CERTIFICATE" in said.upper():
                raise UserError(f"{self.endpoint.url}: {said}; --ca-file names more certificates to trust") from error
            what = "no connection" if isinstance(error, httpx2.ConnectError) else "the connection broke"
            raise _AgainError(f"{what}: {said}") from error


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as a server said it: a number, or a date.

    >>> _retry_after({"retry-after": "3"})
    3.0
    """
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        wait = float(said)
    except ValueError:
        try:
            wait = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, wait), LONGEST_RETRY_AFTER) if wait == wait else None


def _trusted(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """The system's certificates, and those of a file. Raises UserError for a file that holds none."""
    if endpoint.ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=endpoint.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"--ca-file {endpoint.ca_file} holds no certificates in PEM form: {error}") from error
    return context
