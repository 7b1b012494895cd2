"""Mini versions of the other benchmarks in the demo's world, each in its real on-disk format.

The checkpoint was trained on captions only: these show that every benchmark runs, not that the demo is good at them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_eval.demo import world

TRAIN, TEST = 64, 24
_VAGUE = "unanswerable"


@dataclass(frozen=True)
class Item:
    """A picture that has been written, and what it shows."""

    number: int
    scene: world.Scene


def _pictures(
    folder: Path, names: Callable[[int, str], str], generator: np.random.RandomState
) -> Iterator[tuple[str, Item]]:
    """Writes the pictures of both splits; ``names`` gives each a path in the folder."""
    for number in range(TRAIN + TEST):
        split = "train" if number < TRAIN else "test"
        scene = world.draw_scene(generator)
        path = folder / names(number, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        world.render(scene, generator).save(path)
        yield split, Item(number, scene)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _question(item: Item, dialect: world.Dialect, generator: np.random.RandomState) -> tuple[str, list[str]]:
    """A question about a picture and ten answers of people who do not all agree."""
    concept, question = (item.scene.colour, "What color?") if item.number % 2 else (item.scene.shape, "What shape?")
    others = [word for word in world.SYNONYMS[concept] if word != world.word(concept, dialect)]
    odd = int(generator.randint(0, 4))
    return question, [world.word(concept, dialect)] * (10 - odd) + [others[i % 2] for i in range(odd)]


def _answers(texts: list[str], with_ids: bool) -> list[dict[str, Any]]:
    return [
        {"answer": text, "answer_confidence": "yes"} | ({"answer_id": i} if with_ids else {})
        for i, text in enumerate(texts, start=1)
    ]


def write_flickr30k(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """Captions in Karpathy's file, in a dialect of their own."""
    folder = root / "flickr30k"
    own = tuple((choice + 2) % 3 for choice in dialect)
    images = []
    for split, item in _pictures(folder, lambda n, _: f"flickr30k-images/{7000 + n}.png", generator):
        sentences = [{"raw": text} for text in world.captions(item.scene, own, generator)]
        images.append({"filename": f"{7000 + item.number}.png", "split": split, "sentences": sentences})
    _dump(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flamingo-eval demo"})


def _write_vqa(
    folder: Path, files: dict[str, tuple[str, str]], images: dict[str, str], dialect: world.Dialect,
    generator: np.random.RandomState, ids: Callable[[int], Any], *, answer_ids: bool = True,
) -> None:  # fmt: skip
    """Questions and annotations in VQA format; ``files`` and ``images`` by split, ``ids`` from number to image id."""
    rows: dict[str, tuple[list[Any], list[Any]]] = {"train": ([], []), "test": ([], [])}
    for split, item in _pictures(folder, lambda n, s: images[s].format(image_id=ids(n)), generator):
        question, texts = _question(item, dialect, generator)
        if not answer_ids and item.number % 6 == 0:  # VizWiz: some questions can't be answered
            texts = [_VAGUE] * 7 + texts[:3]
        common = {"question_id": 9000 + item.number, "image_id": ids(item.number)}
        rows[split][0].append({**common, "question": question})
        rows[split][1].append(
            {
                **common,
                "question_type": question.lower(),
                "answer_type": "other",
                "answers": _answers(texts, answer_ids),
            }
        )
    for split, (questions_file, annotations_file) in files.items():
        _dump(folder / questions_file, {"questions": rows[split][0]})
        _dump(folder / annotations_file, {"annotations": rows[split][1]})


_COCO_IMAGES = {
    "train": "train2014/COCO_train2014_{image_id:012d}.jpg",
    "test": "val2014/COCO_val2014_{image_id:012d}.jpg",
}


def _coco_files(prefix: str) -> dict[str, tuple[str, str]]:
    """The names that VQAv2's and OK-VQA's files have, but for a prefix."""
    questions, annotations = "OpenEnded_mscoco_{}2014_questions.json", "mscoco_{}2014_annotations.json"
    return {
        split: (prefix + questions.format(name), prefix + annotations.format(name))
        for split, name in (("train", "train"), ("test", "val"))
    }


def write_vqav2(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """VQAv2's role."""
    _write_vqa(root / "vqav2", _coco_files("v2_"), _COCO_IMAGES, dialect, generator, lambda n: 30_000 + n)


def write_okvqa(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """OK-VQA's role."""
    _write_vqa(root / "ok_vqa", _coco_files(""), _COCO_IMAGES, dialect, generator, lambda n: 40_000 + n)


def _converted(split: str) -> tuple[str, str]:
    return f"{split}_questions_vqa_format.json", f"{split}_annotations_vqa_format.json"


def write_textvqa(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """TextVQA's role."""
    images = dict.fromkeys(("train", "test"), "train_images/{image_id}.jpg")
    files = {"train": _converted("train"), "test": _converted("val")}
    _write_vqa(root / "textvqa", files, images, dialect, generator, lambda n: f"{n:016x}")


def write_vizwiz(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """VizWiz's role: answers without ids, some questions unanswerable."""
    images = {"train": "train/{image_id}", "test": "val/{image_id}"}
    files = {"train": _converted("train"), "test": _converted("val")}
    _write_vqa(
        root / "vizwiz", files, images, dialect, generator, lambda n: f"VizWiz_demo_{n:08d}.jpg", answer_ids=False
    )


def write_hateful_memes(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """Hateful Memes' role: a picture and a text, labelled by a rule, here half of the colours."""
    folder, lines = root / "hateful_memes", {"train": "", "test": ""}
    marked = set(list(world.COLOURS)[::2])
    for split, item in _pictures(folder, lambda n, _: f"img/{50_000 + n}.png", generator):
        number = 50_000 + item.number
        text = f"a {world.word(item.scene.colour, dialect)} {world.word(item.scene.shape, dialect)}"
        row = {"id": number, "img": f"img/{number}.png", "label": int(item.scene.colour in marked), "text": text}
        lines[split] += json.dumps(row) + "\n"
    (folder / "train.jsonl").write_text(lines["train"], encoding="utf-8")
    (folder / "dev_seen.jsonl").write_text(lines["test"], encoding="utf-8")


def write_imagenet(root: Path, dialect: world.Dialect, generator: np.random.RandomState) -> None:
    """ImageNet's role: a class per shape."""
    folder = root / "imagenet"
    for split, count in (("train", 8), ("val", 3)):
        for number, shape in enumerate(world.SHAPES):
            for i in range(count):
                scene = world.draw_scene(generator)
                scene = world.Scene(scene.colour, shape, scene.x, scene.y, scene.radius, scene.background)
                path = folder / split / f"n{number:08d}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                world.render(scene, generator).save(path)
    names = {f"n{number:08d}": world.word(shape, dialect) for number, shape in enumerate(world.SHAPES)}
    _dump(folder / "class_names.json", names)


def write_others(root: Path, dialect: world.Dialect, seed: int) -> None:
    """Every mini benchmark but COCO, each from a generator of its own."""
    writers = (
        write_flickr30k, write_vqav2, write_okvqa, write_textvqa, write_vizwiz, write_hateful_memes, write_imagenet,
    )  # fmt: skip
    for number, write in enumerate(writers, start=1):
        write(root, dialect, np.random.RandomState([seed, number]))
