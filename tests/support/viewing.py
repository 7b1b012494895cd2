"""The viewer in a real browser, and a proxy that sees whatever a browser asks for."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.helpers import write_coco_root
from tests.support.serving import serve

CHROMIUM = os.environ.get("FLAMINGO_CHROMIUM") or shutil.which("chromium")


def need_chromium() -> str:
    """Where the browser is; without one the test is skipped, in CI it fails."""
    if CHROMIUM:
        return CHROMIUM
    message = "there is no chromium (Debian: apt-get install chromium; elsewhere: FLAMINGO_CHROMIUM=PATH)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


OWN = re.compile(r"[\w.-]+\.(google|googleapis|gvt1)\.com(:\d+)?")
"""Chromium itself asks after accounts and updates, whatever page it shows.

What the page asks for is watched in the browser, where these hosts are refused like any other.
"""


class Proxy:
    """Hands requests for this machine on, refuses all others, and remembers whom they were for.

    Attributes:
        hosts: the machines that were asked for, but for Chromium's own wishes.
        url: its address.
    """

    def __init__(self) -> None:
        self.hosts: list[str] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_CONNECT(self) -> None:
                if not OWN.fullmatch(self.path):
                    proxy.hosts.append(self.path)
                self.send_error(403)

            def _hand_on(self) -> None:
                found = re.match(r"http://([^/]+)", self.path)
                host = found[1] if found else self.path
                if not OWN.fullmatch(host):
                    proxy.hosts.append(host)
                if not host.startswith(("127.0.0.1", "localhost")):
                    self.send_error(403)
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy")}
                request = urllib.request.Request(self.path, body, headers, method=self.command)
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                try:
                    answer = opener.open(request, timeout=60)
                except urllib.error.HTTPError as error:
                    answer = error
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_HEAD = _hand_on

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        serve(self._server)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def viewing(*arguments: object, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """``flamingo-eval view`` as a process; its address."""
    command = [sys.executable, "-m", "flamingo_eval", "view", *map(str, arguments), "--no-browser", "--port", "0"]
    variables = {
        **os.environ,
        **(environment or {}),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONUNBUFFERED": "1",
    }
    variables.pop("SSH_CONNECTION", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], 120)
            line = process.stdout.readline() if ready else ""
            if not line:
                process.kill()
                raise AssertionError(process.stderr.read())
            yield line.split()[0]
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


SLOW = """
import time
from flamingo_eval.models.scripted import ScriptedModel, ScriptedSource
class Slow(ScriptedModel):
    def answer(self, prepared, task):
        time.sleep(0.1)
        return super().answer(prepared, task)
class SlowSource(ScriptedSource):
    def load(self, device, precision):
        return Slow()
class Family:
    options = frozenset()
    known = staticmethod(lambda: {"slow": "slow"})
    renderers = staticmethod(lambda: [])
    find = staticmethod(lambda checkpoint, options: SlowSource() if checkpoint == "slow" else None)
    adopt = staticmethod(lambda model, name, options: None)
MODEL = Family()
"""


def slow_run(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command of a run of 120 queries that takes seconds, and the environment that has its model."""
    root = write_coco_root(folder / "data", train=12, test=60)
    (folder / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "flamingo_eval", "coco", "--shots", "0,2", "--seeds", "42", "--checkpoint", "slow", "--data-root", str(root),
               "--out", str(folder / "run"), "--batch-size", "2"]  # fmt: skip
    return command, {"FLAMINGO_EVAL_PLUGINS": str(folder / "slow.py")}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
