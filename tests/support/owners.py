"""Miniature archives of every benchmark, as their owners lay them out, and a server that gives them away."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.serving import serve

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SYNSETS = (BENCHMARKS / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
TRAIN, TEST = 12, 8
"""Images of each benchmark."""


def jpeg(number: int) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(files: Mapping[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """A tar archive; ``w:gz`` for a compressed one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def answer(number: int) -> str:
    """What ten annotators say of image n."""
    return ("red", "green", "blue")[number % 3]


def _karpathy(folder: str, name: str, first: int) -> dict[str, Any]:
    """Karpathy's file; COCO's records name a folder and an id, Flickr30K's do not."""
    images = []
    for number in range(first, first + TRAIN + TEST):
        split, year = ("train", "train2014") if number < first + TRAIN else ("test", "val2014")
        own = {"filepath": year, "cocoid": number} if folder == "coco" else {}
        sentences = [{"raw": f"a thing {number}"}, {"raw": f"thing {number} on a table"}]
        images.append({"filename": name.format(year=year, n=number), "split": split, "sentences": sentences, **own})
    return {"images": images, "dataset": folder}


def _vqa(first: int, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Questions and annotations in VQA's form."""
    numbers = range(first, first + TRAIN) if split == "train" else range(first + TRAIN, first + TRAIN + TEST)
    questions = [{"question_id": n * 10, "image_id": n, "question": f"What is thing {n}?"} for n in numbers]
    annotations = [
        {**{k: q[k] for k in ("question_id", "image_id")}, "question_type": "what", "answer_type": "other",
         "answers": [{"answer": answer(n), "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]}
        for q, n in zip(questions, numbers, strict=True)
    ]  # fmt: skip
    return {"questions": questions}, {"annotations": annotations}


COCO, VQA, OK = 100, 300, 500
"""First image numbers of the benchmarks that share COCO's images."""


def _coco_images(year: str) -> dict[str, bytes]:
    train = year == "train2014"
    numbers = [
        n for first in (COCO, VQA, OK)
        for n in (range(first, first + TRAIN) if train else range(first + TRAIN, first + TRAIN + TEST))
    ]  # fmt: skip
    return {f"{year}/COCO_{year}_{n:012d}.jpg": jpeg(n) for n in numbers}


def _captions(year: str) -> bytes:
    images = _karpathy("coco", "COCO_{year}_{n:012d}.jpg", COCO)["images"]
    own = [image for image in images if image["filepath"] == year]
    rows = [{"image_id": image["cocoid"], "caption": s["raw"]} for image in own for s in image["sentences"]]
    return dumped({"images": [{"id": image["cocoid"]} for image in own], "annotations": rows})


def coco() -> dict[str, bytes]:
    captions = {f"annotations/captions_{year}.json": _captions(year) for year in ("train2014", "val2014")}
    other = {"annotations/instances_val2014.json": dumped({"annotations": []})}
    test = {f"test2015/COCO_test2015_{n:012d}.jpg": jpeg(n) for n in range(900, 904)}
    return {
        "train2014.zip": packed(_coco_images("train2014")),
        "val2014.zip": packed(_coco_images("val2014")),
        "test2015.zip": packed(test),
        "annotations_trainval2014.zip": packed({**captions, **other}),
        "caption_datasets.zip": packed({
            "dataset_coco.json": dumped(_karpathy("coco", "COCO_{year}_{n:012d}.jpg", COCO)),
            "dataset_flickr30k.json": dumped(_karpathy("flickr30k", "{n}.jpg", 1000)),
            "dataset_flickr8k.json": dumped({"images": []}),
        }),
    }  # fmt: skip


def flickr30k() -> dict[str, bytes]:
    images = {f"flickr30k-images/{n}.jpg": jpeg(n) for n in range(1000, 1000 + TRAIN + TEST)}
    rows = [{"image_id": str(n), "caption": f"a thing {n}"} for n in range(1000, 1000 + TRAIN + TEST)]
    style = {"images": [{"id": row["image_id"]} for row in rows], "annotations": rows}
    return {"flickr30k-images.tar.gz": tarred(images, "w:gz"), "dataset_flickr30k_coco_style.json": dumped(style)}


def vqav2() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for split, title in (("train", "Train"), ("val", "Val")):
        questions, annotations = _vqa(VQA, split)
        asked, answered = f"v2_OpenEnded_mscoco_{split}2014_questions.json", f"v2_mscoco_{split}2014_annotations.json"
        files[f"v2_Questions_{title}_mscoco.zip"] = packed({asked: dumped(questions)})
        files[f"v2_Annotations_{title}_mscoco.zip"] = packed({answered: dumped(annotations)})
    test = dumped({"questions": [{"question_id": n, "image_id": n, "question": "What?"} for n in range(900, 904)]})
    names = ("v2_OpenEnded_mscoco_test2015_questions.json", "v2_OpenEnded_mscoco_test-dev2015_questions.json")
    files["v2_Questions_Test_mscoco.zip"] = packed(dict.fromkeys(names, test))
    return files


def okvqa() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for split in ("train", "val"):
        questions, annotations = _vqa(OK, split)
        asked, answered = f"OpenEnded_mscoco_{split}2014_questions.json", f"mscoco_{split}2014_annotations.json"
        files |= {
            f"{asked}.zip": packed({asked: dumped(questions)}),
            f"{answered}.zip": packed({answered: dumped(annotations)}),
        }
    return files


def _converted(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, bytes]:
    """The files as converted for the reference."""
    files = {}
    for split, own in rows.items():
        keys = [{"question_id": row["question_id"], "image_id": row["image_id"]} for row in own]
        questions = [{**key, "question": row["question"]} for key, row in zip(keys, own, strict=True)]
        files[f"{split}_questions_vqa_format.json"] = dumped({"questions": questions})
        if split != "test":
            annotations = [
                {**key, "question_type": "o", "answer_type": "other",
                 "answers": [{"answer": answer(n), "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]}
                for n, key in enumerate(keys)
            ]  # fmt: skip
            files[f"{split}_annotations_vqa_format.json"] = dumped({"annotations": annotations})
    return files


def textvqa() -> dict[str, bytes]:
    rows = {
        split: [{"question_id": n, "image_id": f"{n:016x}", "question": f"What is thing {n}?"} for n in numbers]
        for split, numbers in (("train", range(TRAIN)), ("val", range(TRAIN, TRAIN + TEST)))
    }
    published = {
        f"TextVQA_0.5.1_{split}.json": dumped(
            {"data": [{**row, "answers": [answer(n)] * 10} for n, row in enumerate(own)]}
        )
        for split, own in rows.items()
    }
    images = {f"train_images/{n:016x}.jpg": jpeg(n) for n in range(TRAIN + TEST)}
    return {"train_val_images.zip": packed(images), **published, **_converted(rows)}


def _unnumbered(number: int) -> list[dict[str, str]]:
    """VizWiz's answers have no ids, so that those of equal confidence are equal."""
    return [{"answer": answer(number), "answer_confidence": ("yes", "maybe", "no")[i % 3]} for i in range(10)]


def vizwiz(folder: str = "") -> dict[str, bytes]:
    """Sources disagree about whether the annotations are in a folder."""
    splits = {"train": range(TRAIN), "val": range(TEST), "test": range(4)}
    rows = {
        s: [{"image": f"VizWiz_{s}_{n:08d}.jpg", "question": "What is it?"} for n in own] for s, own in splits.items()
    }
    annotated = {
        s: [{**row, "answers": _unnumbered(n), "answer_type": "other"}
            if s != "test" else row for n, row in enumerate(own)]
        for s, own in rows.items()
    }  # fmt: skip
    images = {
        f"{s}.zip": packed(
            {f"{s}/VizWiz_{s}_{n:08d}.jpg": jpeg(n) for n in own} | {f"__MACOSX/{s}/._VizWiz_{s}_x.jpg": b"?"}
        )
        for s, own in splits.items()
    }
    converted = {
        s: [{**row, "question_id": i, "image_id": row["image"]} for i, row in enumerate(own)] for s, own in rows.items()
    }
    annotations = packed({f"{folder}{s}.json": dumped(own) for s, own in annotated.items()})
    return {"Annotations.zip": annotations, **images, **_converted(converted)}


def hateful_memes(first_release: bool = False) -> dict[str, bytes]:
    splits = {
        "train": range(TRAIN),
        "dev_seen": range(20, 28),
        "dev_unseen": range(30, 34),
        "test_seen": range(40, 44),
        "test_unseen": range(50, 54),
    }
    names = {"dev_seen": "dev", "test_seen": "test"} if first_release else {}
    files: dict[str, bytes] = {"data/LICENSE.txt": b"terms"}
    for split, numbers in splits.items():
        rows = [{"id": n, "img": f"img/{n:05d}.png", "label": n % 2, "text": f"text {n}"} for n in numbers]
        files[f"data/{names.get(split, split)}.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
        files |= {f"data/img/{n:05d}.png": jpeg(n) for n in numbers}
    return {"hateful_memes.zip": packed(files)}


def imagenet() -> dict[str, bytes]:
    """Every class has one image to show; twenty images are asked about. Numbers are not in the classes' order."""
    from scipy.io import savemat

    train = {f"{one}.tar": tarred({f"{one}_{i}.JPEG": jpeg(i)}) for i, one in enumerate(SYNSETS)}
    order = np.random.RandomState(0).permutation(len(SYNSETS))
    kinds = np.array(
        [(n + 1, SYNSETS[at]) for n, at in enumerate(order)], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    table = io.BytesIO()
    savemat(table, {"synsets": kinds.reshape(-1, 1)})
    truth = VALIDATION
    numbers = {SYNSETS[at]: n + 1 for n, at in enumerate(order)}
    kit = {
        "ILSVRC2012_devkit_t12/readme.txt": b"...",
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{numbers[one]}\n" for one in truth
        ).encode(),
        "ILSVRC2012_devkit_t12/data/meta.mat": table.getvalue(),
    }
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(i) for i in range(1, len(truth) + 1)}
    return {
        "ILSVRC2012_img_train.tar": tarred(train),
        "ILSVRC2012_img_val.tar": tarred(val),
        "ILSVRC2012_devkit_t12.tar.gz": tarred(kit, "w:gz"),
    }


VALIDATION = [SYNSETS[n * 37 % 1000] for n in range(20)]
"""Classes of ImageNet's miniature validation images, in the images' order."""

OWNERS: dict[str, Callable[[], dict[str, bytes]]] = {
    "coco": coco, "flickr30k": flickr30k, "vqav2": vqav2, "okvqa": okvqa, "textvqa": textvqa, "vizwiz": vizwiz,
    "hateful_memes": hateful_memes, "imagenet": imagenet,
}  # fmt: skip


class Shelf:
    """A server that gives files away, and does as a test says.

    Attributes:
        files: by name.
        asked: (name, Range header) of every request.
        cut: after how many bytes the connection is lost, for each request; None for never.
        status: for a name, what is answered instead.
        tags: for a name, its ETag; an empty one for none.
        ranges: whether parts can be asked for.
        moved: whether a request is sent on to another address first.
        headers: of the last request.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files, self.asked = dict(files), list[tuple[str, str]]()
        self.cut: Callable[[str], int | None] = lambda _: None
        self.status: dict[str, int] = {}
        self.tags: dict[str, str] = {}
        self.ranges, self.moved, self.lengths, self.loop = True, False, True, False
        self.headers: dict[str, str] = {}
        handler = type("Handler", (_Handler,), {"shelf": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        serve(self.server)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def tag(self, name: str) -> str:
        return self.tags.get(name, f'"{hashlib.md5(self.files[name]).hexdigest()}"')


class _Handler(BaseHTTPRequestHandler):
    shelf: Shelf
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        shelf, name = self.shelf, self.path.rpartition("/")[2].partition("?")[0]
        shelf.headers = dict(self.headers)
        if (shelf.moved and "?moved" not in self.path) or shelf.loop:
            return self._send(302, {"Location": f"{self.path}?moved", "Content-Length": "0"}, b"")
        shelf.asked.append((name, self.headers.get("Range", "")))
        status = shelf.status.get(name, 200 if name in shelf.files else 404)
        if status != 200:
            return self._send(status, {"Content-Length": "4"}, b"no.\n")
        content, tag = shelf.files[name], shelf.tag(name)
        headers = {"ETag": tag} if tag else {}
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(match[1]) if match and shelf.ranges and self.headers.get("If-Range", tag) == tag else 0
        if begin >= len(content) and begin:
            return self._send(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}, b"")
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body = content[begin:]
        headers["Content-Length"] = str(len(body))
        if not shelf.lengths:
            del headers["Content-Length"]
            headers["Connection"] = "close"
        cut = shelf.cut(name)
        self._send(206 if begin else 200, headers, body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True
            self.connection.close()
        return None

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def benchmark_files(folder: Path, url: str, files: Mapping[str, bytes], names: Iterable[str] = OWNERS) -> Path:
    """The benchmarks' own files, where sizes, digests and addresses are the miniatures'; files that a person has to get
    stay so."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in BENCHMARKS.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml" and path.stem in names:
            text = re.sub(r"^counts = \{.*?\}", "counts = {}", text, flags=re.M)
            text = "".join(_for_miniature(part, url, files) for part in re.split(r"(?=\[\[download\.files\]\])", text))
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def _for_miniature(part: str, url: str, files: Mapping[str, bytes]) -> str:
    match = re.search(r'^name = "(.+)"', part, re.M)
    if not part.startswith("[[download.files]]") or match is None or match[1] not in files:
        return part
    content = files[match[1]]
    part = re.sub(r'^address = "http.*"', f'address = "{url}/{match[1]}"', part, flags=re.M)
    part = re.sub(r"^size = .*", f"size = {len(content)}", part, flags=re.M)
    part = re.sub(r"^unpacked = .*\n", "", part, flags=re.M)
    return re.sub(
        r'^digest = "(\w+):.*"',
        lambda m: f'digest = "{m[1]}:{hashlib.new(m[1], content).hexdigest()}"',
        part,
        flags=re.M,
    )
