"""From nothing to data: every benchmark, from miniatures of what its owner gives away."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.conftest import use_files
from tests.support import owners
from tests.support.owners import COCO, OK, TEST, TRAIN, VALIDATION, VQA, Shelf, answer
from tests.support.preparing import unpacked

Call = Callable[..., tuple[int, str, str]]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shelf")]


def test_all_from_nothing(call: Call, shelf: Shelf, by_hand: Path, tmp_path: Path) -> None:
    """An empty folder, one command: everything is there, is checked, and can be run."""
    root = tmp_path / "data"
    code, _, err = call("data", "prepare", "all", "--data-root", root, "--from", by_hand)
    assert code == 0, err
    assert sorted({name for name, _ in shelf.asked}) == sorted(
        name for name in shelf.files
        if (name.endswith(".zip") or name.startswith("TextVQA"))
        and name not in ("hateful_memes.zip", "test2015.zip", "test.zip", "v2_Questions_Test_mscoco.zip")
    ), "each file once, and none that is not needed"  # fmt: skip
    assert len(shelf.asked) == len({name for name, _ in shelf.asked})
    assert (root / "vqav2/train2014").resolve() == root / "coco/train2014", "one tree of COCO's images serves three"
    assert not list(root.glob("*/.prepare")), "nothing half done is left"
    assert not list(root.glob("**/*.zip"))
    assert (root / "imagenet/val" / VALIDATION[3] / "ILSVRC2012_val_00000004.JPEG").is_file()
    assert call("data", "check", "all", "--data-root", root, "--images")[0] == 0
    assert call("data", "where", "all", "--data-root", root)[0] == 0
    code, _, err = call("run", "all", "--checkpoint", "scripted", "--data-root", root, "--shots", "0,2", "--seeds", "1", "--num-samples", "4", "--out", "run")  # fmt: skip
    assert code == 0, err
    shelf.asked.clear()
    assert call("data", "prepare", "all", "--data-root", root)[0] == 0
    assert not shelf.asked, "what is there is not fetched again"


@pytest.mark.parametrize(
    ("split", "name", "files"),
    [
        ("test-dev", "vqav2", ["v2_OpenEnded_mscoco_test-dev2015_questions.json", "test2015"]),
        ("test", "vizwiz", ["test.json", "test"]),
    ],
)
def test_another_split(call: Call, tmp_path: Path, split: str, name: str, files: list[str]) -> None:
    assert call("data", "prepare", name, "--data-root", tmp_path / "d", "--split", split)[0] == 0
    assert all((tmp_path / "d" / name / file).exists() for file in files)
    assert not (tmp_path / "d" / name / "val.json").exists()


def predictions(name: str) -> list[dict[str, Any]]:
    """What a model that knows everything answers."""
    first = {"vqav2": VQA, "okvqa": OK}.get(name, 0)
    match name:
        case "coco" | "flickr30k":
            begin = (COCO if name == "coco" else 1000) + TRAIN
            id = (lambda n: n) if name == "coco" else str
            return [{"image_id": id(n), "caption": f"a thing {n}"} for n in range(begin, begin + TEST)]
        case "vqav2" | "okvqa":
            return [{"question_id": n * 10, "answer": answer(n)} for n in range(first + TRAIN, first + TRAIN + TEST)]
        case "textvqa":
            return [{"question_id": n + TRAIN, "answer": answer(n)} for n in range(TEST)]
        case "vizwiz":
            return [{"question_id": n, "answer": answer(n)} for n in range(TEST)]
        case "hateful_memes":
            return [{"id": n, "score": float(n % 2)} for n in range(20, 28)]
    raise AssertionError(name)


def _shuffled(text: str) -> str:
    """The same file with every answer, caption or label another one's."""
    text = re.sub(r'"label": (\d)', lambda m: f'"label": {1 - int(m[1])}', text)
    turned = {"red": "green", "green": "blue", "blue": "red"}
    text = re.sub(r'"(red|green|blue)"', lambda m: f'"{turned[m[1]]}"', text)
    return re.sub(
        r'"(raw|caption)": "(a )?thing (\d+)', lambda m: f'"{m[1]}": "{m[2] or ""}thing {int(m[3]) + 1}', text
    )


@pytest.mark.parametrize("name", ["coco", "flickr30k", "vqav2", "okvqa", "textvqa", "vizwiz", "hateful_memes"])
def test_labels_come_from_the_files(call: Call, by_hand: Path, tmp_path: Path, name: str) -> None:
    """What is prepared is what is scored: other labels on the disk, another score."""
    root = tmp_path / "data"
    assert call("data", "prepare", name, "--data-root", root, "--from", by_hand)[0] == 0
    (tmp_path / "p.json").write_text(json.dumps(predictions(name)))

    def value() -> float:
        code, out, err = call(
            "score", name, "--predictions", tmp_path / "p.json", "--data-root", root, "--format", "json"
        )
        assert code == 0, err
        return float(json.loads(out)["value"])

    right = value()
    for file in (*root.glob("*/*.json"), *root.glob("*/annotations/*.json"), *root.glob("*/*.jsonl")):
        file.write_text(_shuffled(file.read_text()))
    assert value() < right


def test_labels_of_imagenet_are_its_folders(call: Call, by_hand: Path, tmp_path: Path) -> None:
    root, names = tmp_path / "data", owners.BENCHMARKS / "imagenet_names.txt"
    assert call("data", "prepare", "imagenet", "--data-root", root, "--from", by_hand)[0] == 0
    by_class = dict(zip(owners.SYNSETS, names.read_text().splitlines(), strict=True))
    rows = [{"image": file, "answer": by_class[one]} for n, one in enumerate(VALIDATION, start=1)
            for file in [f"imagenet/val/{one}/ILSVRC2012_val_{n:08d}.JPEG"]]  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(rows))
    score = ("score", "imagenet", "--predictions", tmp_path / "p.json", "--data-root", root, "--format", "json")
    code, out, err = call(*score)
    assert code == 0, err
    assert json.loads(out)["value"] == 100


def test_what_a_person_must_get(call: Call, tmp_path: Path) -> None:
    """What may be downloaded is; for the rest there are steps, and exit code 2."""
    code, out, err = call("data", "prepare", "flickr30k", "--data-root", tmp_path / "d")
    assert code == 2
    assert (tmp_path / "d/flickr30k/dataset_flickr30k.json").is_file()
    assert "1. Open https://shannon.cs.illinois.edu/DenotationGraph/" in out
    assert "flickr30k-images is missing" in err


def test_dry_run_writes_nothing(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    code, out, _ = call("data", "prepare", "coco", "--data-root", tmp_path / "d", "--dry-run")
    assert code == 0
    total = sum(len(shelf.files[name]) for name in ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip", "caption_datasets.zip"))  # fmt: skip
    assert f"to download: {total / 1000:.1f} kB" in out
    assert f"would be downloaded from {shelf.url}/train2014.zip" in out
    assert not shelf.asked
    assert not (tmp_path / "d").exists()


def test_offline_downloads_nothing(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    code, _, err = call("data", "prepare", "okvqa", "--data-root", tmp_path / "d", "--offline")
    assert code == 2
    assert "nothing is downloaded with --offline: OpenEnded_mscoco_train2014_questions.json.zip" in err
    assert not shelf.asked


def test_archives_are_kept_if_asked(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    assert call("data", "prepare", "coco", "--data-root", tmp_path / "d", "--keep-archives")[0] == 0
    assert (tmp_path / "d/coco/train2014.zip").read_bytes() == shelf.files["train2014.zip"]


@pytest.mark.parametrize("name", ["textvqa", "vizwiz"])
def test_reference_files(call: Call, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Annotations as converted for the reference come from its data repository, in place of the owners'."""
    shelf.files |= owners.OWNERS[name]()  # both have files of these names
    use_files(tmp_path, monkeypatch, shelf)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", shelf.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", shelf.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    code, _, err = call("data", "prepare", name, "--data-root", tmp_path / "d", "--reference-files")
    assert code == 0, err
    assert (tmp_path / "d" / name / "val_questions_vqa_format.json").is_file()
    assert not list((tmp_path / "d" / name).glob("*train.json"))
    other = {"textvqa": "vizwiz", "vizwiz": "textvqa"}[name]
    out = call("data", "prepare", other, "--data-root", tmp_path / "d", "--reference-files", "--dry-run")[1]
    assert f"{tmp_path}/d/{other}/train_questions_vqa_format.json: would be downloaded from hf://datasets/" in out, (
        "another benchmark's"
    )


def test_a_mirror(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """Mirrors are asked first, then owners; whoever has it, its digest must be right."""
    mirror = Shelf({name: shelf.files[name] for name in ("train2014.zip", "val2014.zip")})
    code, _, err = call("data", "prepare", "coco", "--data-root", tmp_path / "d", "--from", f"{mirror.url}/mirror/")
    assert code == 0, err
    assert {name for name, _ in shelf.asked} == {"annotations_trainval2014.zip", "caption_datasets.zip"}
    mirror.close()
    code, _, err = call("data", "prepare", "coco", "--data-root", "d", "--from", "ftp://mirror/x")
    assert code == 2
    assert "give a folder, or an address" in err


def test_mistakes(call: Call, tmp_path: Path) -> None:
    assert "Name a folder: --data-root" in call("data", "prepare", "coco")[2]
    assert "which benchmarks?" in call("data", "prepare", "--data-root", "d")[2]
    assert (
        "--from nowhere is not a folder" in call("data", "prepare", "coco", "--data-root", "d", "--from", "nowhere")[2]
    )
    assert "unknown benchmark 'coc'" in call("data", "prepare", "coc", "--data-root", "d")[2]
    (tmp_path / "file").write_text("")
    code, _, err = call("data", "prepare", "coco", "--data-root", tmp_path / "file")
    assert code == 2
    assert "is not a folder" in err


# --- what is there already ---------------------------------------------------------------------------------------


def test_unpacked_trees_are_linked(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """A folder with COCO's trees and other things: nothing is fetched that is there, and one tree serves three."""
    have = unpacked(shelf, tmp_path / "have/mscoco", "train2014.zip", "val2014.zip", "annotations_trainval2014.zip")
    unpacked(shelf, tmp_path / "have/karpathy", "caption_datasets.zip")
    (have / "train2014.zip.part").write_text("?")
    code, _, err = call("data", "prepare", "coco", "okvqa", "--data-root", tmp_path / "d", "--from", tmp_path / "have")
    assert code == 0, err
    assert {name.split("_")[0] for name, _ in shelf.asked} == {"OpenEnded", "mscoco"}
    for name in ("coco", "ok_vqa"):
        assert (tmp_path / "d" / name / "train2014").resolve() == have / "train2014"


def test_trees_are_copied_if_asked(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    have = unpacked(shelf, tmp_path / "have", "train2014.zip", "val2014.zip", "annotations_trainval2014.zip", "caption_datasets.zip")  # fmt: skip
    code, _, err = call("data", "prepare", "coco", "--data-root", tmp_path / "d", "--from", have, "--copy")
    assert code == 0, err
    shutil.rmtree(have)
    assert call("data", "check", "coco", "--data-root", tmp_path / "d", "--images")[0] == 0


def test_archives_in_the_data_root(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """Official zips in the folder itself: where says so, prepare unpacks them and lets them be."""
    folder = tmp_path / "d/coco"
    folder.mkdir(parents=True)
    names = ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip", "caption_datasets.zip")
    for name in names:
        (folder / name).write_bytes(shelf.files[name])
    code, out, _ = call("data", "where", "coco", "--data-root", tmp_path / "d")
    assert code == 2
    assert f"{folder}/train2014.zip holds it; `data prepare` unpacks it" in out
    assert call("data", "prepare", "coco", "--data-root", tmp_path / "d")[0] == 0
    assert not shelf.asked
    assert all((folder / name).is_file() for name in names)


def test_coco_2017_does_as_well(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """The same images under other names, in two folders that divide them otherwise."""
    folder = tmp_path / "d/coco"
    for year, other in (("train2014", "train2017"), ("val2014", "train2017")):
        unpacked(shelf, tmp_path / "x", f"{year}.zip")
        (folder / other).mkdir(parents=True, exist_ok=True)
        for file in (tmp_path / "x" / year).iterdir():
            file.rename(folder / other / file.name.rpartition("_")[2])
    (folder / "val2017").mkdir()
    moved = next((folder / "train2017").iterdir())
    moved.rename(folder / "val2017" / moved.name)
    assert call("data", "prepare", "coco", "--data-root", tmp_path / "d")[0] == 0
    assert {name for name, _ in shelf.asked} == {"annotations_trainval2014.zip", "caption_datasets.zip"}
    assert "(as train2017/ and val2017/)" in call("data", "where", "coco", "--data-root", tmp_path / "d")[1]


@pytest.mark.parametrize("folder", ["", "Annotations/"])
def test_vizwiz_annotations_as_unzipped(call: Call, shelf: Shelf, tmp_path: Path, folder: str) -> None:
    """In an archive with a folder or without, unpacked or not."""
    shelf.files["Annotations.zip"] = owners.vizwiz(folder)["Annotations.zip"]
    assert call("data", "prepare", "vizwiz", "--data-root", tmp_path / "a")[0] == 0
    have = tmp_path / "b/vizwiz" / ("" if folder else "Annotations")
    unpacked(shelf, have, "Annotations.zip")
    shelf.asked.clear()
    assert call("data", "prepare", "vizwiz", "--data-root", tmp_path / "b")[0] == 0
    assert "Annotations.zip" not in {name for name, _ in shelf.asked}


@pytest.mark.parametrize("form", ["devkit archive", "devkit folder", "kaggle", "list of classes", "by class"])
def test_imagenet_as_people_have_it(call: Call, shelf: Shelf, tmp_path: Path, form: str) -> None:
    """Flat validation images with any of the files that tell their classes, or sorted already."""
    have, places = tmp_path / "have", {f"ILSVRC2012_val_{n:08d}": one for n, one in enumerate(VALIDATION, start=1)}
    tree = have / ("ILSVRC/Data/CLS-LOC" if form == "kaggle" else ".")
    for one in owners.SYNSETS:
        (tree / "train" / one).mkdir(parents=True)
        (tree / "train" / one / f"{one}_1.JPEG").write_bytes(owners.jpeg(1))
    unpacked(shelf, tree / "val", "ILSVRC2012_img_val.tar")
    match form:
        case "devkit archive":
            (have / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(shelf.files["ILSVRC2012_devkit_t12.tar.gz"])
        case "devkit folder":
            unpacked(shelf, have, "ILSVRC2012_devkit_t12.tar.gz")
        case "kaggle":
            rows = "".join(f"{image},{one} 1 2 3 4 \n" for image, one in places.items())
            (have / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
        case "list of classes":
            (have / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{one}\n" for one in VALIDATION))
        case "by class":
            for image, one in places.items():
                (tree / "val" / one).mkdir(exist_ok=True)
                (tree / "val" / f"{image}.JPEG").rename(tree / "val" / one / f"{image}.JPEG")
    code, _, err = call("data", "prepare", "imagenet", "--data-root", tmp_path / "d", "--from", have)
    assert code == 0, err
    val = tmp_path / "d/imagenet/val"
    assert {image.stem: image.parent.name for image in val.glob("*/*")} == places
    if form != "by class":
        assert len(list((tree / "val").iterdir())) == len(places), "the user's own folder stays as it is"


def test_flat_images_in_the_data_root(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """A flat val/ where it belongs is put into class folders; without what tells the classes it is left alone."""
    folder = tmp_path / "d/imagenet"
    for one in owners.SYNSETS:
        (folder / "train" / one).mkdir(parents=True)
        (folder / "train" / one / "1.JPEG").write_bytes(owners.jpeg(1))
    unpacked(shelf, folder / "val", "ILSVRC2012_img_val.tar")
    code, _, err = call("data", "prepare", "imagenet", "--data-root", tmp_path / "d")
    assert code == 2
    assert "nothing tells their classes: put LOC_val_solution.csv or" in err
    assert len(list((folder / "val").glob("*.JPEG"))) == len(VALIDATION)
    unpacked(shelf, tmp_path / "d", "ILSVRC2012_devkit_t12.tar.gz")
    (folder / "val/.DS_Store").write_text("?")
    assert "side by side" in call("data", "where", "imagenet", "--data-root", tmp_path / "d")[1]
    assert call("data", "prepare", "imagenet", "--data-root", tmp_path / "d")[0] == 0
    assert len(list((folder / "val").glob("n*/*.JPEG"))) == len(VALIDATION)
    assert len(list((folder / "val.flat").glob("*.JPEG"))) == len(VALIDATION), "the images stay together, as they were"
    assert all(image.read_bytes() for image in (folder / "val").glob("n*/*.JPEG"))


def test_another_train_json_is_not_taken(call: Call, tmp_path: Path) -> None:
    """Common names are taken only where their content is this benchmark's."""
    have = tmp_path / "have"
    (have / "val").mkdir(parents=True)
    (have / "val/picture.jpg").write_bytes(owners.jpeg(1))
    (have / "train.json").write_text("[]")
    assert call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d", "--from", have)[0] == 0
    assert not (tmp_path / "d/vizwiz/val").is_symlink()
    assert not (tmp_path / "d/vizwiz/train.json").is_symlink()


def test_the_first_release_of_hateful_memes(call: Call, tmp_path: Path) -> None:
    """dev.jsonl does as dev_seen.jsonl."""
    have = tmp_path / "have"
    have.mkdir()
    (have / "XjiOc5ycDBRRNwbhRlgH.zip").write_bytes(owners.hateful_memes(first_release=True)["hateful_memes.zip"])
    code, _, err = call("data", "prepare", "hateful-memes", "--data-root", tmp_path / "d", "--from", have)
    assert code == 0, err
    assert "(as dev.jsonl)" in call("data", "where", "hateful-memes", "--data-root", tmp_path / "d")[1]
