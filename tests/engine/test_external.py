"""Scoring predictions from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import write_coco_root
from tests.support.vqa_files import write_converted, write_memes


@pytest.fixture
def vqa_root(tmp_path: Path) -> Path:
    """Three TextVQA questions, 50 to 52; a1 is what three of ten annotators say."""
    write_converted(tmp_path / "d" / "textvqa", "val", 50)
    return tmp_path / "d"


def predict(rows: list[Any]) -> Path:
    Path("p.json").write_text(json.dumps(rows))
    return Path("p.json")


def test_vqa_predictions_need_only_the_annotations(call: Any, vqa_root: Path) -> None:
    rows = [
        {"question_id": 50, "answer": "A1."},
        {"question_id": "51", "answer": "zebra"},
        {"question_id": 52, "answer": "a1"},
    ]
    code, out, _ = call("score", "textvqa", "--predictions", predict(rows), "--data-root", vqa_root,
                        "--format", "json", "--per-item", "items.jsonl")  # fmt: skip
    assert code == 0
    result = json.loads(out)
    # three say a1: those see two others (2/3), the seven others see three (1): (3 * 2/3 + 7) / 10 = 0.9
    assert result["value"] == pytest.approx(100 * (0.9 + 0 + 0.9) / 3)
    assert {k: result[k] for k in ("benchmark", "metric", "protocol", "queries")} == {
        "benchmark": "textvqa", "metric": "VQA accuracy %", "protocol": "openflamingo", "queries": 3,
    }  # fmt: skip
    items = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    assert items == [{"id": 50, "score": 90.0}, {"id": 51, "score": 0.0}, {"id": 52, "score": 90.0}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 50, "answer": "x"}] * 2, "[1]: question_id 50 occurs twice"),
        ([{"question_id": 99, "answer": "x"}], "[0]: question_id 99 is not in the annotations"),
        ([{"question_id": 50, "answer": 5}], "[0]: answer is 5; it has to be a text"),
        (
            [{"answer": "x"}],
            "[0] has 'answer'; a prediction has one of question_id, image_id, query_id, id, image, and answer: {'question_id': 50, 'answer': ...}",
        ),
        ({"question_id": 50}, "[0] has 'question_id'; a prediction has one of"),
        ([], "is not a list of predictions"),
        ([5], "[0] is no object, but 5"),
        ({"50": "a1", "50.0": "a1"}, "[1]: id '50.0' occurs twice"),
        ([{"question_id": 50, "answer": "x"}], "says nothing about 2 queries of 3, such as 51"),
    ],
)
def test_broken_predictions(call: Any, vqa_root: Path, rows: Any, message: str) -> None:
    code, out, err = call("score", "textvqa", "--predictions", predict(rows), "--data-root", vqa_root)
    assert (code, out) == (2, "")
    assert message in err


def test_missing_predictions_can_be_skipped_and_are_marked(call: Any, vqa_root: Path) -> None:
    rows = [{"question_id": 50, "answer": "a1"}]
    code, out, _ = call("score", "textvqa", "--predictions", predict(rows), "--data-root", vqa_root,
                        "--on-error", "skip", "--format", "json")  # fmt: skip
    assert code == 4
    assert json.loads(out) == json.loads(out) | {"partial": True, "missing": 2, "queries": 1}


@pytest.mark.slow
def test_captions_and_scores(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=3, test=2)
    rows = [{"image_id": 500, "caption": "a thing 500"}, {"image_id": 501, "caption": "a thing 501"}]
    code, out, _ = call("score", "coco", "--predictions", predict(rows), "--data-root", root, "--format", "json")
    assert code == 0
    assert json.loads(out)["value"] > 100
    lines = [json.dumps({"id": i, "img": f"{i}.png", "label": i % 2, "text": "t"}) for i in range(4)]
    write_memes(tmp_path / "d", *lines)
    scores = [{"id": i, "score": s} for i, s in enumerate((0.1, 0.9, 0.6, 0.4))]
    code, out, _ = call(
        "score", "hateful-memes", "--predictions", predict(scores), "--data-root", root, "--format", "json"
    )
    assert json.loads(out)["value"] == pytest.approx(75)
    write_memes(tmp_path / "d", lines[0])
    code, _, err = call("score", "hateful-memes", "--predictions", predict(scores[:1]), "--data-root", root)
    assert code == 2
    assert "ROC AUC is undefined: all 1 labels are of one class" in err


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("hateful-memes", {"id": 0, "score": float("nan")}, "score nan is not a number"),
        ("hateful-memes", {"id": 0, "answer": "yes"}, "has 'id', 'answer'; a prediction has one of"),
        ("textvqa", {"question_id": 50, "score": 0.5}, "has 'question_id', 'score'; a prediction has one of"),
    ],
)
def test_predictions_of_the_wrong_kind(call: Any, vqa_root: Path, benchmark: str, row: Any, message: str) -> None:
    write_memes(vqa_root, *(json.dumps({"id": i, "img": f"{i}.png", "label": i, "text": "t"}) for i in range(2)))
    code, _, err = call("score", benchmark, "--predictions", predict([row]), "--data-root", vqa_root)
    assert code == 2
    assert message in err


def test_options_for_predictions_are_refused_for_a_run(call: Any) -> None:
    code, _, err = call("score", "run", "--protocol", "official")
    assert code == 2
    assert "--protocol needs --predictions; a saved run is always scored by its own protocol and split" in err


@pytest.mark.parametrize("answer", ["Tench", "n01440764", "tench ", ""])
def test_answers_outside_a_closed_set_are_refused_by_name(call: Any, tmp_path: Path, answer: str) -> None:
    """They would score 0 as if they were wrong."""
    for split in ("train", "val"):
        for name in ("x", "y"):
            (tmp_path / "d/imagenet" / split / name).mkdir(parents=True)
            (tmp_path / "d/imagenet" / split / name / "1.JPEG").write_bytes(b"never opened")
    (tmp_path / "d/imagenet/class_names.json").write_text('{"x": "tench", "y": "goldfish"}')
    rows = [{"id": 0, "answer": "tench"}, {"id": 1, "answer": answer}]
    code, out, err = call("score", "imagenet", "--predictions", predict(rows), "--data-root", tmp_path / "d")
    assert (code, out) == (2, "")
    assert f"p.json: [1]: the answer {answer!r} of id 1 is none of the 2 class names; such are 'tench'" in err
    rows[1]["answer"] = "goldfish"
    assert call("score", "imagenet", "--predictions", predict(rows), "--data-root", tmp_path / "d")[0] == 0


def test_predictions_from_a_pipe_and_numbers_beyond_floats(call: Any, tmp_path: Path) -> None:
    import os
    import threading

    write_memes(tmp_path / "d", *(json.dumps({"id": i, "img": "1.png", "label": i, "text": "t"}) for i in range(2)))
    rows: list[dict[str, Any]] = [{"id": 0, "score": 0.1}, {"id": 1, "score": 10**400}]
    command = ("score", "hateful-memes", "--data-root", tmp_path / "d", "--format", "json", "--predictions")
    code, _, err = call(*command, predict(rows))
    assert code == 2
    assert "p.json: [1]: score 1000" in err
    rows[1]["score"] = 0.9
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_text(json.dumps(rows)), daemon=True).start()
    code, out, err = call(*command, "pipe")
    assert code == 0, err
    assert json.loads(out)["value"] == 100
