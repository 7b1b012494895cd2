"""``openai:MODEL`` against a scripted server: what it is sent, what goes wrong, what is journalled, what it costs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.models.openai_server import client as client_module
from flamingo_eval.models.openai_server.endpoint import with_version
from flamingo_eval.models.openai_server.ranking import alike, mean_of
from flamingo_eval.models.openai_server.replies import PromptToken, completion, error_text
from tests.support.chat_server import ChatServer, Fault, Seen
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


def test_the_server_is_sent_the_plan(run: Runner, cli: Cli, data: Path, server: ChatServer) -> None:
    """The messages of the plan, with each file's own bytes in place of its path, once for each query."""
    result = run()
    assert result.returncode == 0, result.stderr
    plan = planned(cli, data)
    sent = {row["raw"]: row["query_id"] for row in journal()}
    assert len(sent) == len(server.requests) == QUERIES
    for seen in server.requests:
        wanted = plan[sent[server.answer(seen)]]
        assert seen.images == tuple(hashlib.sha256((data / path).read_bytes()).hexdigest() for path in wanted["images"])
        assert len(seen.images) == 3
        shown = [
            {**message, "content": [part if "text" in part else {"type": "image_url"} for part in message["content"]]}
            for message in wanted["prompt"]
        ]
        for message in seen.body["messages"]:
            for part in message["content"]:
                if "image_url" in part:
                    assert part.pop("image_url")["url"].startswith("data:image/png;base64,")
        assert seen.body["messages"] == shown
        rest = {key: value for key, value in seen.body.items() if key != "messages"}
        assert rest == {"model": "tiny", "temperature": 0, "seed": 0, "repetition_penalty": 1, "max_tokens": 30}
    reply = journal()[0]["reply"]
    assert reply.keys() == {"finish_reason", "prompt_tokens", "completion_tokens", "seconds"}
    assert "note: 40 requests to http://127.0.0.1" in result.stderr
    assert "43 requests, 0 retries" in result.stderr, "one to see whether it answers, two to count an image's tokens"
    record = json.loads(Path("run/run.json").read_text())
    assert record["checkpoint"]["server"] | {"server": ""} == {
        "root": "/models/tiny",
        "server": "",
        "answers as": "tiny",
        "address": f"{server.url}/v1",
        "asked with": "temperature 0, repetition_penalty 1",
    }
    assert record["sessions"][0]["usage"]["requests"] == 43
    assert "answers come from a server: not reproducible by us" in result.stdout


FAULTS: dict[str, Callable[[Seen], Fault | None]] = {
    "429 with Retry-After": lambda seen: Fault(status=429, headers={"Retry-After": "0.05"}) if seen.attempt == 0 else None,
    "429": lambda seen: Fault(status=429) if seen.attempt < 2 else None,
    "503": lambda seen: Fault(status=503) if seen.attempt == 0 else None,
    "500": lambda seen: Fault(status=500, body=b"<html>oops") if seen.attempt < 3 else None,
    "reset": lambda seen: Fault("reset") if seen.attempt == 0 else None,
    "half a reply": lambda seen: Fault("half") if seen.attempt == 0 else None,
    "slow": lambda seen: Fault("slow", status=2) if seen.attempt == 0 and int(seen.images[-1], 16) % 4 == 0 else None,
    "no JSON": lambda seen: Fault(status=200, body=b"all is well") if seen.attempt == 0 else None,
    "half a character": lambda seen: Fault(status=200, body=b'{"choices": "\xff') if seen.attempt == 0 else None,
    "no choice": lambda seen: Fault(status=200, body={"choices": []}) if seen.attempt == 0 else None,
    "two choices": lambda seen: Fault(status=200, body={"choices": [{"message": {"content": x}} for x in "ab"]}) if seen.attempt == 0 else None,
    "a list": lambda seen: Fault(status=200, body=[1, 2]) if seen.attempt == 0 else None,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_be_better_the_next_time_is_asked_again(
    fault: str, run: Runner, cli: Cli, data: Path, server: ChatServer
) -> None:
    """Whatever goes wrong for a while, every query gets its one answer, and no more are under way than allowed."""
    server.fault = lambda seen: None if seen.is_probe else FAULTS[fault](seen)
    result = run("--concurrency", "5", *(("--timeout", "1") if fault == "slow" else ()))
    assert result.returncode == 0, result.stderr
    rows = journal()
    assert Counter(row["query_id"] for row in rows) == dict.fromkeys(planned(cli, data), 1)
    assert len({row["raw"] for row in rows}) == QUERIES
    assert server.most <= 5 or fault == "slow", "which works on at what nobody waits for any more"
    counted = json.loads(Path("run/run.json").read_text())["sessions"][0]["usage"]
    assert counted["requests"] == len(server.requests) + len(server.probes)
    assert counted["retries"] == len(server.requests) - QUERIES > 0
    assert sum(row["reply"].get("requests", 1) for row in rows) == len(server.requests)
    if fault.startswith(("429", "503")):
        assert "the server pushes back" in result.stderr


NAMED: dict[str, tuple[Callable[[Seen], Fault | None], str]] = {
    "too many images": (
        lambda _: Fault(status=400, body={"error": {"message": "At most 2 image(s) may be provided.", "code": 400}}),
        "the server refuses (400): At most 2 image(s) may be provided.",
    ),
    "a form of errors like FastAPI's": (lambda _: Fault(status=422, body={"detail": "too long"}), "the server refuses (422): too long"),
    "always broken": (lambda _: Fault(status=500), "the server did not answer, asked 3 times: 500 something broke"),
    "never JSON": (lambda _: Fault(status=200, body=b"x"), "asked 3 times: its reply is no JSON"),
    "null": (
        lambda _: Fault(status=200, body={"choices": [{"message": {"content": None}, "finish_reason": "length"}]}),
        "the server's reply has no text (finish_reason length)",
    ),
    "empty": (lambda _: Fault(status=200, body={"choices": [{"message": {"content": ""}}]}), "has no text (it gives no reason)"),
    "a filter": (
        lambda _: Fault(status=200, body={"choices": [{"message": {"content": "I"}, "finish_reason": "content_filter"}]}),
        "no text (finish_reason content_filter)",
    ),
    "a refusal": (
        lambda _: Fault(status=200, body={"choices": [{"message": {"content": None, "refusal": "I will not"}}]}),
        "no text (it gives no reason; I will not)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", NAMED)
def test_what_stays_wrong_is_named_after_everything_else(
    fault: str, run: Runner, cli: Cli, data: Path, server: ChatServer
) -> None:
    """Two queries of forty fail alone; the same command asks only these again, once the server does better."""
    plan = planned(cli, data)
    bad = {
        hashlib.sha256((data / row["images"][-1]).read_bytes()).hexdigest(): id
        for id, row in list(plan.items())[10:12]
    }  # fmt: skip
    make, message = NAMED[fault]
    server.fault = lambda seen: make(seen) if seen.images and seen.images[-1] in bad and len(seen.images) == 3 else None
    result = run("--retries", "2")
    assert result.returncode == 2
    assert "2 queries could not be answered; everything else is answered and saved" in result.stderr
    assert message in result.stderr
    assert len(journal()) == QUERIES - 2
    assert (
        {row["query_id"] for row in read_lines(Path("run/failures.jsonl"))} == set(bad.values())
        if Path("run/failures.jsonl").exists()
        else True
    )
    asked = len(server.requests)
    server.fault = lambda _: None
    assert run().returncode == 0
    assert len(server.requests) == asked + 2
    assert Counter(row["query_id"] for row in journal()) == dict.fromkeys(plan, 1)


STOPS: dict[str, tuple[Fault, str]] = {
    "a wrong key": (Fault(status=401, body={"error": {"message": "Incorrect API key provided: sk-very-secret"}}), "Incorrect API key provided: [key]"),
    "elsewhere": (Fault(status=307, headers={"Location": "http://user:pw@example.org/v1/x"}), "redirects to http://example.org, and redirects are not followed"),
    "no more money": (Fault(status=429, body={"error": {"message": "pay", "code": "insufficient_quota"}}), "nothing more can be asked with this key"),
    "another model": (Fault(status=200, body={"model": "other", "choices": [{"message": {"content": "x"}}]}), "answered as tiny and now answers as other"),
}  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_what_no_query_would_fare_better_with_ends_the_run(
    stop: str, run: Runner, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message; what is answered by then is kept, and those under way are waited for."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    fault, message = STOPS[stop]
    server.fault = lambda seen: fault if not seen.is_probe and len(server.requests) > 20 else None
    result = run("--concurrency", "4")
    assert result.returncode == 2
    assert message in result.stderr
    assert "sk-very-secret" not in result.stderr
    assert 20 <= len(server.requests) <= 20 + 4 + 1
    assert len(journal()) == 20
    server.fault = lambda _: None
    assert run().returncode == 0
    assert len(journal()) == QUERIES


def test_a_server_that_has_gone_is_given_up(run: Runner, server: ChatServer) -> None:
    """Not after hours, in which every query is asked as often as it may be."""
    server.fault = lambda _: Fault("reset") if len(server.requests) > 20 else None
    result = run("--retries", "20", "--concurrency", "2")
    assert result.returncode == 2
    assert "does not answer any more (the connection broke" in result.stderr
    assert len(server.requests) <= 20 + 32 + 4
    assert json.loads(Path("run/run.json").read_text())["sessions"][0]["usage"]["requests"] > 40


def test_queries_that_never_get_an_answer_are_named_however_many_there_are(run: Runner, server: ChatServer) -> None:
    """As long as the server answers something else: it is asked before it is given up."""
    server.fault = lambda seen: Fault(status=500) if not seen.is_probe else None
    result = run("--retries", "3", "--concurrency", "2")
    assert result.returncode == 2
    assert "40 queries could not be answered" in result.stderr
    assert result.stderr.count("the server did not answer, asked 4 times: 500 something broke") == 1
    assert len(server.requests) == 4 * QUERIES


def test_a_key_that_was_taken_is_not_blamed_for_one_image(run: Runner, server: ChatServer) -> None:
    """Some services refuse an image with 403: a query's own failure, but for the first request of all."""
    flagged = Fault(status=403, body={"error": {"message": "flagged"}})
    server.fault = lambda seen: flagged if not seen.is_probe and len(server.requests) == 7 else None
    result = run("--concurrency", "1")
    assert "1 queries could not be answered" in result.stderr
    assert "the server refuses (403): flagged" in result.stderr
    server.fault = lambda _: flagged
    assert "answers 403 (flagged): no key was sent" in run().stderr


REFUSED = {
    "seed": "Extra inputs are not permitted: seed",
    "repetition_penalty": "Unrecognized request argument supplied: repetition_penalty",
    "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
}


@pytest.mark.parametrize("lacking", [("seed",), ("repetition_penalty",), ("max_tokens", "temperature"), tuple(REFUSED)])
def test_servers_that_take_less_are_asked_for_less(lacking: tuple[str, ...], run: Runner, server: ChatServer) -> None:
    """Found out by one small request after the other; what changes answers is said under the table."""

    def refuse(seen: Seen) -> Fault | None:
        named = next((key for key in lacking if key in seen.body), None)
        return Fault(status=400, body={"error": {"message": REFUSED[named]}}) if named else None

    server.fault = refuse
    result = run()
    assert result.returncode == 0, result.stderr
    assert len(server.requests) == QUERIES
    assert ("answers are sampled, not greedy" in result.stdout) == ("temperature" in lacking)


@pytest.mark.parametrize("problem", ["nobody there", "no such model", "another page"])
def test_a_server_that_is_none_is_found_out_before_anything_is_planned(
    problem: str, cli: Cli, data: Path, server: ChatServer
) -> None:
    url, model = server.url, "tiny"
    if problem == "nobody there":
        server.close()
    elif problem == "no such model":
        model = "huge"
    else:
        url += "/elsewhere"
    result = cli("coco", "--checkpoint", f"openai:{model}", "--base-url", url, "--data-root", data, "--retries", "1",
                 "--shots", "0", "--out", "run")  # fmt: skip
    assert result.returncode == 2
    wanted = {"nobody there": "no connection", "no such model": "its models are tiny", "another page": "404"}
    assert wanted[problem] in result.stderr
    assert not Path("run").exists()


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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-requests", "39"), "more than --max-requests 39; none of the queries was asked"),
        (("--max-cost", "1"), "--max-cost needs --price-in and --price-out"),
        (
            ("--max-cost", "0.005", "--price-in", "1", "--price-out", "1"),
            "more than --max-cost 0.005; none of the queries was asked",
        ),
        (("--device", "cuda"), "runs as its server was told to"),
        (("--precision", "fp16"), "runs as its server was told to"),
        (("--rendering", "interleaved"), "a server is sent conversations"),
        (("--image-tokens", "4"), "--image-tokens does not apply to it"),
        (("--ca-file", "nowhere.pem"), "--ca-file nowhere.pem does not exist"),
        (("--timeout", "0"), "give a number of seconds above 0"),
        (("--max-cost", "-1"), "give an amount from 0 on"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_asked(
    more: tuple[str, ...], message: str, run: Runner, server: ChatServer
) -> None:
    result = run(*more)
    assert result.returncode == 2
    assert message in result.stderr
    assert server.requests == []


def test_requests_and_cost_are_bounded_while_it_runs(run: Runner, server: ChatServer) -> None:
    """Retries count: the bound holds whatever happens, what is answered stays, and more is allowed later."""
    server.fault = lambda seen: Fault(status=500) if not seen.is_probe and seen.attempt == 0 else None
    result = run("--max-requests", "50")
    assert result.returncode == 2
    assert "50 requests were sent, as many as --max-requests allows; what is answered is saved" in result.stderr
    assert len(server.requests) + len(server.probes) == 50
    answered = len(journal())
    assert answered == len({row["query_id"] for row in journal()})
    server.fault = lambda _: None
    result = run("--price-in", "1000", "--price-out", "0", "--max-cost", "1e6")
    assert result.returncode == 0
    assert len(journal()) == QUERIES
    usage = json.loads(Path("run/run.json").read_text())["sessions"][-1]["usage"]
    assert usage["cost"] == pytest.approx(usage["prompt tokens"] / 1000)


def test_fewer_requests_while_the_server_pushes_back(run: Runner, server: ChatServer) -> None:
    """It takes two at once; sixteen are tried, and soon hardly any are refused."""
    server.pause = 0.02
    server.fault = lambda seen: Fault(status=429) if not seen.is_probe and server._under_way > 2 else None
    result = run()
    assert result.returncode == 0, result.stderr
    refused = len(server.requests) - QUERIES
    assert 0 < refused < 60
    assert [line for line in result.stderr.splitlines() if "pushes back" in line][-1].endswith(" at once for now")


COMMAND = (sys.executable, "-m", "flamingo_eval", "coco", "--checkpoint", "openai:tiny", "--shots", "2", "--seeds", "42",
           "--concurrency", "4", "--out", "run")  # fmt: skip


@pytest.mark.parametrize("with_what", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_kill_under_load_costs_what_was_under_way(
    with_what: signal.Signals, data: Path, server: ChatServer, run: Runner
) -> None:
    server.pause = 0.3
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*COMMAND, "--base-url", server.url, "--data-root", str(data)]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started the tests may ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.requests) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(with_what)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == (-signal.SIGKILL if with_what == signal.SIGKILL else 130), err
    time.sleep(0.5)  # until the server has given up what nobody waits for
    server.most = 0
    assert run("--concurrency", "4").returncode == 0
    assert Counter(row["query_id"] for row in journal()).most_common(1)[0][1] == 1
    assert len(journal()) == QUERIES
    assert len(server.requests) <= QUERIES + 4, "only what was under way is asked again"
    assert server.most <= 4


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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
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


def test_prompt_logprobs_that_can_not_be_used_are_told_apart() -> None:
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


def test_replies_are_read_and_errors_are_told_in_the_servers_words() -> None:
    said = completion(b'{"choices": [{"message": {"content": "hi", "tool_calls": []}, "more": 1}], "usage": {"x": 1}}')
    assert said.text() == "hi"
    assert error_text(b'{"object": "error", "message": "context", "code": 400}') == ("context", "400")
    assert error_text(b'{"error": "gone"}') == ("gone", "")
    assert error_text(b"") == ("nothing", "")
    assert error_text(b"x" * 9999)[0].endswith("x...")
    assert len(error_text(b"[" * 100_000)[0]) < 600


def test_a_gate_needs_to_be_told_that_answers_may_change(run: Runner, cli: Cli) -> None:
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


def test_several_processes_share_a_run(data: Path, server: ChatServer) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*COMMAND, "--base-url", server.url, "--data-root", str(data)]
    processes = [
        subprocess.Popen([*command, "--process", f"{rank}/2"], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert Counter(row["query_id"] for row in journal()).most_common(1)[0][1] == 1
    assert len(journal()) == len(server.requests) == QUERIES


@pytest.mark.parametrize(
    "url",
    ["http://a..b", f"http://{'x' * 70}.com", "http://\u2603.localhost:1", "http://x/" + "y" * 3000, "http://[v1.x]"],
)
def test_odd_addresses_are_user_errors(url: str, cli: Cli, data: Path) -> None:
    result = cli("coco", "--checkpoint", "openai:tiny", "--base-url", url, "--data-root", data, "--retries", "0")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
