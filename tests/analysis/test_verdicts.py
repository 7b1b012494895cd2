"""Published numbers: how each was made, and what one's own say about them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from flamingo_eval.analysis.published import Published, published
from flamingo_eval.analysis.reproduce import Ours, distinct, judge, setups_of
from tests.support.helpers import Cli, write_coco_root

REPOSITORY = Path(__file__).parents[2]


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
        message = cli(*planned).stderr
        assert "nowhere is not a folder" in message or "your own copy of llama-7b" in message, "its options are right"
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


def test_without_any_spread_nothing_is_concluded() -> None:
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
    assert first.returncode == 2, first.stderr
    assert "2 of 3 runs were not possible; the reasons are above" in first.stderr
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
