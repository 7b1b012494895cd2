"""Karpathy's JSON, whole and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.errors import DataError
from flamingo_eval.loaders.karpathy import LOADER
from tests.support.helpers import write_coco_root

RULES = load_benchmark("coco").data


def test_examples_and_references_of_the_golden_data(golden: Path) -> None:
    data = LOADER.examples(RULES, golden, "test")
    assert (len(data.train), len(data.test)) == (60, 24), "restval and val are not part of it"
    assert data.test[0].image == "coco/val2014/COCO_val2014_000000001000.jpg"
    from_coco = LOADER.references(RULES, golden, "test")
    assert from_coco.notes == ("references from captions_val2014.json",), "both sources agree"
    assert len(from_coco.by_id) == 24


def test_references_come_from_either_source(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "dataset_coco.json").write_bytes((golden / "coco" / "dataset_coco.json").read_bytes())
    from_karpathy = LOADER.references(RULES, tmp_path, "test")
    assert from_karpathy.notes == ("references from dataset_coco.json",)
    from_coco = LOADER.references(RULES, golden, "test")
    assert dict(from_karpathy.by_id) == dict(from_coco.by_id)


def test_sources_that_disagree_are_reported(golden: Path, tmp_path: Path) -> None:
    for name in ("dataset_coco.json", "annotations/captions_val2014.json"):
        target = tmp_path / "coco" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (golden / "coco" / name).read_text()
        target.write_text(text.replace("A green truck", "A grey truck", 1) if name.startswith("a") else text)
    notes = LOADER.references(RULES, tmp_path, "test").notes
    assert notes[1] == "dataset_coco.json has other captions for 1 images, such as 1000"


def _image(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda table: change(table["images"][3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("images"), 'it has no list "images"'),
        (lambda t: t["images"].append(7), r"images\[18\] is not an object"),
        (_image(lambda i: i.pop("split")), r"images\[3\]: 'split' is missing"),
        (_image(lambda i: i.update(cocoid="103")), r"images\[3\]: 'cocoid' is missing or not of type int"),
        (_image(lambda i: i.update(cocoid=101)), r"images\[3\]: the id 101 occurs twice in split 'train'"),
        (_image(lambda i: i.update(sentences=[])), r"images\[3\]: the image has no sentence"),
        (_image(lambda i: i.update(sentences=[{"raw": 5}])), r"images\[3\]: 'raw' is missing or not of type str"),
        (_image(lambda i: i.update(filename="../../secret.png")), "is not a path inside the data folder"),
        (_image(lambda i: i.update(filepath="/etc")), "is not a path inside the data folder"),
        (lambda t: t.update(images=[i for i in t["images"] if i["split"] != "test"]), "no image in split 'test'"),
    ],
)
def test_broken_files_name_file_and_record(root: Path, change: Callable[[Any], object], message: str) -> None:
    path = root / "coco" / "dataset_coco.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=message) as error:
        LOADER.examples(RULES, root, "test")
    assert "dataset_coco.json" in str(error.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"images": ["half a character: \\ud83d"]}'])
def test_json_that_is_no_data_names_the_file(root: Path, content: bytes) -> None:
    (root / "coco" / "dataset_coco.json").write_bytes(content)
    with pytest.raises(
        DataError, match=r"dataset_coco\.json (is nested too deeply|holds a text with half a character)"
    ):
        LOADER.examples(RULES, root, "test")


@pytest.mark.parametrize("content", [b"", b"{", b'{"images": [', b"\xff\xfe\x00"])
def test_malformed_json_names_the_file(root: Path, content: bytes) -> None:
    (root / "coco" / "dataset_coco.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset_coco\.json is not (valid JSON|UTF-8)"):
        LOADER.examples(RULES, root, "test")


def test_a_caption_file_without_some_images_is_refused(root: Path) -> None:
    (root / "coco" / "annotations").mkdir()
    table = {"images": [{"id": 500}], "annotations": [{"image_id": 500, "id": 1, "caption": "a thing"}]}
    (root / "coco" / "annotations" / "captions_val2014.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"has no caption of 4 images of .*such as 501"):
        LOADER.references(RULES, root, "test")


def test_images_are_found_under_the_names_of_coco_2017(tmp_path: Path) -> None:
    """An image of COCO 2014's training set may lie in either folder; a folder that is there is not looked past."""
    from flamingo_eval.core.source import read_source

    root = write_coco_root(tmp_path / "d", train=4, test=2)
    folder = root / "coco"
    before = read_source("coco", root)
    for name in ("train2017", "val2017"):
        (folder / name).mkdir()
    for number, file in enumerate(sorted(folder.glob("*2014/*.png"))):
        file.rename(folder / ("val2017" if number % 2 else "train2017") / f"{file.stem.split('_')[-1]}.png")
    assert read_source("coco", root).data.test == before.data.test, "the folders are still there, though empty"
    for name in ("train2014", "val2014"):
        (folder / name).rmdir()
    after = read_source("coco", root)
    for old, new in zip((*before.data.train, *before.data.test), (*after.data.train, *after.data.test), strict=True):
        assert new.id == old.id
        assert (root / new.image).is_file()
        assert Path(new.image).name == old.image.split("_")[-1]
    assert after.data.notes[-1] == "images from train2017 and val2017, by number"
