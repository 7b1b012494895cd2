"""What a reader does with the page, in a real Chromium: against a server, and against files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from tests.support.viewing import Proxy, slow_run, viewing, wait_for

if TYPE_CHECKING:
    import pandas
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


def samples(run: Path) -> pandas.DataFrame:
    """What ``samples`` writes of a run."""
    import pandas

    out = run.with_name(f"{run.name}.jsonl")
    subprocess.run(
        [sys.executable, "-m", "flamingo_eval", "samples", str(run), "--out", str(out)], check=True, capture_output=True
    )
    return pandas.read_json(out, lines=True, dtype={"query_id": str})


@pytest.fixture(scope="module")
def both(demo_run: Path, scripted_run: Path) -> Iterator[str]:
    """Two runs, served."""
    with viewing(demo_run, scripted_run) as address:
        yield address


@pytest.fixture(scope="module", params=["server", "files"])
def where(request: pytest.FixtureRequest, demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One run, served or as files."""
    if request.param == "server":
        with viewing(demo_run) as address:
            yield address
    else:
        folder = tmp_path_factory.mktemp("bundle") / "page"
        subprocess.run(
            [sys.executable, "-m", "flamingo_eval", "view", str(demo_run), "--bundle", str(folder)],
            check=True,
            capture_output=True,
        )
        yield f"file://{folder}/index.html"


def rows(page: Page) -> list[list[str]]:
    """Trial, id, answer and score of the rows that are shown."""
    page.wait_for_function("() => document.getElementById('count')?.innerText.includes('on their way') === false")
    script = """() => [...document.querySelectorAll("table.answers tbody tr")].map((row) =>
        ["trial", "id", "answer", "score"].map((name) => row.querySelector("td." + name).innerText.trim()))"""
    found: list[list[str]] = page.evaluate(script)
    return found


@pytest.mark.torch
def test_from_the_table_to_the_demonstrations(page: Page, where: str, demo_run: Path, proxy: Proxy) -> None:
    """Run, list, sort, an answer, four demonstrations whose images are there, keys, an address of its own."""
    asked = len(proxy.hosts)
    page.goto(where)
    table = page.locator("section", has=page.get_by_role("heading", name="Scores", exact=True)).first
    report = json.loads(subprocess.run([sys.executable, "-m", "flamingo_eval", "report", str(demo_run), "--format", "json"],
                                       check=True, capture_output=True, text=True).stdout)  # fmt: skip
    for cell in report["cells"]:
        assert f"{cell['mean']:.1f} ({cell['std']:.1f})" in table.inner_text()
    assert page.locator("figure svg.curve").count() == 3
    cell = next(c for c in report["cells"] if (c["benchmark"], c["shots"]) == ("okvqa", 4))
    page.get_by_role("link", name=f"{cell['mean']:.1f} ({cell['std']:.1f})").click()
    shown = rows(page)
    assert len(shown) == 80
    assert {row[0] for row in shown} == {"okvqa, 4 shots, seed 42", "okvqa, 4 shots, seed 43"}
    page.get_by_label("Order").select_option("score-down")
    scores = [float(row[3]) for row in rows(page)]
    assert scores == sorted(scores, reverse=True)
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = rows(page)[1]
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=f"Query {second[1]}").wait_for()
    page.locator(".turns img").first.wait_for()
    assert page.locator(".turns li.demonstration img").count() == 4
    page.wait_for_function(
        "() => [...document.images].length === 5 && [...document.images].every((one) => one.complete && one.naturalWidth > 0)"
    )
    detail = details(demo_run, "okvqa", 4, int(second[0].rpartition(" ")[2]), second[1])
    assert [item.split()[1] for item in page.locator(".demonstration .what").all_inner_texts()] == [
        str(d["id"]) for d in detail["demonstrations"]
    ]
    assert page.locator(".demonstration .given").all_inner_texts() == [d["answer"] for d in detail["demonstrations"]]
    assert page.locator(".final").inner_text() == detail["answer"]
    page.locator(".explanation li").first.wait_for()
    agree = [a["text"] for a in detail["references"]["answers"]].count(detail["answer"])
    assert f"{agree} of 10 annotators" in page.locator(".explanation").inner_text()
    here, address = rows_at(page), page.url
    page.keyboard.press("j")
    page.wait_for_function("(before) => document.querySelector('h1').innerText !== before", arg=here)
    page.keyboard.press("k")
    page.wait_for_function("(before) => document.querySelector('h1').innerText === before", arg=here)
    page.goto("about:blank")
    page.goto(address)
    page.get_by_role("heading", name=f"Query {second[1]}").wait_for()
    page.keyboard.press("Escape")
    assert rows(page)[0][3] == f"{scores[0]:.1f}"
    assert all(host.startswith("127.0.0.1") for host in proxy.hosts[asked:]), proxy.hosts
    assert where.startswith("http") or proxy.hosts[asked:] == []


def rows_at(page: Page) -> str:
    return page.locator("h1").inner_text()


def details(run: Path, benchmark: str, shots: int, seed: int, id: str) -> dict[str, Any]:
    """What ``show`` says of an answer."""
    command = [sys.executable, "-m", "flamingo_eval", "show", str(run), "--query", id, "--benchmark", benchmark, "--shots", str(shots), "--seed", str(seed), "--json"]  # fmt: skip
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.mark.torch
@pytest.mark.parametrize(
    ("chosen", "query"),
    [
        ({"benchmark": "coco", "min": "200", "max": "500"}, "benchmark == 'coco' and 200 <= score <= 500"),
        ({"shots": "4", "seed": "43", "text": "RED"}, "shots == 4 and seed == 43 and text.str.contains('red')"),
        ({"benchmark": "hateful_memes", "kind": "yes"}, "benchmark == 'hateful_memes' and references == 'yes'"),
        ({"text": "who owns", "max": "0"}, "text.str.contains('who owns') and score <= 0"),
        ({"state": "failed"}, "shots < 0"),
    ],
)
def test_a_filter_is_what_pandas_finds(
    page: Page, where: str, demo_run: Path, chosen: dict[str, str], query: str
) -> None:
    frame = samples(demo_run)
    asked = frame["prompt"].str.rpartition("Question:")[2].where(frame["benchmark"] == "okvqa", "")
    first = frame["references"].map(lambda found: found[0] if isinstance(found, list) else "")
    frame["text"] = (frame["query_id"] + "\n" + asked + "\n" + first + "\n" + frame["answer"]).str.lower()
    if "red" in query:
        memes = frame["prompt"].str.rpartition("is an image with: ")[2]
        frame["text"] += memes.where(frame["benchmark"] == "hateful_memes", "").str.lower()
    expected = frame.query(query, engine="python")
    assert len(expected) > 3 or chosen == {"state": "failed"}
    page.goto(f"{where}#/answers?{urlencode(chosen)}")
    found: list[list[str]] = []
    while True:
        found += rows(page)
        following = page.get_by_role("button", name="Next page")
        if following.is_disabled():
            break
        before = page.locator("#count").inner_text()
        following.click()
        page.wait_for_function("(before) => document.getElementById('count').innerText !== before", arg=before)
    names = [f"{row.benchmark}, {row.shots} shots, seed {row.seed}" for row in expected.itertuples()]
    assert sorted((row[0], row[1], row[2]) for row in found) == sorted(
        zip(names, expected["query_id"], expected["answer"], strict=True)
    )


@pytest.mark.torch
def test_two_runs(page: Page, both: str, demo_run: Path, scripted_run: Path) -> None:
    """What broke and what was fixed, by how much; the same answers in another order."""
    keys = ["benchmark", "shots", "seed", "query_id"]
    joined = samples(demo_run).merge(samples(scripted_run), on=keys, suffixes=("", "_other"))
    joined["difference"] = joined["score_other"] - joined["score"]
    broke = joined[(joined["benchmark"] == "coco") & (joined["shots"] == 4) & (joined["difference"] < 0)]
    page.goto(f"{both}#/answers?benchmark=coco&shots=4&change=broke&sort=difference-up")
    page.wait_for_selector("table.answers")
    shown = page.locator("td.difference").all_inner_texts()
    assert [float(text.split()[-1]) for text in shown] == pytest.approx(sorted(broke["difference"]), abs=0.051)
    assert {text.split()[0] for text in shown} == {"broke"}
    page.goto(f"{both}#/")
    assert page.locator("figure .legend").first.locator("li").all_inner_texts() == ["demo-run", "scripted-run"]
    page.goto(f"{both}#/answers?change=fixed&benchmark=okvqa")
    fixed = joined[(joined["benchmark"] == "okvqa") & (joined["difference"] > 0)]
    assert len(rows(page)) == len(fixed)
    page.locator("table.answers td.id a").first.click()
    assert "fixed" in page.locator("section", has=page.get_by_role("heading", name="In the other run")).inner_text()


def test_marks(page: Page, scripted_run: Path, tmp_path: Path) -> None:
    """Kept beside the run, not in it; taken back; saved as JSON lines."""
    before = {path.name: path.stat().st_mtime_ns for path in scripted_run.iterdir()}
    kept = scripted_run.with_name(f"{scripted_run.name}.marks.jsonl")
    with viewing(scripted_run) as address:
        page.goto(f"{address}#/answers?benchmark=okvqa")
        page.locator("table.answers td.id a").first.click()
        page.get_by_role("button", name="wrong reference").click()
        page.get_by_role("button", name="wrong reference", pressed=True).wait_for()
        page.get_by_label("A mark in your own words").fill("<b>odd</b> one")
        page.get_by_role("button", name="Add").click()
        page.get_by_text("<b>odd</b> one").wait_for()
        page.get_by_role("button", name="wrong reference").click()
        page.get_by_role("button", name="wrong reference", pressed=False).wait_for()
        page.goto(f"{address}#/marks")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save as JSON lines").click()
        saved.value.save_as(tmp_path / "marks.jsonl")
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(one["tag"], one["gone"]) for one in lines] == [
        ("wrong reference", False),
        ("<b>odd</b> one", False),
        ("wrong reference", True),
    ]
    exported = [json.loads(line) for line in (tmp_path / "marks.jsonl").read_text().splitlines()]
    assert [one["tag"] for one in exported] == ["<b>odd</b> one"]
    assert {path.name: path.stat().st_mtime_ns for path in scripted_run.iterdir()} == before
    kept.unlink()


def test_marks_of_a_bundle_stay_in_the_browser(page: Page, scripted_run: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "flamingo_eval", "view", str(scripted_run), "--bundle", str(tmp_path / "page"), "--limit", "3"],
                   check=True, capture_output=True)  # fmt: skip
    address = f"file://{tmp_path}/page/index.html"
    page.goto(f"{address}#/answers")
    assert len(rows(page)) == 36  # three of each of twelve trials
    page.locator("table.answers td.id a").first.click()
    page.get_by_role("button", name="ambiguous").click()
    page.get_by_role("button", name="ambiguous", pressed=True).wait_for()
    page.goto(f"{address}#/marks")
    assert "1 mark" in page.locator("main").inner_text()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as JSON lines").click()
    saved.value.save_as(tmp_path / "marks.jsonl")
    assert json.loads((tmp_path / "marks.jsonl").read_text())["tag"] == "ambiguous"


def test_answers_appear_while_the_page_is_open(page: Page, tmp_path: Path) -> None:
    """The run is killed and goes on; nobody loads the page anew."""
    command, plugins = slow_run(tmp_path)
    environment = {**os.environ, **plugins, "PYTHONPATH": str(Path(__file__).parents[3])}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    journal = tmp_path / "run/journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 4)
    with viewing(tmp_path / "run", environment=plugins) as address:
        page.goto(f"{address}#/answers?sort=score-down")
        page.wait_for_selector("table.answers tbody tr")
        count = "() => Number(document.getElementById('count').innerText.match(/of ([0-9]+)/)[1])"
        begun = page.evaluate(count)
        assert begun < 120
        page.wait_for_function(f"(before) => ({count})() > before", arg=begun)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert page.evaluate(count) < 120
        done = subprocess.run([*command, "--batch-size", "40"], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        page.wait_for_function(f"() => ({count})() === 120")
        page.wait_for_function("() => document.querySelector('td.score').innerText.includes('.')")
        page.goto(f"{address}#/")
        page.get_by_text("120 of 120 queries answered").wait_for()
        assert page.locator("figure svg.curve").count() == 1


def test_a_server_that_is_gone_is_reported(browser: Browser, scripted_run: Path) -> None:
    """(The browser complains of it too.)"""
    page = browser.new_page()
    with viewing(scripted_run) as address:
        page.goto(address)
        page.get_by_role("heading", name="Scores", exact=True).wait_for()
    page.get_by_text("flamingo-eval view does not answer any more").wait_for()
    page.close()
