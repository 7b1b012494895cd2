"""A real server, ``transformers serve``, with the demo that chats: the texts of the same model in this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.models.transformers_vlm import DEMO_BUNDLE
from tests.support.helpers import Cli

pytestmark = [pytest.mark.torch, pytest.mark.slow]
GENERATING = ("coco", "flickr30k", "vqav2", "okvqa", "textvqa", "vizwiz")
HOW = ("--data-root", "demo", "--shots", "0,4", "--num-samples", "6", "--trials", "1")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("hf")
    (home / "hub").mkdir()  # its list of models looks there
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(DEMO_BUNDLE), "--device", "cpu",
               "--dtype", "float32", "--port", str(port), "--default-seed", "0"]  # fmt: skip
    log = (home / "log").open("wb")
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while not healthy(url):
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, "it does not come up"
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def texts(cli: Cli, run: str) -> dict[Any, str]:
    result = cli("samples", run)
    assert result.returncode == 0, result.stderr
    rows = map(json.loads, result.stdout.splitlines())
    return {(row["benchmark"], row["shots"], row["query_id"]): row["raw"] for row in rows}


def test_the_texts_are_those_of_the_model_in_this_process(serving: str, cli: Cli) -> None:
    served = cli("run", *GENERATING, "--checkpoint", f"openai:{DEMO_BUNDLE}", "--base-url", serving, *HOW,
                 "--concurrency", "4", "--out", "served")  # fmt: skip
    assert served.returncode == 0, served.stderr
    local = cli("run", *GENERATING, "--checkpoint", "demo-chat", "--device", "cpu", *HOW, "--out", "local")
    assert local.returncode == 0, local.stderr
    found, wanted = texts(cli, "served"), texts(cli, "local")
    assert len(wanted) == len(GENERATING) * 2 * 6
    assert found == wanted
    row = json.loads(Path("served/journal.jsonl").read_text().splitlines()[0])
    assert row["reply"]["prompt_tokens"] > 16
    assert row["reply"]["finish_reason"] in ("stop", "length")


def test_that_it_passes_log_probabilities_over_is_noticed(serving: str, cli: Cli) -> None:
    """It answers such requests with a 200, and without them."""
    result = cli("hateful_memes", "--checkpoint", f"openai:{DEMO_BUNDLE}", "--base-url", serving, *HOW, "--out", "run")
    assert result.returncode == 2
    assert "class names are ranked by log-probabilities" in result.stderr
    assert "top_logprobs (the server passes the request over)" in result.stderr
    assert not Path("run").exists()
