"""A scripted server for ``openai:MODEL``, and runs on it: fixtures of ``test_openai_*.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.models.openai_server import client as client_module
from tests.support.chat_server import ChatServer
from tests.support.helpers import Cli, read_lines, write_coco_root

QUERIES = 40


@pytest.fixture
def server() -> Iterator[ChatServer]:
    one = ChatServer()
    yield one
    one.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty queries with images of their own, and twelve training images."""
    return write_coco_root(tmp_path / "data", train=12, test=QUERIES)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client_module, "LONGEST_WAIT", 0.05)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Runner:
    """Runs coco on a server, at two shots and one seed unless it is told otherwise."""

    cli: Cli
    data: Path
    server: ChatServer

    def __call__(self, *more: object, benchmark: str = "coco", root: object = None, shots: str = "2") -> Any:
        return self.cli(benchmark, "--checkpoint", "openai:tiny", "--base-url", self.server.url, "--data-root",
                        root or self.data, "--shots", shots, "--seeds", "42", "--out", "run", *more)  # fmt: skip


@pytest.fixture
def run(cli: Cli, data: Path, server: ChatServer) -> Runner:
    return Runner(cli, data, server)


def journal() -> list[dict[str, Any]]:
    return [row for file in sorted(Path("run").glob("journal*.jsonl")) for row in read_lines(file)]


def planned(cli: Cli, data: Path, shots: str = "2") -> dict[Any, dict[str, Any]]:
    """The plan of the chat rendering, by query."""
    result = cli("plan", "coco", "--checkpoint", "openai:tiny", "--data-root", data, "--shots", shots, "--seeds", "42", "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {row["query_id"]: row for row in map(json.loads, result.stdout.splitlines())}


COMMAND = (sys.executable, "-m", "flamingo_eval", "coco", "--checkpoint", "openai:tiny", "--shots", "2", "--seeds", "42",
           "--concurrency", "4", "--out", "run")  # fmt: skip
