"""A server with OpenAI's API that does as a test says: answers that follow from what it was sent, and faults."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.serving import serve


@dataclass(frozen=True)
class Seen:
    """A chat completion that was asked for.

    Attributes:
        body: all of it.
        images: digests of its images, in order.
        texts: its texts, in order.
        attempt: how often the same was asked before.
        key: the Authorization header.
    """

    body: dict[str, Any]
    images: tuple[str, ...]
    texts: tuple[str, ...]
    attempt: int
    key: str | None

    @property
    def is_probe(self) -> bool:
        """Whether it is none of a run's own."""
        return self.texts[-1] == "?" or "Is the sky blue" in self.texts[0]


@dataclass(frozen=True)
class Fault:
    """What goes wrong instead of an answer."""

    kind: str = "status"
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = field(default_factory=lambda: {"error": {"message": "something broke"}})


def answer_of(seen: Seen) -> str:
    """What the server says unless it is told otherwise: another text for every other prompt."""
    return f"a thing {hashlib.sha256(repr((seen.texts, seen.images)).encode()).hexdigest()[:8]}"


class ChatServer:
    """The server, in a thread of its own; ``url`` is its address without the version.

    Attributes:
        fault: what goes wrong with a request; None for nothing.
        answer: what it says.
        listed: log-probabilities it gives: ``top``, ``prompt``, ``unstable`` (prompt, depending on order), or none.
        card: the model's entry in the list of models; None for a server whose list is broken.
        pause: seconds that every answer takes.
        requests: all chat completions, but for probes.
        most: most of them that were under way at a time.
    """

    def __init__(self) -> None:
        self.fault: Callable[[Seen], Fault | None] = lambda _: None
        self.answer: Callable[[Seen], str | None] = answer_of
        self.listed, self.pause = "", 0.0
        self.card: dict[str, Any] | None = {"id": "tiny", "object": "model", "created": 1, "root": "/models/tiny"}
        self.requests: list[Seen] = []
        self.probes: list[Seen] = []
        self.most = 0
        self._under_way, self._asked = 0, dict[str, int]()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"chat": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        serve(self._server)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()

    def begin(self, body: dict[str, Any], key: str | None) -> Seen:
        """Notes a request."""
        parts = [part for message in body["messages"] for part in message["content"]]
        images = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts if "image_url" in part]
        texts = tuple(part["text"] for part in parts if "text" in part)
        digests = tuple(hashlib.sha256(image).hexdigest() for image in images)
        name = json.dumps(body, sort_keys=True)
        with self._lock:
            seen = Seen(body, digests, texts, self._asked.get(name, 0), key)
            self._asked[name] = seen.attempt + 1
            (self.probes if seen.is_probe else self.requests).append(seen)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        return seen

    def end(self) -> None:
        """A request is over."""
        with self._lock:
            self._under_way -= 1

    def reply(self, seen: Seen) -> dict[str, Any]:
        """A sound reply."""
        text = self.answer(seen)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        more: dict[str, Any] = {}
        if self.listed == "top" and seen.body.get("logprobs"):
            yes = -0.1 - (int(seen.images[-1][:4], 16) / 65536 if seen.images else 0)
            tokens = [{"token": " Yes", "logprob": yes, "bytes": None}, {"token": "no", "logprob": -2.5, "bytes": None},
                      {"token": "maybe", "logprob": -4.0, "bytes": None}]  # fmt: skip
            choice["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
        if self.listed in ("prompt", "unstable") and "prompt_logprobs" in seen.body:
            more["prompt_logprobs"] = self._prompt_logprobs(seen)
        usage = {"prompt_tokens": sum(map(len, seen.texts)) + 100 * len(seen.images), "completion_tokens": 3}
        return {"id": "x", "object": "chat.completion", "model": "tiny", "choices": [choice], "usage": usage, **more}

    def _prompt_logprobs(self, seen: Seen) -> list[Any]:
        """As vLLM has them: nothing for the first token, a token and its number for each other."""
        if seen.body.get("continue_final_message"):
            *before, name = seen.texts
        else:
            before, name = [*seen.texts], ""
        places: list[Any] = [None]
        for i, _ in enumerate(before):
            places.append({str(10 + i): {"logprob": -1.0, "rank": 1, "decoded_token": "t"}})
        drift = 0.01 * len(self.probes) if self.listed == "unstable" else 0.0
        for letter in name:
            places.append(
                {str(ord(letter)): {"logprob": -ord(letter) / 100 - drift, "rank": 1, "decoded_token": letter}}
            )
        return places


class _Server(ThreadingHTTPServer):
    """Connections wait for a busy machine; with the usual room for five some were cut off, and their requests retried."""

    request_queue_size = 128
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.chat.card is not None:
            self._send(200, {"object": "list", "data": [self.chat.card]}, {})
        else:
            self._send(500 if self.path == "/v1/models" else 404, {"detail": "nothing here"}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._send(404, {"detail": "Not Found"}, {})
            return
        if body["model"] != "tiny":
            self._send(404, {"error": {"message": f"The model {body['model']} does not exist."}}, {})
            return
        seen = self.chat.begin(body, self.headers.get("Authorization"))
        try:
            fault = self.chat.fault(seen)
            if fault is None:
                time.sleep(self.chat.pause)
                self._send(200, self.chat.reply(seen), {})
            else:
                self._go_wrong(fault, seen)
        except OSError:
            pass  # the client has gone
        finally:
            self.chat.end()

    def _go_wrong(self, fault: Fault, seen: Seen) -> None:
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault.kind == "half":
            content = json.dumps(self.chat.reply(seen)).encode()
            self._head(200, len(content), {})
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault.kind == "slow":
            time.sleep(fault.status)
            self._send(200, self.chat.reply(seen), {})
        else:
            self._send(fault.status, fault.body, fault.headers)

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._head(status, len(content), headers)
        self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
