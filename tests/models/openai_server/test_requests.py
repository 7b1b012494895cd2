"""``openai:MODEL`` against a scripted server: what it is sent, what goes wrong, what it costs, kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.chat_server import ChatServer, Fault, Seen
from tests.support.helpers import Cli, read_lines
from tests.support.server_runs import COMMAND, QUERIES, Runner, journal, planned

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-requests", "39"), "more than --max-requests 39; none of the queries was asked"),
        (("--max-cost", "1"), "--max-cost needs --price-in and --price-out"),
        (
            ("--max-cost", "0.005", "--price-in", "1", "--price-out", "1"),
            "more than --max-cost 0.005; none of the queries was asked",
        ),
        (("--device", "cuda"), "runs as its server is configured"),
        (("--precision", "fp16"), "runs as its server is configured"),
        (("--rendering", "interleaved"), "a server is sent conversations"),
        (("--image-tokens", "4"), "--image-tokens does not apply to it"),
        (("--ca-file", "nowhere.pem"), "--ca-file nowhere.pem does not exist"),
        (("--timeout", "0"), "give a number of seconds above 0"),
        (("--max-cost", "-1"), "give an amount from 0 on"),
    ],
)
def test_what_makes_no_sense_is_reported_before_anything_is_asked(
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


@pytest.mark.parametrize("with_what", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_kill_under_load_costs_what_was_under_way(
    with_what: signal.Signals, data: Path, server: ChatServer, run: Runner
) -> None:
    server.pause = 0.3
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
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


def test_several_processes_share_a_run(data: Path, server: ChatServer) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
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
