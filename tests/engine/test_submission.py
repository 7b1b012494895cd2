"""Submissions: the files that evaluation servers take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_vqav2(root: Path) -> None:
    folder = root / "vqav2"
    (folder / "test2015").mkdir(parents=True)
    answers = [{"answer": "The Two dogs", "answer_id": i} for i in range(10)]
    rows = [{"question_id": i, "image_id": i, "question": "what?"} for i in range(1, 4)]
    for name, part in (("train2014", rows), ("test-dev2015", rows[:1]), ("test2015", rows)):
        (folder / f"v2_OpenEnded_mscoco_{name}_questions.json").write_text(json.dumps({"questions": part}))
    annotations = [{**row, "answers": answers} for row in rows]
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
    for split, ids in (("train2014", (1, 2, 3)), ("test2015", (1, 2, 3))):
        (folder / split).mkdir(exist_ok=True)
        for i in ids:
            (folder / split / f"COCO_{split}_{i:012d}.jpg").write_bytes(b"never opened")


def test_a_split_without_answers_gives_a_submission_and_no_score(call: Any, tmp_path: Path) -> None:
    write_vqav2(tmp_path / "d")
    arguments = ("vqav2", "--split", "test-dev", "--shots", "1", "--seeds", "42", "--checkpoint", "scripted",
                 "--data-root", tmp_path / "d", "--out", "run")  # fmt: skip
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "no scores: split test-dev of vqav2 has no public answers: " in out
    for format in ("json", "csv", "table"):
        code, message, err = call("report", "run", "--format", format)
        assert code == 0
        assert "no public answers" in (err if format == "csv" else message)
        assert format != "json" or json.loads(message)["cells"] == []
    assert "run saved in run" in out
    code, _, err = call("submit", "run", "--out", "s.json")
    assert code == 0, err
    rows = json.loads(Path("s.json").read_text())
    assert rows == [
        {"question_id": 1, "answer": "2 dogs"},
        {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": ""},
    ], "every question of the test set, normalised, empty where not predicted"


def test_a_submission_is_one_trial(call: Any, tmp_path: Path) -> None:
    write_vqav2(tmp_path / "d")
    call("vqav2", "--split", "test-dev", "--shots", "1", "--seeds", "42,43", "--checkpoint", "scripted",
         "--data-root", tmp_path / "d", "--out", "run")  # fmt: skip
    code, _, err = call("submit", "run", "--out", "s.json")
    assert code == 2
    assert (
        "a submission is one trial, this run has 2 (vqav2, 1 shots, seed 42; vqav2, 1 shots, seed 43): choose " in err
    )
    assert "no trial with these --shots and --seed" in call("submit", "run", "--seed", "7", "--out", "s.json")[2]
    assert call("submit", "run", "--seed", "43", "--out", "s.json")[0] == 0


def test_a_submission_of_the_wrong_split_is_refused(call: Any, tmp_path: Path) -> None:
    write_vqav2(tmp_path / "d")
    folder = tmp_path / "d" / "vqav2"
    for name in ("questions", "annotations"):
        text = (folder / f"v2_{'OpenEnded_' if name == 'questions' else ''}mscoco_train2014_{name}.json").read_text()
        (folder / f"v2_{'OpenEnded_' if name == 'questions' else ''}mscoco_val2014_{name}.json").write_text(text)
    (folder / "val2014").mkdir()
    for i in (1, 2, 3):
        (folder / "val2014" / f"COCO_val2014_{i:012d}.jpg").write_bytes(b"never opened")
    code, _, err = call("vqav2", "--shots", "1", "--seeds", "42", "--checkpoint", "scripted", "--data-root",
                        tmp_path / "d", "--out", "run")  # fmt: skip
    assert code == 0, err
    code, _, err = call("submit", "run", "--out", "s.json")
    assert code == 2
    assert "the server wants answers to split test-dev or test; this run is of split val" in err
    assert not Path("s.json").exists()
