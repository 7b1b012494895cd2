"""Tables, plots, comparison, gate, published numbers and cards: what one does with numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from flamingo_eval.analysis.evidence import read_evidence
from flamingo_eval.analysis.published import Published, published
from flamingo_eval.analysis.reproduce import Ours, distinct, judge, setups_of
from flamingo_eval.core.records import Cell, Notes, Trial
from flamingo_eval.report.shown import Interval, Shown
from flamingo_eval.report.table import render_runs
from tests.support.helpers import Cli, run_cli, run_record, scored, write_coco_root

REPOSITORY = Path(__file__).parents[2]


def shown(name: str, *values: float, interval: tuple[float, float] | None = None) -> Shown:
    run = run_record(f"{name}_<model> & co")
    cells = [
        Cell("coco", "test", k, "random", "openflamingo", "CIDEr x 100",
             tuple(Trial(42 + i, value + k, 100, 100) for i, value in enumerate(values)))
        for k in (0, 16)
    ]  # fmt: skip
    intervals = {("coco", k): Interval(interval[0] + k, interval[1] + k) for k in (0, 16)} if interval else {}
    return Shown(name, cells, run, Notes(others=("a note of 5%",)), intervals)


@pytest.mark.parametrize("format", ["table", "markdown", "csv", "latex", "html", "json"])
def test_runs_side_by_side_as_frozen(format: str, golden: Path) -> None:
    """Every format, with everything in it that must be escaped."""
    text = render_runs([shown("a", 70.0, 73.0, 76.0), shown("b", 71.5, interval=(70.0, 73.25))], format)
    if format == "html":  # how matplotlib draws is its own affair
        text, drawn = text.split("<svg", 1)
        assert drawn.endswith("</svg>\n\n</body>\n</html>\n")
    frozen = golden / "tables" / f"two_runs.{format}"
    assert text == frozen.read_text(encoding="utf-8"), f"if that is meant, write {frozen} anew and look at it"


def test_html_is_well_formed_and_escaped() -> None:
    text = render_runs([shown("a", 1.0)], "html")
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            seen.append(tag)

    Reader().feed(text)
    assert {"table", "thead", "tbody", "tr", "th", "td", "details", "svg"} <= set(seen)
    assert not {"script", "img", "iframe", "object", "link", "model"} & set(seen)
    assert "a_&lt;model&gt; &amp; co" in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|rdf:resource="[^"]*"|http-equiv', "", text)
    assert render_runs([shown("a", 1.0)], "html") == text, "the same each time"


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_a_line_of_caption_and_what_it_cant_be_read_without(format: str) -> None:
    few = render_runs([shown("a", 1.0)], format, with_notes=False)
    assert "a note of" not in few
    assert ("1 note more: --notes" in few) == (format != "latex")
    assert "a note of" in render_runs([shown("a", 1.0)], format)


def test_latex_escapes_and_balances() -> None:
    text = render_runs([shown("a", 1.0)], "latex")
    assert r"a\_\textless{}model\textgreater{} \& co" in text
    assert r"5\%" in text
    assert text.count("{") == text.count("}")
    assert len({line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\")}) == 1


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two runs, made by one process."""
    folder = tmp_path_factory.mktemp("two_runs")
    root = write_coco_root(folder / "data", train=12, test=40)
    result = run_cli("run", "coco", "--shots", "0,2", "--checkpoint", "scripted", "--data-root", root, "--out",
                     folder / "good")  # fmt: skip
    assert result.returncode == 0, result.stderr
    shutil.copytree(folder / "good", folder / "bad")
    scored(folder / "good", 100.0, every=1)
    scored(folder / "bad", 60.0, every=2)
    return folder


@pytest.fixture
def two_runs(made_once: Path) -> tuple[Path, Path]:
    """The scripted model, and one that says nothing of what is in half of the images."""
    for name in ("good", "bad", "data"):
        shutil.copytree(made_once / name, name)
    return Path("good"), Path("bad")


@pytest.mark.slow
def test_comparison_and_gate(two_runs: tuple[Path, Path], cli: Cli) -> None:
    good, bad = two_runs
    assert "does not exist; --update writes it" in cli("check", good, "--baseline", "b.json").stderr
    assert cli("check", good, "--baseline", "b.json", "--update").returncode == 0
    kept = Path("b.json").read_text()
    assert str(Path.cwd()) not in kept, "it is shared: no paths"
    assert os.uname().nodename not in json.dumps(json.loads(kept)["sessions"]), "and no names of machines"
    assert json.loads(kept)["sessions"][0]["versions"]["flamingo-eval"]
    for baseline in ("b.json", good):
        same = cli("check", good, "--baseline", baseline, "--junit", "j.xml", "--markdown", "m.md")
        assert same.returncode == 0, same.stderr
        assert Path("m.md").read_text().startswith("**All 2 cells pass**")
        assert ElementTree.parse("j.xml").getroot().attrib == {"tests": "2", "failures": "0"}
    worse = cli("check", bad, "--baseline", "b.json", "--junit", "j.xml", "--markdown", "m.md")
    assert worse.returncode == 1
    assert "coco, 0 shots: dropped by 20.00, more than 1 (p 0.000" in worse.stderr
    assert ElementTree.parse("j.xml").getroot().attrib["failures"] == "2"
    assert Path("m.md").read_text().startswith("**2 of 2 cells failed**")
    assert cli("check", bad, "--baseline", "b.json", "--max-drop", "25").returncode == 0
    assert cli("check", good, "--baseline", bad).returncode == 0, "better is not worse"
    compared = json.loads(cli("compare", bad, "b.json", "--format", "json").stdout)
    for cell in compared["cells"]:
        assert cell["difference"] == pytest.approx(-20)
        assert cell["low"] < -20 < cell["high"]
        assert cell["p_corrected"] < 0.01
        assert (cell["queries"], cell["clusters"], cell["seeds"]) == (40, 40, [42, 43, 44])
    text = cli("compare", bad, good).stdout
    for wanted in ("-20.00", "95% interval", "would be found in any row with 80% probability"):
        assert wanted in text


def test_a_margin_fails_where_the_sample_is_too_small(two_runs: tuple[Path, Path], cli: Cli) -> None:
    good, bad = two_runs
    assert cli("check", good, "--baseline", good, "--margin", "8").returncode == 0
    same = cli("check", good, "--baseline", good, "--margin", "0.5")
    assert same.returncode == 1, "forty images without a difference do not show that there is none"
    assert "may be worse by 7.2" in same.stderr
    scored(bad, 98.0, every=7)  # nothing significant, but who knows
    result = cli("check", bad, "--baseline", good, "--margin", "0.1")
    assert result.returncode == 1
    assert "more than the margin 0.1, with these queries" in result.stderr


def test_a_gate_says_what_it_could_have_seen(two_runs: tuple[Path, Path], cli: Cli) -> None:
    """In its output, in Markdown and in JUnit; --require-power makes blindness a failure."""
    good, bad = two_runs
    scored(bad, 98.0, every=7)
    files = ("--markdown", "m.md", "--junit", "j.xml")
    result = cli("check", bad, "--baseline", good, "--max-drop", "1", *files)
    assert result.returncode == 0
    for text in (result.stdout, Path("m.md").read_text(), Path("j.xml").read_text()):
        assert "would be found with 80% probability" in text or "would find" in text
        assert "more than the drop it guards against" in text or "blind" in text
    required = cli("check", bad, "--baseline", good, "--max-drop", "1", "--require-power", "0.8", *files)
    assert required.returncode == 1
    assert "can't see a drop of 1: a drop of" in required.stderr
    assert ElementTree.parse("j.xml").getroot().attrib["failures"] == "2"
    assert cli("check", bad, "--baseline", good, "--max-drop", "50", "--require-power", "0.8").returncode == 0


def test_the_demo_is_named_everywhere(two_runs: tuple[Path, Path], cli: Cli) -> None:
    """In comparisons, gates, samples; a table says which numbers are the reference's defect's."""
    arguments = (
        "run",
        "coco",
        "--checkpoint",
        "scripted",
        "--data-root",
        "demo",
        "--shots",
        "0",
        "--num-samples",
        "20",
        "--out",
        "d",
    )
    assert cli(*arguments).returncode == 0
    assert cli("check", "d", "--baseline", "d", "--markdown", "m.md", "--junit", "j.xml").returncode == 0
    for text in (cli("compare", "d", "d").stdout, Path("m.md").read_text(), Path("j.xml").read_text()):
        assert "demo" in text
        assert "generated images" in text
    assert json.loads(cli("samples", "d").stdout.splitlines()[0])["demo"] is True
    assert json.loads(cli("samples", two_runs[0]).stdout.splitlines()[0])["demo"] is False


def test_no_difference_is_no_certainty(two_runs: tuple[Path, Path], cli: Cli) -> None:
    """A run against itself: never a drop of 0.00 that would be found, nor an interval of +0.00 to +0.00."""
    good, _ = two_runs
    text = cli("compare", good, good).stdout
    assert "+0.00 to +0.00" not in text
    assert "a drop of 0.00 would be found" not in text


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(two_runs: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    good, _ = two_runs
    arguments = ("run", "coco", "--checkpoint", "scripted", "--data-root", tmp_path / "data")
    cli(*arguments, "--shots", "0,2", "--num-samples", "20", "--out", "subset")
    cli(*arguments, "--shots", "8", "--out", "others")
    cli(*arguments, "--shots", "0", "--out", "fewer")
    cli(*arguments, "--shots", "0,2", "--query-set-size", "6", "--out", "pool")
    cli(*arguments, "--shots", "0,2", "--protocol", "openflamingo-2023-06", "--out", "older")
    for run, message in (("subset", "the subset differs: --num-samples 20 and all"),
                         ("older", "coco: the protocol differs (openflamingo-2023-06 and openflamingo)"),
                         ("others", "have no benchmark at the same number of shots in common")):  # fmt: skip
        for command in (("compare", run, good), ("check", run, "--baseline", good)):
            result = cli(*command)
            assert result.returncode == 2
            assert message in result.stderr
    assert "lacks what good holds: coco, 2 shots, seed 42" in cli("check", "fewer", "--baseline", good).stderr
    assert (
        "the pool of demonstrations differs: 6 in the run, 2048 in the baseline" in cli("compare", "pool", good).stdout
    )
    cli("check", good, "--baseline", "b.json", "--update")
    table = json.loads(Path("b.json").read_text())
    changes: tuple[dict[str, Any], ...] = (
        {"format": 2},
        {"cells": [{}]},
        {"trials": []},
        {"trials": [{**table["trials"][0], "scores": ["x"]}]},
    )
    for change in changes:
        Path("c.json").write_text(json.dumps(table | change))
        result = cli("compare", good, "c.json")
        assert result.returncode == 2
        assert "c.json is no baseline of this version, or is damaged" in result.stderr
    (good / "scores.jsonl").write_text(re.sub(r', "picture": "[^"]*"', "", (good / "scores.jsonl").read_text()))
    assert "does not hold every query's score: flamingo-eval score good" in cli("compare", good, "b.json").stderr


def test_reports_of_runs_and_baselines_with_intervals(two_runs: tuple[Path, Path], cli: Cli) -> None:
    good, bad = two_runs
    cli("check", good, "--baseline", "b.json", "--update")
    both = cli("report", bad, "b.json", "--intervals", "--format", "json")
    assert both.returncode == 0, both.stderr
    runs = json.loads(both.stdout)["runs"]
    assert [len(run["cells"]) for run in runs] == [2, 2]
    evidence = read_evidence(bad)
    for cell in runs[0]["cells"]:
        low, high = cell["interval"]
        assert low < cell["mean"] < high
        assert [trial["interval"][0] < trial["value"] < trial["interval"][1] for trial in cell["trials"]] == [True] * 3
        assert cell["error_queries"] > 0
        assert cell["error_demonstrations"] >= 0
        assert evidence.uncertainty(evidence.cells["coco", cell["shots"]]).low == low
    text = cli("report", good, bad).stdout
    assert [line.split()[:2] for line in text.splitlines()[2:4]] == [["good", "coco"], ["bad", "coco"]]
    assert " [" in cli("report", bad, "--intervals").stdout


@pytest.mark.slow
def test_plots(two_runs: tuple[Path, Path], cli: Cli) -> None:
    good, bad = two_runs
    arguments = ("plot", good, bad, "--published", "OpenFlamingo-4B-vitl-rpj3b")
    assert cli(*arguments, "--out", "curve.png").returncode == 0
    with Image.open("curve.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50
    assert cli(*arguments, "--out", "curve.svg", "--deviations").returncode == 0
    first = Path("curve.svg").read_bytes()
    ElementTree.fromstring(first)
    text = cli("plot", good, bad).stdout
    assert "a: good, random" in text
    assert "b: bad, random" in text
    assert sum(line.count("a") for line in text.splitlines() if "|" in line) >= 2
    assert cli(*arguments, "--out", "curve.pdf").returncode == 0
    assert Path("curve.pdf").read_bytes().startswith(b"%PDF-")
    assert b"CIDEr x 100" in first or b"CIDEr" in first, "a label at the y axis"
    assert "known endings: .png, .svg, .pdf" in cli("plot", good, "--out", "curve.gif").stderr
    assert "checkpoints with numbers: OpenFlamingo-3B" in cli("plot", good, "--published", "nothing").stderr


def test_published_numbers_and_their_harnesses(cli: Cli) -> None:
    numbers = published()
    assert len(numbers) == 708
    likeliest = {one.source: one.protocols[0] if one.protocols else None for one in numbers}
    assert likeliest["arXiv:2308.01390v2 Table 11"] == "openflamingo"
    assert likeliest["model card of OpenFlamingo-4B-vitl-rpj3b"] == "openflamingo-2023-06"
    assert likeliest["model card of OpenFlamingo-9B (deprecated), validation splits"] == "openflamingo-2023-03"
    assert likeliest["arXiv:2308.01390v2 Table 11 (quoting arXiv:2204.14198)"] is None
    assert likeliest["arXiv:2306.16527v2 Table 2"] is None, "IDEFICS: what its authors ran is not established"
    assert likeliest["card of HuggingFaceM4/idefics-80b"] is None
    shown = cli("published", "openflamingo/OpenFlamingo-4B-vitl-rpj3b", "--benchmarks", "vizwiz").stdout
    assert "39.9 (0.6)" in shown
    assert "23.1 (1.1)" in shown, "sources that disagree are both shown"
    assert cli("published", "4B", "--benchmarks", "vizwiz").stdout == shown, "short names do as well"
    assert "43.55" in cli("published", "OpenFlamingo-9B-deprecated").stdout, (
        "with the digits that it was published with"
    )
    refused = cli("published", "4B", "--benchmarks", "vizwiz", "--select", "none").stderr
    assert "no published numbers for 4B with these benchmarks and this --select; checkpoints with numbers: " in refused
    assert "no published numbers for nothing; " in cli("published", "nothing").stderr


@pytest.mark.parametrize(("checkpoint", "source", "count"), [
    ("4B", "model card of OpenFlamingo-4B-vitl-rpj3b", 25),
    ("OpenFlamingo-9B-deprecated", "model card of OpenFlamingo-9B (deprecated), validation splits", 10),
])  # fmt: skip
def test_how_each_number_of_the_model_cards_was_made(cli: Cli, checkpoint: str, source: str, count: int) -> None:
    """Split, queries, trials, protocol, what is inferred, and a command that is understood."""
    rows = json.loads(cli("published", checkpoint, "--how", "--format", "json").stdout)
    own = [row for row in rows if row["source"] == source]
    assert len(own) == count
    for row in own:
        assert all(row[key] for key in ("split", "queries", "trials", "protocol", "how"))
        command = [word for word in row["command"].split()[1:] if word != "DIR"]
        data = command.index("--data-root")
        planned = ["plan", *command[:data], *command[data + 1 :], "--data-root", "nowhere"]
        said = cli(*planned).stderr
        assert "nowhere is not a folder" in said or "your own copy of llama-7b" in said, "its options are right"
    text = cli("published", checkpoint, "--how").stdout
    assert "inferred: " in text
    assert "known: " in text
    table = list(csv.DictReader(io.StringIO(cli("published", checkpoint, "--format", "csv").stdout)))
    assert {row["mean"] for row in table} == {row["mean"] for row in rows}


def number(
    mean: str = "81.8", std: str = "0.4", row: str = "coco", source: str = "arXiv:2308.01390v2 Table 11"
) -> Published:
    return Published(
        "OpenFlamingo-4B-vitl-rpj3b", {"vqav2_val_subset": "vqav2"}.get(row, row), row, 4, mean, std, "random", source
    )


def test_a_verdict_by_hand() -> None:
    """Three and three trials: t of four degrees, both sides' deviations together; the query error does not count."""
    one, values = number(), (81.0, 81.6, 82.2)
    theirs = (0.4**2 + 0.1**2 / 12) * 3 / 2
    error = math.sqrt((0.6**2 + theirs) / 2 * (1 / 3 + 1 / 3) + 0.1**2 / 12)
    found = judge(one, Ours(values, 5.0, 5000, (42, 43, 44)))
    assert found.verdict == "consistent"
    assert found.difference == pytest.approx(-0.2)
    assert found.seen == pytest.approx((2.776 + 0.941) * error, rel=0.02)
    assert judge(one, Ours((83.0, 83.6, 84.2), 5.0, 5000, (42, 43, 44))).verdict == "differs", "a gap of two points"


@pytest.mark.parametrize(("ours", "verdict"), [
    (Ours((81.0, 81.6, 82.2), 1.0, 500, (1, 2, 3), subset=True), "too imprecise to tell: only a gap of"),
    (Ours((81.0, 81.6, 82.2), 0.1, 5000, (1, 2, 3), demo="generated images"), "not comparable: ours is the demo's"),
    (Ours((81.7,), 1.0, 5000, (1,)), "too imprecise to tell: only a gap of 3.0"),
    (Ours((90.0,), 1.0, 5000, (1,)), "differs"),
    (Ours((81.0, 81.6, 82.2), 0.1, 5000, (1, 2, 3), missing=True), "not comparable: answers are missing"),
    (Ours((10.0, 50.0, 20.0), math.nan, 1, (1, 2, 3), subset=True), "too imprecise to tell"),
    (Ours((80.6, 81.8, 83.0), 0.1, 5000, (1, 2, 3)), "too imprecise to tell: only a gap of"),
])  # fmt: skip
def test_verdicts(ours: Ours, verdict: str) -> None:
    assert judge(number(), ours).verdict.startswith(verdict)


def test_without_any_spread_nothing_is_told() -> None:
    alone = number("65.52", "", source="model card of OpenFlamingo-9B (deprecated), validation splits")
    assert "neither side has several trials" in judge(alone, Ours((65.5,), 0.5, 5000, (0,))).verdict


def test_a_number_is_run_once_and_by_all_rules_on_request() -> None:
    """The 4B's card and the paper print the same runs."""
    coco = [
        one
        for one in published()
        if one.checkpoint.endswith("4B-vitl-rpj3b") and one.row == "coco" and one.selector == "random"
    ]
    groups = distinct(coco)
    assert len(groups) == 5
    at_four = next(group for group in groups if group[0].shots == 4)
    assert len(at_four) == 3, "paper, card, README"
    assert [one.protocol for one in setups_of(at_four)] == ["openflamingo"]
    assert {one.protocol for one in setups_of(at_four, every=True)} == {"openflamingo", "openflamingo-2023-06"}
    memes = next(one for one in published() if one.row == "hateful_memes" and one.source.endswith("Table 11"))
    (setup,) = setups_of([memes])
    assert (setup.split, setup.ensemble) == ("test_seen", 6)
    subset = next(one for one in published() if one.row == "vqav2_val_subset")
    assert setups_of([subset])[0][4:] == (5000, 1, (0, 1, 2))
    old = {one.row: one for one in published() if one.checkpoint == "OpenFlamingo-9B-deprecated"}
    (coco_setup,), (okvqa_setup,) = (setups_of([old[row]]) for row in ("coco", "okvqa"))
    assert coco_setup.split == "train", "the entry that says most of the source"
    assert okvqa_setup.num_samples == 2998
    spread = number("60.0", "1.0")
    assert judge(spread, Ours((58.8, 60.0, 61.2), 0.5, 5000, (1, 2, 3))).verdict == "consistent", (
        "trials as far apart as theirs"
    )


def test_the_documentations_published_table_is_what_the_command_prints(cli: Cli) -> None:
    command = "flamingo-eval published --benchmarks coco,vqav2 --select random --format markdown"
    page = (REPOSITORY / "docs/comparing.md").read_text(encoding="utf-8")
    assert command in page
    assert cli(*command.split()[1:]).stdout.strip() in page


@pytest.mark.slow
def test_reproduce(tmp_path: Path, cli: Cli) -> None:
    """Each number under the rules of the harness that made it; the same command again answers nothing again."""
    root = write_coco_root(tmp_path / "data", train=12, test=10)
    arguments = ("reproduce", "scripted", "--like", "OpenFlamingo-4B-vitl-rpj3b", "--benchmarks", "coco,vqav2", "--data-root",
                 root, "--shots", "0,4", "--format", "json")  # fmt: skip
    first = cli(*arguments)
    assert first.returncode == 0, first.stderr
    table = json.loads(first.stdout)
    rows = {(row["benchmark"], row["protocol"], row["shots"]): row for row in table["rows"]}
    assert {(b, p) for b, p, _ in rows} == {
        ("coco", "openflamingo"), ("vqav2", "openflamingo"), ("vqav2", "openflamingo-2023-06")
    }  # fmt: skip
    assert rows["coco", "openflamingo", 4]["theirs"] == "81.8"
    assert len(rows["coco", "openflamingo", 4]["sources"]) == 3
    assert rows["coco", "openflamingo", 4]["seeds"] == [42, 43, 44]
    assert rows["coco", "openflamingo", 4]["verdict"] == "differs"
    every = json.loads(cli(*arguments, "--protocol", "all").stdout)["rows"]
    at_four = [row for row in every if (row["benchmark"], row["shots"]) == ("coco", 4)]
    assert {row["protocol"] for row in at_four} == {"openflamingo", "openflamingo-2023-06"}
    assert sum(row["nearest"] for row in at_four) >= 1
    demo = cli(
        "reproduce",
        "scripted",
        "--like",
        "4B",
        "--benchmarks",
        "coco",
        "--data-root",
        "demo",
        "--shots",
        "4",
        "--num-samples",
        "5",
    )
    assert "not comparable: ours is the demo's" in demo.stdout
    assert "consistent" not in demo.stdout
    assert rows["vqav2", "openflamingo", 4]["ours"] is None
    assert rows["vqav2", "openflamingo", 4]["verdict"].startswith("not run: ")
    assert "vqav2 is not a folder" in first.stderr
    assert any("test-dev" in line for line in table["known_differences"])
    assert "answering" not in cli(*arguments).stderr, "what is there is not run again"
    assert "name the data with --data-root" in cli("reproduce", "scripted").stderr


def test_a_model_card_is_read_by_the_hubs_own_classes(two_runs: tuple[Path, Path], cli: Cli) -> None:
    from huggingface_hub import ModelCard

    good, _ = two_runs
    text = cli("card", good, "--name", "org/model").stdout
    card = ModelCard(text)
    data: Any = card.data
    results = data.eval_results
    assert [(one.dataset_type, one.metric_type, one.metric_args["shots"]) for one in results] == [
        ("coco", "cider", 0), ("coco", "cider", 2)
    ]  # fmt: skip
    assert "| coco | test | CIDEr x 100 |" in card.text


@pytest.mark.torch
@pytest.mark.slow
def test_a_planted_regression_fails_the_gate(tmp_path: Path) -> None:
    """The demo with one gate shut, on the demo's own data; the same checkpoint twice passes, another subset is refused."""
    import torch

    bundle = REPOSITORY / "flamingo_eval" / "demo" / "bundle"
    for name in ("same", "shut"):
        shutil.copytree(bundle, tmp_path / name)
    state = torch.load(bundle / "checkpoint.pt", weights_only=True)
    inner = state.get("model_state_dict", state)
    gate = next(key for key in inner if key.endswith("layers.1.gated_cross_attn_layer.attn_gate"))  # it matters most
    inner[gate] = torch.zeros_like(inner[gate])
    torch.save(state, tmp_path / "shut" / "checkpoint.pt")

    def run(out: str, checkpoint: str, *more: str) -> None:
        result = run_cli("run", "coco", "--shots", "0,8", "--trials", "2", "--checkpoint", checkpoint, "--data-root", "demo",
                         "--device", "cpu", "--out", out, *more)  # fmt: skip
        assert result.returncode == 0, result.stderr

    run("base", "demo")
    assert run_cli("check", "base", "--baseline", "b.json", "--update").returncode == 0
    run("same", str(tmp_path / "same" / "model.toml"), "--batch-size", "16")
    same = run_cli("check", "same", "--baseline", "b.json")
    assert same.returncode == 0, same.stderr
    run("shut", str(tmp_path / "shut" / "model.toml"))
    worse = run_cli("check", "shut", "--baseline", "b.json", "--max-drop", "1.0")
    assert worse.returncode == 1, worse.stdout
    run("subset", "demo", "--num-samples", "50")
    assert run_cli("check", "subset", "--baseline", "b.json").returncode == 2


@pytest.mark.parametrize("text", ["1.0", "NaN", "1" + "0" * 400, '"70"', "null"])
@pytest.mark.parametrize("key", ["mean", "std", "value"])
def test_a_baseline_that_contradicts_its_own_evidence_is_refused(
    two_runs: tuple[Path, Path], cli: Cli, key: str, text: str
) -> None:
    """Its mean and deviation follow from its trials, and these from every query's score."""
    good, _ = two_runs
    assert cli("check", good, "--baseline", "b.json", "--update").returncode == 0
    full = Path("b.json").read_text()
    edited = re.sub(rf'"{key}": [\d.e+-]+', f'"{key}": {text}', full, count=1)
    assert edited != full
    Path("b.json").write_text(edited)
    for command in (("check", good, "--baseline", "b.json"), ("compare", good, "b.json"), ("report", "b.json")):
        result = cli(*command)
        assert result.returncode == 2, result.stderr
        assert "b.json is no baseline of this version, or is damaged" in result.stderr
        assert "Traceback" not in result.stderr


def test_scores_that_contradict_the_queries_own_are_refused(two_runs: tuple[Path, Path], cli: Cli) -> None:
    good, bad = two_runs
    rows = (bad / "scores.jsonl").read_text().splitlines(keepends=True)
    (bad / "scores.jsonl").write_text("".join(rows).replace('"score": 60.0', '"score": 99.0', 1))
    result = cli("compare", good, bad)
    assert result.returncode == 2
    assert re.search(r"bad/scores.jsonl does not hold .* \(coco, 0 shots, seed 42: value is", result.stderr)
