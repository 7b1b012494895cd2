"""Cells and tables."""

from __future__ import annotations

import csv
import io
import json

import pytest
from msgspec.structs import replace

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.records import Cell, Notes, Trial
from flamingo_eval.report.caption import caption_lines
from flamingo_eval.report.table import FORMATS, render
from tests.support.helpers import cell, run_record

RUN = run_record()


def test_mean_and_population_standard_deviation() -> None:
    three = cell(4, 70.0, 73.0, 76.0)
    assert three.mean == 73.0
    assert three.std == pytest.approx(6**0.5), "ddof 0: the root of (9 + 0 + 9) / 3"
    assert cell(0, 70.0).std is None, "one trial has none"


def test_table() -> None:
    text = render([cell(0, 70.0, 73.0, 76.0), cell(16, 80.04)], RUN, Notes(others=("a note",)), "table")
    lines = text.splitlines()
    assert lines[0].split() == ["benchmark", "split", "metric", "0", "shots", "16", "shots"]
    assert lines[2].split() == ["coco", "test", "CIDEr", "x", "100", "73.0", "(2.4)", "80.0"]
    assert "mean (standard deviation, ddof 0) over 3 trials, seeds 42, 43, 44" in text
    assert "protocol openflamingo; random demonstrations from a pool of 2048; checkpoint my_model (0123456789)" in text
    assert "a note" in text


def test_markdown() -> None:
    text = render([cell(4, 70.0, 73.0, 76.0)], RUN, Notes(), "markdown")
    assert text.splitlines()[:3] == [
        "| benchmark | split | metric | 4 shots |",
        "| --- | --- | --- | ---: |",
        "| coco | test | CIDEr x 100 | 73.0 (2.4) |",
    ]
    assert "my\\_model" in text


def test_csv_and_json_keep_full_precision() -> None:
    third = cell(4, 1 / 3, 2 / 3)
    row = next(csv.DictReader(io.StringIO(render([third], RUN, Notes(), "csv"))))
    assert float(row["mean"]) == third.mean
    assert float(row["std"]) == third.std
    assert row["complete"] == "True"
    table = json.loads(render([third], RUN, Notes(), "json"))
    assert table["run"] == RUN.table()
    assert table["cells"] == [
        {
            "benchmark": "coco",
            "split": "test",
            "shots": 4,
            "selector": "random",
            "protocol": "openflamingo",
            "metric": "CIDEr x 100",
            "mean": third.mean,
            "std": third.std,
            "ddof": 0,
            "complete": True,
            "trials": [
                {"seed": 42, "value": 1 / 3, "queries": 100, "planned": 100},
                {"seed": 43, "value": 2 / 3, "queries": 100, "planned": 100},
            ],
        }
    ]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format_says_when_numbers_are_the_demos(format: str) -> None:
    assert "no real model" in render([cell(0, 1.0)], run_record(demo="demo: no real model"), Notes(), format)


def test_partial_cells_are_marked() -> None:
    text = render([cell(4, 70.0, missing=1)], RUN, Notes(), "table")
    assert "70.0 *" in text
    assert "answers are missing" in text


def test_unknown_format_and_nothing_to_show() -> None:
    with pytest.raises(UserError, match="unknown format 'pdf'; known formats: table, markdown, csv, json"):
        render([cell(0, 1.0)], RUN, Notes(), "pdf")
    note = "split test-dev of vqav2 has no public answers: 3 answers, no score"
    assert render([], RUN, Notes((note,), ("a file",)), "table") == f"no scores: {note}\n"
    assert render([], RUN, Notes(), "markdown") == "no scores: no trial of this run is complete\n"
    assert json.loads(render([], RUN, Notes((note,)), "json"))["cells"] == []
    assert json.loads(render([], RUN, Notes((note,)), "json"))["notes"] == [note]
    assert (
        render([], RUN, Notes((note,)), "csv")
        == render([cell(0, 1.0)], RUN, Notes(), "csv").splitlines(keepends=True)[0]
    )


@pytest.mark.parametrize(("benchmark", "shots", "protocol", "rendering", "named"), [
    ("imagenet", 0, "openflamingo", "flamingo", True),
    ("hateful_memes", 0, "openflamingo", "flamingo", True),
    ("hateful_memes", 4, "openflamingo", "flamingo", False),
    ("hateful_memes", 0, "official", "flamingo", False),
    ("hateful_memes", 0, "openflamingo", "chat", False),
    ("coco", 0, "openflamingo", "flamingo", False),
])  # fmt: skip
def test_the_references_kept_defect_stands_under_its_numbers(
    benchmark: str, shots: int, protocol: str, rendering: str, named: bool
) -> None:
    """Zero-shot ImageNet and Hateful Memes show a demonstration's image, as the reference's code does."""
    run = run_record()
    run = replace(run, identity=replace(run.identity, rendering=rendering))
    one = Cell(benchmark, "val", shots, "random", protocol, "top-1 accuracy %", (Trial(42, 8.6, 100, 100),))
    text = "\n".join(caption_lines([one], run, Notes()))
    assert ("prompts hold a demonstration's image, as the reference's code has them" in text) == named
