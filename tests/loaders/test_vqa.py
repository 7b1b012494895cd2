"""VQA data as published and as converted, broken data, and the other loaders."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.core.benchmark import DataRules, load_benchmark
from flamingo_eval.core.digests import bytes_digest, digest
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.paths import resource_folder
from flamingo_eval.core.records import Annotation, Ranking
from flamingo_eval.core.source import read_source
from flamingo_eval.loaders.image_folder import LOADER as FOLDERS
from flamingo_eval.loaders.jsonl_memes import LOADER as MEMES
from flamingo_eval.loaders.vqa import LOADER as VQA
from tests.support.helpers import write_coco_root
from tests.support.vqa_files import questions, write_converted, write_memes

TEXTVQA, VIZWIZ = load_benchmark("textvqa").data, load_benchmark("vizwiz").data


def write_published_textvqa(folder: Path, split: str, first: int, count: int = 3) -> None:
    rows = [{**row, "answers": [f"a{i % 4}" for i in range(1, 11)]} for row in questions(first, count)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"TextVQA_0.5.1_{split}.json").write_text(json.dumps({"data": rows}))


def test_textvqa_as_published_is_textvqa_as_converted(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 50)):
        write_converted(tmp_path / "converted" / "textvqa", split, first)
        write_published_textvqa(tmp_path / "published" / "textvqa", split, first)
    converted, published = (read_source("textvqa", tmp_path / name) for name in ("converted", "published"))
    assert list(converted.data.train) == list(published.data.train)
    assert list(converted.data.test) == list(published.data.test)
    assert converted.data.test[0].image == "textvqa/train_images/img50.jpg"
    assert converted.data.notes[0] == "train questions from train_questions_vqa_format.json, VQA format"
    assert published.data.notes[0] == "train questions from TextVQA_0.5.1_train.json, TextVQA as published"
    assert {id: a.answers for id, a in converted.references.by_id.items()} == {
        id: a.answers for id, a in published.references.by_id.items()
    }, "answer i has the id i + 1 and the confidence yes"


def test_vizwiz_as_published(tmp_path: Path) -> None:
    folder = tmp_path / "vizwiz"
    folder.mkdir()
    answers = [{"answer": "red", "answer_confidence": "yes"}] * 10
    rows = [
        {"image": f"VizWiz_{i}.jpg", "question": f"what {i}?", "answers": answers, "answer_type": "other"}
        for i in range(3)
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "val.json").write_text(json.dumps(rows))
    (folder / "test.json").write_text(json.dumps([{"image": "t.jpg", "question": "q"}]))
    source = read_source("vizwiz", tmp_path)
    assert [example.id for example in source.data.test] == [0, 1, 2], "row numbers"
    assert source.data.test[1].image == "vizwiz/val/VizWiz_1.jpg"
    annotation = source.references.by_id[0]
    assert isinstance(annotation, Annotation)
    assert annotation.question_type == annotation.answer_type == "other"
    test = read_source("vizwiz", tmp_path, split="test")
    assert test.references.by_id == {}, "answers of the test split are not public"
    assert test.data.test[0].image == "vizwiz/test/t.jpg"


def _annotations(change: Callable[[list[Any]], object]) -> tuple[str, Callable[[Any], object]]:
    return "val_annotations_vqa_format.json", lambda table: change(table["annotations"])


def _questions(change: Callable[[list[Any]], object]) -> tuple[str, Callable[[Any], object]]:
    return "val_questions_vqa_format.json", lambda table: change(table["questions"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_annotations(lambda rows: rows.pop()), r"val_annotations_vqa_format.json has no annotation for question 50"),
        (_questions(lambda rows: rows.pop()), r"has no question for 1 annotations of .*, such as 52"),
        (_questions(lambda rows: rows.append(rows[0])), "question 50 occurs twice"),
        (_annotations(lambda rows: rows.append(rows[0])), "question 52 is annotated twice"),
        (_annotations(lambda rows: rows[0]["answers"].pop()), "question 52 has 9 answers, expected 10"),
        (_annotations(lambda rows: rows[0]["answers"][0].update(answer=5)), r"annotations\[0\]: 'answer' is missing or not of type str"),
        (_annotations(lambda rows: rows[0]["answers"][3].update(answer=" ")), "question 52 has an empty answer; if that is meant, set"),
        (_annotations(lambda rows: rows[0].pop("answers")), r"annotations\[0\]: 'answers' is missing"),
        (_questions(lambda rows: rows[1].update(question=None)), r"questions\[1\]: 'question' is missing"),
        (_questions(lambda rows: rows[1].update(image_id="../../x")), "is not a path inside the data folder"),
        (_questions(lambda rows: rows.clear()), "has no question for 3 annotations|holds no questions"),
    ],
)  # fmt: skip
def test_broken_vqa_files(tmp_path: Path, edit: tuple[str, Callable[[Any], object]], message: str) -> None:
    folder = tmp_path / "textvqa"
    write_converted(folder, "train", 0)
    write_converted(folder, "val", 50)
    name, change = edit
    table = json.loads((folder / name).read_text())
    change(table)
    (folder / name).write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        VQA.examples(TEXTVQA, tmp_path, "val")


def test_some_questions_without_answers_are_an_error_not_a_smaller_set(tmp_path: Path) -> None:
    folder = tmp_path / "textvqa"
    write_published_textvqa(folder, "train", 0)
    write_published_textvqa(folder, "val", 50)
    path = folder / "TextVQA_0.5.1_val.json"
    edits: list[tuple[Callable[[Any], object], str]] = [
        (lambda row: row.update(answers=[]), "question 51 has 0 answers"),
        (lambda row: row.pop("answers"), "differ in whether"),
    ]
    for edit, message in edits:
        table = json.loads(path.read_text())
        edit(table["data"][1])
        (folder / "val_questions_vqa_format.json").write_text(json.dumps(table))
        with pytest.raises(DataError, match=message):
            VQA.examples(TEXTVQA, tmp_path, "val")


def test_what_is_no_vqa_file(tmp_path: Path) -> None:
    write_converted(tmp_path / "textvqa", "train", 0)
    (tmp_path / "textvqa" / "val_questions_vqa_format.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match="is neither a VQA questions file"):
        VQA.examples(TEXTVQA, tmp_path, "val")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "img": "i.png", "label": 2, "text": "a"}', "line 1: label 2 is none of 0 to 1"),
        ('{"id": 1, "img": "i.png", "label": true, "text": "a"}', "'label' is missing or not of type int"),
        ('{"id": 1, "img": "i.png", "label": 0}', "line 1: 'text' is missing"),
        ('{"id": 1, "img": "../i.png", "label": 0, "text": ""}', "is not a path inside"),
        ("{", "line 1 is not valid JSON"),
        ('{"id": 1, "img": "i.png", "label": 0, "text": "\\ud800"}', "line 1 holds a text with half a character"),
    ],
)
def test_broken_memes(tmp_path: Path, line: str, message: str) -> None:
    write_memes(tmp_path, line)
    with pytest.raises(DataError, match=message):
        MEMES.examples(load_benchmark("hateful_memes").data, tmp_path, "dev_seen")


def test_memes_without_labels_demonstrate_nothing(tmp_path: Path) -> None:
    write_memes(tmp_path)
    (tmp_path / "hateful_memes" / "train.jsonl").write_text('{"id": 5, "img": "i.png", "text": "a\u2028b"}\n')
    with pytest.raises(DataError, match="demonstrations need labels, and the line of id 5 has none"):
        MEMES.examples(load_benchmark("hateful_memes").data, tmp_path, "dev_seen")


def test_memes_fall_back_to_the_first_releases_names(tmp_path: Path) -> None:
    write_memes(tmp_path)
    source = read_source("hateful_memes", tmp_path)
    assert source.data.notes == ("dev_seen from dev.jsonl",)
    assert source.references.by_id == {1: "no"}
    with pytest.raises(DataError, match=r"test_unseen.jsonl does not exist"):
        read_source("hateful_memes", tmp_path, split="test_unseen")


def write_classes(root: Path, splits: dict[str, dict[str, int]]) -> DataRules:
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / "imagenet" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (4, 4)).save(folder / f"{i}.JPEG")
            (folder / "notes.txt").write_text("not an image")
    return load_benchmark("imagenet").data


def test_image_folders_in_torchvisions_order(tmp_path: Path) -> None:
    rules = write_classes(tmp_path, {"train": {"n2": 2, "n1": 1}, "val": {"n1": 1, "n2": 1}})
    with pytest.raises(
        DataError,
        match=r"train: the class folders are not the 1,000 ids .*2 others, such as n1; .*name the classes in .*class_names.json",
    ):
        FOLDERS.examples(rules, tmp_path, "val")
    (tmp_path / "imagenet" / "class_names.json").write_text('{"n1": "cat", "n2": "dog"}')
    data = FOLDERS.examples(rules, tmp_path, "val")
    assert [(e.id, e.image, e.fields["label"]) for e in data.train] == [
        (0, "imagenet/train/n1/0.JPEG", "cat"),
        (1, "imagenet/train/n2/0.JPEG", "dog"),
        (2, "imagenet/train/n2/1.JPEG", "dog"),
    ]
    assert data.names == ("cat", "dog")
    assert FOLDERS.references(rules, tmp_path, "val").by_id == {0: "cat", 1: "dog"}


@pytest.mark.torch
def test_image_folders_are_torchvisions(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    rules = write_classes(tmp_path, {"train": {"b": 11, "a": 3, "B": 2}, "val": {"a": 1}})
    (tmp_path / "imagenet" / "class_names.json").write_text('{"a": "x", "b": "y", "B": "z"}')
    theirs = [
        Path(path).relative_to(tmp_path).as_posix() for path, _ in ImageFolder(tmp_path / "imagenet" / "train").imgs
    ]
    assert [e.image for e in FOLDERS.examples(rules, tmp_path, "val").train] == theirs


@pytest.mark.torch
def test_imagenets_names_are_open_clips() -> None:
    from open_clip import IMAGENET_CLASSNAMES

    carried = (resource_folder("benchmarks") / "imagenet_names.txt").read_text().splitlines()
    assert carried == list(IMAGENET_CLASSNAMES)
    task = load_benchmark("imagenet").task
    assert isinstance(task, Ranking)
    assert task.names == tuple(dict.fromkeys(carried))
    assert len(task.names) == 998, "missile and sunglasses are there twice"


@pytest.mark.parametrize(
    ("name", "protocol", "message"),
    [
        ("hateful_memes", "openflamingo-2023-06", "that harness is defective here"),
        ("hateful_memes", "openflamingo-2023-03", "only captions and VQA"),
        ("vizwiz", "openflamingo-2023-03", "only captions and VQA"),
    ],
)
def test_what_a_harness_could_not_do_is_refused_with_the_reason(name: str, protocol: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_benchmark(name, protocol=protocol)


@pytest.mark.slow
def test_no_code_names_a_benchmark() -> None:
    """Names stand in TOML files; the demo's data is the one exception, since it writes them."""
    package = Path(__file__).parents[2] / "flamingo_eval"
    names = {"coco", "flickr30k", "vqav2", "okvqa", "textvqa", "vizwiz", "hateful_memes", "hateful-memes", "imagenet"}
    files = [path for path in package.rglob("*.py") if "demo" not in path.relative_to(package).parts]
    assert len(files) > 40
    for path in files:
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert not names & {string for string in strings if isinstance(string, str)}, path


def synsets() -> list[str]:
    return (resource_folder("benchmarks") / "imagenet_synsets.txt").read_text().splitlines()


@pytest.mark.torch
def test_imagenets_folders_are_timms() -> None:
    import timm

    info = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    assert info.read_text().splitlines() == synsets()
    assert synsets() == sorted(synsets()), "the order that names are published in"


def write_thousand(root: Path, names: list[str]) -> DataRules:
    """An image each for a thousand class folders, under both splits."""
    for split in ("train", "val"):
        for name in names:
            folder = root / "imagenet" / split / name
            folder.mkdir(parents=True)
            (folder / "a.JPEG").write_bytes(b"never opened")
    return load_benchmark("imagenet").data


@pytest.mark.slow
def test_a_class_folders_name_says_what_it_shows_not_its_place(tmp_path: Path) -> None:
    rules = write_thousand(tmp_path / "right", synsets())
    for hidden in (".ipynb_checkpoints", "n01440764/.cache"):
        (tmp_path / "right/imagenet/train" / hidden).mkdir()
        (tmp_path / "right/imagenet/train" / hidden / "b.JPEG").write_bytes(b"a copy that an editor left")
    (tmp_path / "right/imagenet/train/n01440764/._a.JPEG").write_bytes(b"what macOS leaves")
    train = FOLDERS.examples(rules, tmp_path / "right", "val").train
    assert len(train) == 1000
    assert train[0].fields["label"] == "tench"
    assert train[999].fields["label"] == "toilet paper"
    for names in ([str(i) for i in range(1000)], [f"{i:03}" for i in range(1000)], ["n00000001", *synsets()[1:]]):
        root = tmp_path / names[0]
        write_thousand(root, names)
        for read in (FOLDERS.examples, FOLDERS.references):
            with pytest.raises(DataError, match=r"the class folders are not the 1,000 ids .*class_names.json"):
                read(rules, root, "val")


def test_images_outside_class_folders_are_distinguished_from_none(tmp_path: Path) -> None:
    rules = write_classes(tmp_path, {"train": {"n1": 1}, "val": {}})
    (tmp_path / "imagenet" / "class_names.json").write_text('{"n1": "cat"}')
    (tmp_path / "imagenet" / "val").mkdir()
    (tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match="val holds images directly; they must lie in a folder per class"):
        FOLDERS.examples(rules, tmp_path, "val")


def test_other_class_names_are_other_data(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}})
    names = tmp_path / "imagenet" / "class_names.json"
    digests = set()
    for text in ('{"a": "cat", "b": "dog"}', '{"a": "dog", "b": "cat"}'):
        names.write_text(text)
        digests.add(read_source("imagenet", tmp_path).digest)
    assert len(digests) == 2


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    write_memes(tmp_path)
    file = tmp_path / "hateful_memes" / "train.jsonl"
    file.write_text(file.read_text().replace('"label":', '"label": 0, "label":', 1))
    with pytest.raises(DataError, match=r"train.jsonl, line 1: the key 'label' occurs twice in one object"):
        read_source("hateful_memes", tmp_path)


def test_annotations_swapped_between_two_reads_are_noticed(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path, train=3, test=2)
    file = root / "coco" / "dataset_coco.json"
    full = file.read_bytes()
    source = read_source("coco", root)
    file.write_bytes(full.replace(b"a thing 500", b"a king 5000"))
    with pytest.raises(DataError, match=r"dataset_coco.json has changed while this command was reading it"):
        _ = source.references
    file.unlink()
    assert source.digest == files_digest_of(full), "of the bytes the plan was made from"


def files_digest_of(content: bytes) -> str:
    return digest([bytes_digest(content)])
