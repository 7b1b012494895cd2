"""Tables, plots, comparison, gate, published numbers and cards: what one does with numbers."""

from __future__ import annotations

import json
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
from flamingo_eval.core.records import Cell, Notes, Trial
from flamingo_eval.report.shown import Interval, Shown
from flamingo_eval.report.table import render_runs
from tests.support.helpers import Cli, run_cli, run_record, scored, write_coco_root

pytestmark = pytest.mark.slow

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
    assert "can't see a drop of 1, only of " in required.stderr
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
    assert cli("check", good, "--baseline", "b.json", "--update").returncode == 0
    assert cli("card", "b.json").returncode == 0, "a baseline will do"


@pytest.mark.torch
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
        result = run_cli("run", "coco", "--shots", "8", "--trials", "2", "--checkpoint", checkpoint, "--data-root", "demo",
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
