"""``openai:MODEL``: what is read of replies, rankings, keys, images, and what such numbers are worth."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.models.openai_server.endpoint import with_version
from flamingo_eval.models.openai_server.ranking import alike, mean_of
from flamingo_eval.models.openai_server.replies import PromptToken, completion, error_text
from tests.support.chat_server import ChatServer, Fault, Seen
from tests.support.helpers import Cli, read_lines
from tests.support.server_runs import COMMAND, QUERIES, Runner, journal

pytestmark = pytest.mark.slow


def test_a_key_that_was_taken_is_not_blamed_for_one_image(run: Runner, server: ChatServer) -> None:
    """Some services refuse an image with 403: a query's own failure, but for the first request of all."""
    flagged = Fault(status=403, body={"error": {"message": "flagged"}})
    server.fault = lambda seen: flagged if not seen.is_probe and len(server.requests) == 7 else None
    result = run("--concurrency", "1")
    assert "1 queries could not be answered" in result.stderr
    assert "the server refuses (403): flagged" in result.stderr
    server.fault = lambda _: flagged
    assert "answers 403 (flagged): no key was sent" in run().stderr


def test_an_address_is_needed_and_can_come_from_the_environment(
    cli: Cli, data: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("coco", "--checkpoint", "openai:tiny", "--data-root", data, "--shots", "0", "--num-samples", "2",
               "--trials", "1", "--out", "run")  # fmt: skip
    result = cli(*command)
    assert result.returncode == 2
    assert "where is the server? Say --base-url" in result.stderr
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1/")
    assert cli(*command).returncode == 0
    assert with_version("https://example.org/api/v3/", "x") == "https://example.org/api/v3"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://a:b@c/v1", "http://x/v1?key=1", "http://x:port", "http://"]
)
def test_addresses_that_are_none_are_refused(url: str, cli: Cli, data: Path) -> None:
    result = cli("coco", "--checkpoint", "openai:tiny", "--base-url", url, "--data-root", data)
    assert result.returncode == 2
    assert "--base-url" in result.stderr


def test_a_model_that_changes_between_start_and_resume_is_noticed(run: Runner, server: ChatServer) -> None:
    assert run("--num-samples", "5").returncode == 0
    server.card = {"id": "tiny", "root": "/models/other", "created": 7}
    result = run("--num-samples", "5", shots="2,4")
    assert result.returncode == 2
    assert "root was /models/tiny and is /models/other" in result.stderr
    server.card = {"id": "tiny", "root": "/models/tiny", "created": 99, "max_model_len": 9}
    assert run("--num-samples", "5", shots="2,4").returncode == 0, "when it was listed does not matter"
    server.card["max_model_len"] = 99
    result = run("--num-samples", "5", shots="2,4,5")
    assert result.returncode == 0
    assert "has changed since this run began: max model len was 9 and is 99" in result.stderr
    server.card = None
    assert run("--num-samples", "5", shots="2,4,6").returncode == 0, "a server that says nothing is no other one"


@pytest.mark.parametrize("where", ["environment", "file"])
def test_the_key_stands_nowhere(where: str, data: Path, server: ChatServer, tmp_path: Path) -> None:
    """In no file, message or traceback, whatever goes wrong; and it is sent to this server alone."""
    key = "sk-5ecret-0123456789"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    more: tuple[str, ...] = ()
    if where == "environment":
        environment["OPENAI_API_KEY"] = key
    else:
        (tmp_path / "key").write_text(f"{key}\n")
        more = ("--api-key-file", str(tmp_path / "key"))
    outputs = []
    for number, (fault, always) in enumerate([
        (Fault(status=500), False), (Fault(status=401, body={"error": {"message": f"bad key {key}"}}), True),
        (Fault("reset"), True), (Fault(status=302, headers={"Location": "http://example.org/"}), True),
    ]):  # fmt: skip
        server.fault = lambda seen, fault=fault, always=always: fault if always or seen.attempt == 0 else None  # type: ignore[misc]
        command = [*COMMAND[:3], "--debug", *COMMAND[3:], "--base-url", server.url, "--data-root", str(data), "--retries", "2",
                   "--out", f"run{number}", *more]  # fmt: skip
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == (2 if always else 0), result.stderr
        outputs.append(result.stdout + result.stderr)
    assert any("Traceback" in text for text in outputs)
    assert key not in "".join(outputs)
    assert all(seen.key == f"Bearer {key}" for seen in server.requests + server.probes)
    for file in Path("run0").rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file


def test_images_are_made_anew_only_where_they_have_to_be(run: Runner, data: Path, server: ChatServer) -> None:
    """A GIF that is called PNG, and images larger than --max-pixels; others are the file's own bytes."""
    import base64
    import io

    gif = sorted((data / "coco/val2014").iterdir())[0]
    with Image.open(gif) as opened:
        opened.save(gif, "GIF")
    large = sorted((data / "coco/val2014").iterdir())[1]
    Image.new("RGB", (200, 50), "red").save(large, "PNG")
    assert run("--max-pixels", "2500", shots="0").returncode == 0
    kinds = {}
    for seen in server.requests:
        address = seen.body["messages"][-1]["content"][0]["image_url"]["url"]
        content = base64.b64decode(address.partition(",")[2])
        with Image.open(io.BytesIO(content)) as opened:
            kinds[opened.size, opened.format] = address.partition(";")[0]
    assert kinds[(100, 25), "PNG"] == "data:image/png"
    sent = {seen.images[0] for seen in server.requests}
    files = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (data / "coco/val2014").iterdir()}
    assert len(sent - files) == 2


def test_only_files_that_are_images_are_sent(run: Runner, data: Path, server: ChatServer, tmp_path: Path) -> None:
    """A secret that is called an image, a device, a file that is not there: each fails alone, by name."""
    first, second, third = sorted((data / "coco/val2014").iterdir())[:3]
    (tmp_path / "secret").write_text("password")
    first.unlink()
    first.symlink_to(tmp_path / "secret")
    second.unlink()
    os.mkfifo(second)
    third.unlink()
    result = run(shots="0")
    assert result.returncode == 2
    assert "3 queries could not be answered" in result.stderr
    assert all(name.name in result.stderr for name in (first, second, third))
    assert len(server.requests) == QUERIES - 3


def test_names_are_ranked_by_prompt_logprobs_where_they_hold(cli: Cli, server: ChatServer) -> None:
    """vLLM's: the mean over a name's own tokens."""
    server.listed = "prompt"
    result = cli("hateful_memes", "--checkpoint", "openai:tiny", "--base-url", server.url, "--data-root", "demo",
                 "--shots", "0", "--num-samples", "6", "--trials", "1", "--out", "run")  # fmt: skip
    assert "class names ranked by prompt_logprobs" in result.stdout + result.stderr
    rows = read_lines(Path("run/journal.jsonl"))
    wanted = {name: sum(-ord(letter) / 100 for letter in name) / len(name) for name in ("no", "yes")}
    assert all(row["class_logprobs"] == pytest.approx(wanted) for row in rows)
    assert all(row["reply"]["requests"] == 3 for row in rows)
    assert len(server.requests) == 18


def test_names_are_ranked_by_top_logprobs_else(cli: Cli, server: ChatServer) -> None:
    """``prompt_logprobs`` that depend on the order of requests are not used (vLLM issue 42019)."""
    for listed in ("unstable", "top"):
        server.listed = listed
        command = ("hateful_memes", "--checkpoint", "openai:tiny", "--base-url", server.url, "--data-root", "demo",
                   "--shots", "0", "--num-samples", "20", "--trials", "1", "--out", listed)  # fmt: skip
        result = cli(*command)
        if listed == "unstable":
            assert result.returncode == 2
            assert "the same prompt has other numbers when it is asked again" in result.stderr
            assert "top_logprobs (the server passes the request over)" in result.stderr
            continue
        assert result.returncode == 0, result.stderr
        assert "class names ranked by top_logprobs" in result.stdout
        rows = read_lines(Path(listed, "journal.jsonl"))
        assert {row["class_logprobs"]["no"] for row in rows} == {-2.5}
        assert len({row["class_logprobs"]["yes"] for row in rows}) > 10


def test_a_server_without_log_probabilities_can_not_rank(cli: Cli, server: ChatServer) -> None:
    result = cli("hateful_memes", "--checkpoint", "openai:tiny", "--base-url", server.url, "--data-root", "demo", "--shots", "0", "--out", "run")  # fmt: skip
    assert result.returncode == 2
    assert "class names are ranked by log-probabilities, which" in result.stderr
    assert not Path("run").exists()
    server.listed = "top"
    result = cli("imagenet", "--checkpoint", "openai:tiny", "--base-url", server.url, "--data-root", "demo", "--shots", "0", "--out", "run")  # fmt: skip
    assert result.returncode == 2
    assert "begin with the same letter" in result.stderr


def test_names_that_are_not_listed_get_the_least() -> None:
    from flamingo_eval.core.records import NoAnswer, Replied, Reply
    from flamingo_eval.models.openai_server.ranking import from_tokens

    found = from_tokens([("Yes", -0.1), ("\u2581yes", -3.0), ("maybe", -5.0), ("Yes", -9.0)], ["no", "yes"], Reply())
    assert isinstance(found, Replied)
    assert isinstance(found.answer, dict)
    assert found.answer["no"] == -9.0
    assert found.answer["yes"] == pytest.approx(-0.0464, abs=1e-3)  # ln(e^-0.1 + e^-3 + e^-9)
    assert found.reply.unlisted == ("no",)
    assert isinstance(from_tokens([("perhaps", -0.1)], ["no", "yes"], Reply()), NoAnswer)
    assert alike(["red", "blue", "Rose"]) == ("red", "Rose")


def test_prompt_logprobs_that_can_not_be_used_are_distinguished() -> None:
    def places(*tokens: str) -> list[Any]:
        return [None, *({token: PromptToken(-1.0)} for token in tokens)]

    assert mean_of(places("a"), places("a", "b", "c")) == -1.0
    assert mean_of(None, places("a")) == "there are none"
    assert mean_of(places("a"), places("a")) == "the prompt is not longer with a name behind it"
    assert mean_of(places("a"), places("b", "c")) == "the prompt's own tokens are others with a name behind it"
    assert (
        mean_of(places("a"), [*places("a"), {"b": PromptToken(-1.0), "c": PromptToken(-2.0)}])
        == "a place does not hold one token"
    )
    assert mean_of(places("a"), [*places("a"), {"b": PromptToken(float("-inf"))}]) == "one is no number"


def test_replies_are_read_and_errors_are_reported_in_the_servers_words() -> None:
    reply = completion(b'{"choices": [{"message": {"content": "hi", "tool_calls": []}, "more": 1}], "usage": {"x": 1}}')
    assert reply.text() == "hi"
    assert error_text(b'{"object": "error", "message": "context", "code": 400}') == ("context", "400")
    assert error_text(b'{"error": "gone"}') == ("gone", "")
    assert error_text(b"") == ("nothing", "")
    assert error_text(b"x" * 9999)[0].endswith("x...")
    assert len(error_text(b"[" * 100_000)[0]) < 600


def test_a_gate_needs_permission_for_answers_that_may_change(run: Runner, cli: Cli) -> None:
    assert run(shots="0").returncode == 0
    assert cli("check", "run", "--baseline", "b.json", "--update").returncode == 0
    result = cli("check", "run", "--baseline", "b.json")
    assert result.returncode == 2
    assert "--allow-unpinned" in result.stderr
    result = cli("check", "run", "--baseline", "b.json", "--allow-unpinned", "--markdown", "pr.md")
    assert result.returncode == 0, result.stderr
    assert "not reproducible by us" in Path("pr.md").read_text() + result.stderr
    assert "not reproducible by us" in cli("compare", "run", "b.json").stdout


ODD_USAGE: list[Any] = [
    None,
    [],
    {"prompt_tokens": None},
    {"prompt_tokens": -5},
    {"prompt_tokens": 10**400},
    {"completion_tokens": "7"},
    12.5,
]


@pytest.mark.parametrize("usage", ODD_USAGE, ids=str)
def test_a_sound_answer_counts_whatever_the_rest_of_the_reply_is(
    usage: object, run: Runner, server: ChatServer
) -> None:
    """Tokens that are no numbers are not counted."""
    reply = ChatServer.reply

    def odd(seen: Seen) -> Fault | None:
        body = reply(server, seen) | {"usage": usage, "system_fingerprint": 5, "model": "tiny"}
        body["choices"][0]["finish_reason"] = ["stop"]
        return Fault(status=200, body=body)

    server.fault = odd
    assert run("--num-samples", "3").returncode == 0
    assert len(journal()) == 3
    assert "prompt_tokens" not in journal()[0]["reply"]


def test_a_text_in_parts_is_one_text(run: Runner, server: ChatServer) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a "}, {"type": "text", "text": "dog"}]
    server.fault = lambda seen: (
        None if seen.is_probe else Fault(status=200, body={"choices": [{"message": {"content": parts}}]})
    )
    assert run("--num-samples", "1").returncode == 0
    assert journal()[0]["raw"] == "a dog"


@pytest.mark.parametrize("text", ["half \ud800", "\x1b[2J", "a" * 5000])
def test_whatever_a_server_says_can_be_written_down(text: str, run: Runner, server: ChatServer) -> None:
    server.fault = lambda seen: None if seen.is_probe else Fault(status=400, body={"error": {"message": text}})
    result = run("--num-samples", "2")
    assert result.returncode == 2
    assert "2 queries could not be answered" in result.stderr
    assert "\x1b" not in result.stderr
    assert len(result.stderr) < 2500


def test_a_key_that_is_a_word_changes_nothing(run: Runner, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers on one's own machine take any: 'none', 'a'. A real one stands in no answer either, however it is spelled."""
    monkeypatch.setenv("OPENAI_API_KEY", "a")
    assert run("--num-samples", "2").returncode == 0
    assert all(row["raw"].startswith("a thing") for row in journal())
    key = "sk-abc/def+ghi=="
    monkeypatch.setenv("OPENAI_API_KEY", key)
    escaped = json.dumps({"choices": [{"message": {"content": f"it is {key}"}}]}).replace("/", "\\/").encode()
    server.fault = lambda seen: None if seen.is_probe else Fault(status=200, body=escaped)
    assert run("--num-samples", "2", "--fresh").returncode == 0
    assert {row["raw"] for row in journal()} == {"it is [key]"}
    server.fault = lambda seen: (
        None if seen.is_probe else Fault(status=400, body=b'{"error": {"message": "sk-abc\\/def+ghi=="}}')
    )
    assert "def+ghi" not in run("--num-samples", "3", "--fresh").stderr


def test_transient_errors_do_not_change_how_names_are_ranked(cli: Cli, server: ChatServer) -> None:
    server.listed = "prompt"
    server.fault = lambda seen: Fault(status=500) if "prompt_logprobs" in seen.body and seen.is_probe else None
    result = cli("hateful_memes", "--checkpoint", "openai:tiny", "--base-url", server.url, "--data-root", "demo",
                 "--shots", "0", "--num-samples", "6", "--trials", "1", "--retries", "1", "--out", "run")  # fmt: skip
    assert result.returncode == 2
    assert "it can't be found out whether" in result.stderr


@pytest.mark.parametrize(
    "url",
    ["http://a..b", f"http://{'x' * 70}.com", "http://\u2603.localhost:1", "http://x/" + "y" * 3000, "http://[v1.x]"],
)
def test_odd_addresses_are_user_errors(url: str, cli: Cli, data: Path) -> None:
    result = cli("coco", "--checkpoint", "openai:tiny", "--base-url", url, "--data-root", data, "--retries", "0")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
