"""The data check: every problem, not the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import owners
from tests.support.helpers import write_coco_root

Call = Callable[..., tuple[int, str, str]]


def test_data_check(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=3, test=2)
    code, out, err = call("data", "check", "coco", "--data-root", root, "--images")
    assert code == 2, "three training images are not COCO's"
    assert "WRONG  train: 3 examples of 3 images, published are 82783" in out
    assert "ok     images opened" in out
    broken = root / "coco/val2014/COCO_val2014_000000000500.png"
    broken.write_bytes(broken.read_bytes()[:50])
    (root / "coco/val2014/COCO_val2014_000000000501.png").unlink()
    _, out, err = call("data", "check", "coco", "--data-root", root, "--images")
    assert "2 images are missing or unreadable" in out
    assert "501.png does not exist" in out
    assert "listed above" in err
    assert "1 images are missing" in call("data", "check", "coco", "--data-root", root)[1], (
        "not opened without --images"
    )


def write(root: Path, name: str, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(content)
    return root


def damaged(content: bytes, key: str, *rows: int) -> bytes:
    """Some records of a list without their question, image or text."""
    table = json.loads(content)
    records = table if isinstance(table, list) else table[key]
    for row in rows:
        records[row] = {}
    return owners.dumped(table)


def test_every_record_and_every_file(call: Call, tmp_path: Path) -> None:
    """Damaged records of four files, and a file that is no JSON, in one go."""
    questions, annotations = owners._vqa(owners.VQA, "train")
    val_questions, _ = owners._vqa(owners.VQA, "val")
    root = write(tmp_path, "vqav2", {
        "v2_OpenEnded_mscoco_train2014_questions.json": damaged(owners.dumped(questions), "questions", 1, 4),
        "v2_mscoco_train2014_annotations.json": damaged(owners.dumped(annotations), "annotations", 2),
        "v2_OpenEnded_mscoco_val2014_questions.json": damaged(owners.dumped(val_questions), "questions", 0),
        "v2_mscoco_val2014_annotations.json": b"{",
        "train2014/COCO_train2014_000000000300.jpg": owners.jpeg(1),
    })  # fmt: skip
    code, out, err = call("data", "check", "vqav2", "--data-root", root)
    assert code == 2
    for place in (
        "train2014_questions.json: questions[1]: 'question_id' is missing", "questions[4]: 'question_id'",
        "train2014_annotations.json: annotations[2]", "val2014_annotations.json is not valid JSON", "val2014 is missing",
    ):  # fmt: skip
        assert any(line.startswith("WRONG") and place in line for line in out.splitlines()), place
    assert "the data is not as it should be" in err


def test_a_broken_file_hides_nothing(call: Call, tmp_path: Path) -> None:
    """Neither another broken file of the same split, nor missing images of the other split."""
    questions, annotations = owners._vqa(owners.VQA, "train")
    root = write(tmp_path, "vqav2", {
        "v2_OpenEnded_mscoco_train2014_questions.json": owners.dumped(questions),
        "v2_mscoco_train2014_annotations.json": owners.dumped(annotations),
        "v2_OpenEnded_mscoco_val2014_questions.json": b"[",
        "v2_mscoco_val2014_annotations.json": b"{",
        "train2014/COCO_train2014_000000000300.jpg": owners.jpeg(1),
    })  # fmt: skip
    out = call("data", "check", "vqav2", "--data-root", root)[1]
    for found in ("val2014_questions.json is not", "val2014_annotations.json is not", "train: 11 images are missing"):
        assert found in out


@pytest.mark.parametrize("name", ["coco", "textvqa", "vizwiz", "hateful_memes"])
def test_every_kind_of_file(call: Call, tmp_path: Path, name: str) -> None:
    files, places = owners.OWNERS[name](), list[str]()
    match name:
        case "coco":
            table = owners.dumped(owners._karpathy("coco", "COCO_{year}_{n:012d}.jpg", owners.COCO))
            made, places = {"dataset_coco.json": damaged(table, "images", 2, 13)}, ["images[2]", "images[13]"]
        case "textvqa":
            both = {f"TextVQA_0.5.1_{split}.json": damaged(files[f"TextVQA_0.5.1_{split}.json"], "data", 1, 3) for split in ("train", "val")}  # fmt: skip
            made, places = both, [f"{split}.json: data[{n}]" for split in ("train", "val") for n in (1, 3)]
        case "vizwiz":
            rows = [{"image": "VizWiz_train_0.jpg"}, {"question": "?"}]
            made = {"train.json": owners.dumped(rows), "val.json": owners.dumped(rows)}
            places = ["train.json: [0]", "train.json: [1]", "val.json: [0]", "val.json: [1]"]
        case _:
            made = {f"{split}.jsonl": b'{"id": 1}\n{"id": 2}\n{' for split in ("train", "dev_seen")}
            places = [f"{split}.jsonl, line {n}" for split in ("train", "dev_seen") for n in (1, 2, 3)]
    write(tmp_path, name, made)
    code, out, _ = call("data", "check", name, "--data-root", tmp_path)
    assert code == 2
    assert all(place in out for place in places), out


def test_a_run_still_stops_at_the_first(call: Call, tmp_path: Path) -> None:
    """What a check passes over, a run does not."""
    table = owners.dumped(owners._karpathy("coco", "COCO_{year}_{n:012d}.jpg", owners.COCO))
    write(tmp_path, "coco", {"dataset_coco.json": damaged(table, "images", 2)})
    code, _, err = call("plan", "coco", "--data-root", tmp_path, "--shots", "0", "--num-samples", "1")
    assert code == 2
    assert "images[2]" in err


def test_a_folder_that_is_not_there(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("data", "check", "coco", "--data-root", tmp_path / "nowhere")
    assert code == 2
    assert "dataset_coco.json is missing" in out


def test_a_root_that_is_read_only(call: Call, tmp_path: Path) -> None:
    """Reading writes nothing there: neither check, nor where, nor a run."""
    root = write_coco_root(tmp_path / "d", train=3, test=2)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert "ok     image files exist" in call("data", "check", "coco", "--data-root", root)[1]
        assert call("data", "where", "coco", "--data-root", root)[0] == 0
        run = ("coco", "--checkpoint", "scripted", "--data-root", root, "--shots", "0", "--seeds", "1", "--out", "run")
        assert call(*run)[0] == 0
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
