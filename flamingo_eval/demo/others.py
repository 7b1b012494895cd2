"""Mini versions of the other benchmarks in the demo's world, each in its real on-disk format."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_eval.demo import words, world
from flamingo_eval.demo.held_out import DIALECTS, OWNED, RULES, SEED
from flamingo_eval.demo.words import Question
from flamingo_eval.demo.writing import SAVING, Item, Size, dump, write_images, write_truth

SIZES = {
    "flickr30k": Size(800, 200),
    "vqav2": Size(800, 200),
    "ok_vqa": Size(800, 200),
    "textvqa": Size(300, 100),
    "vizwiz": Size(300, 100),
    "hateful_memes": Size(400, 200),
    "imagenet": Size(240, 120),
}
"""Images of each data set, by its folder."""
CLASSES = 12
WORD_QUESTIONS = 0.4
"""Share of VizWiz's questions that are about the printed word; most images have none."""

Asker = Callable[[Item, np.random.RandomState], Question]


def _answers(texts: list[str], with_ids: bool, generator: np.random.RandomState) -> list[dict[str, Any]]:
    """Annotators' records, with a confidence drawn for each, which matters where records are compared (VizWiz)."""
    sure = generator.choice(("yes", "maybe", "no"), size=len(texts), p=(0.6, 0.25, 0.15))
    return [
        {"answer": text, "answer_confidence": str(confidence)} | ({"answer_id": i} if with_ids else {})
        for i, (text, confidence) in enumerate(zip(texts, sure, strict=True), start=1)
    ]


def _type(answer: str) -> str:
    """The type that VQA's files give an answer."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else answer if answer == words.UNANSWERABLE else "other"


def write_flickr30k(root: Path, generator: np.random.RandomState) -> None:
    """The mini Flickr30K: captions in Karpathy's file format, in a dialect of their own."""
    folder, images = root / "flickr30k", []
    names = "flickr30k-images/{}.png".format
    for item in write_images(folder, SIZES["flickr30k"], lambda n, _: names(7000 + n), generator):
        sentences = [{"raw": text} for text in words.captions(item.scene, DIALECTS["more captions"], generator)]
        images.append({"filename": item.path.name, "split": item.split, "sentences": sentences})
    dump(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flamingo-eval demo"})


def _write_vqa(
    folder: Path, files: dict[str, tuple[str, str]], images: dict[str, str], generator: np.random.RandomState,
    ids: Callable[[int], Any], ask: Asker, *, answer_ids: bool = True,
    draw: Callable[[np.random.RandomState], world.Scene] = world.draw_scene,
) -> None:  # fmt: skip
    """Writes images, and questions and annotations in VQA format.

    Args:
        folder: the data set's.
        files: split -> names of its questions and annotations.
        images: split -> where its images are.
        generator: what to draw from.
        ids: maps an image's number to its id.
        ask: the question about an image.
        answer_ids: whether answers are numbered; VizWiz's are not.
        draw: how a scene is drawn.
    """
    rows: dict[str, tuple[list[Any], list[Any]]] = {"train": ([], []), "test": ([], [])}
    names: Callable[[int, str], str] = lambda n, split: images[split].format(image_id=ids(n))  # noqa: E731
    for item in write_images(folder, SIZES[folder.name], names, generator, draw):
        question = ask(item, generator)
        common = {"question_id": 9000 + item.number, "image_id": ids(item.number)}
        rows[item.split][0].append({**common, "question": question.text})
        answers = _answers(words.annotate(question, generator), answer_ids, generator)
        kinds = {"question_type": " ".join(question.text.split()[:2]).lower(), "answer_type": _type(question.answer)}
        rows[item.split][1].append({**common, **kinds, "answers": answers})
    for split, (questions_file, annotations_file) in files.items():
        dump(folder / questions_file, {"questions": rows[split][0]})
        dump(folder / annotations_file, {"annotations": rows[split][1]})


_COCO_IMAGES = {
    "train": "train2014/COCO_train2014_{image_id:012d}.jpg",
    "test": "val2014/COCO_val2014_{image_id:012d}.jpg",
}


def _coco_files(prefix: str) -> dict[str, tuple[str, str]]:
    """The names of VQAv2's and OK-VQA's files, which differ only in a prefix."""
    questions, annotations = "OpenEnded_mscoco_{}2014_questions.json", "mscoco_{}2014_annotations.json"
    return {
        split: (prefix + questions.format(name), prefix + annotations.format(name))
        for split, name in (("train", "train"), ("test", "val"))
    }


def _ask(item: Item, generator: np.random.RandomState) -> Question:
    return words.ask(item.scene, DIALECTS["questions"], generator)


def _ask_some_words(item: Item, generator: np.random.RandomState) -> Question:
    return words.ask_word(item.scene) if generator.rand() < WORD_QUESTIONS else _ask(item, generator)


def write_vqav2(root: Path, generator: np.random.RandomState) -> None:
    """The mini VQAv2: questions about colours, shapes, counts and sides, and yes-or-no questions."""
    _write_vqa(root / "vqav2", _coco_files("v2_"), _COCO_IMAGES, generator, lambda n: 30_000 + n, _ask)


def write_okvqa(root: Path, generator: np.random.RandomState) -> None:
    """The mini OK-VQA: a thing's colour decides who owns it, but only demonstrations show who owns which colour."""
    draw = partial(world.draw_scene, pairs=0.0)
    ask: Asker = lambda item, _: words.ask_owner(item.scene, OWNED)  # noqa: E731
    _write_vqa(root / "ok_vqa", _coco_files(""), _COCO_IMAGES, generator, lambda n: 40_000 + n, ask, draw=draw)


def _converted(split: str) -> tuple[str, str]:
    return f"{split}_questions_vqa_format.json", f"{split}_annotations_vqa_format.json"


def write_textvqa(root: Path, generator: np.random.RandomState) -> None:
    """The mini TextVQA: questions about the printed word."""
    images = dict.fromkeys(("train", "test"), "train_images/{image_id}.jpg")
    files = {"train": _converted("train"), "test": _converted("val")}
    draw = partial(world.draw_scene, printed=1.0)
    ask: Asker = lambda item, _: words.ask_word(item.scene)  # noqa: E731
    _write_vqa(root / "textvqa", files, images, generator, lambda n: f"{n:016x}", ask, draw=draw)


def write_vizwiz(root: Path, generator: np.random.RandomState) -> None:
    """The mini VizWiz: answers without ids, and some questions about a printed word, which most images don't have."""
    images = {"train": "train/{image_id}", "test": "val/{image_id}"}
    files = {"train": _converted("train"), "test": _converted("val")}
    _write_vqa(root / "vizwiz", files, images, generator, "VizWiz_demo_{:08d}.jpg".format, _ask_some_words,
               answer_ids=False)  # fmt: skip


def write_hateful_memes(root: Path, generator: np.random.RandomState, rule: words.Rule = RULES[0]) -> None:
    """The mini Hateful Memes: an image and the text on it, labelled by a rule that marks half of the colours."""
    folder, lines = root / "hateful_memes", {"train": "", "test": ""}
    draw = partial(world.draw_scene, pairs=0.0, printed=1.0)
    for item in write_images(folder, SIZES["hateful_memes"], lambda n, _: f"img/{50_000 + n}.png", generator, draw):
        row = {"id": 50_000 + item.number, "img": f"img/{item.path.name}",
               "label": int(item.scene.main.colour in rule), "text": item.scene.printed}  # fmt: skip
        lines[item.split] += json.dumps(row) + "\n"
    (folder / "train.jsonl").write_text(lines["train"], encoding="utf-8")
    (folder / "dev_seen.jsonl").write_text(lines["test"], encoding="utf-8")


def write_imagenet(root: Path, generator: np.random.RandomState) -> None:
    """The mini ImageNet: twelve classes, each a shape of one colour, named in a dialect."""
    folder, size = root / "imagenet", SIZES["imagenet"]
    pairs = [(colour, shape) for colour in world.COLOURS for shape in world.SHAPES]
    classes = [pairs[i] for i in generator.permutation(len(pairs))[:CLASSES]]
    truth = {}
    for split, count in (("train", size.train // CLASSES), ("val", size.test // CLASSES)):
        for number, (colour, shape) in enumerate(classes):
            for i in range(count):
                scene = world.draw_scene(generator, pairs=0.0, copies=0.0, colour=colour, shape=shape)
                path = folder / split / f"n{number:08d}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                world.render(scene, generator).save(path, **SAVING)
                truth[path.relative_to(folder).as_posix()] = scene
    write_truth(folder, truth)
    dialect = DIALECTS["classes"]
    names = {f"n{number:08d}": f"{dialect[c]} {dialect[s]}" for number, (c, s) in enumerate(classes)}
    dump(folder / "class_names.json", names)


def write_others(root: Path) -> None:
    """Writes every mini benchmark except COCO, each from a generator of its own."""
    writers = (
        write_flickr30k, write_vqav2, write_okvqa, write_textvqa, write_vizwiz, write_hateful_memes, write_imagenet,
    )  # fmt: skip
    for number, write in enumerate(writers, start=1):
        write(root, np.random.RandomState([SEED, 100 + number]))
