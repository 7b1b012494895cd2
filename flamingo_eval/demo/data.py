"""The demo's data: written once, deterministically, each benchmark in its real on-disk format."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_eval.core.digests import digest
from flamingo_eval.core.paths import cache_folder
from flamingo_eval.core.progress import note
from flamingo_eval.demo import words, world
from flamingo_eval.demo.held_out import DIALECTS, OWNED, RULES, SEED
from flamingo_eval.demo.others import SIZES, write_others
from flamingo_eval.demo.writing import Size, dump, write_images
from flamingo_eval.storage.files import storage_errors

SIZE = Size(train=2400, test=200)
DIALECT: words.Dialect = DIALECTS["captions"]
"""The captions' dialect; training never draws it."""

_PARTIAL = ".demo-data-"
_ABANDONED = 3600.0
"""Age in seconds at which an unfinished folder counts as abandoned; writing takes a few seconds."""

VERSION = "4"
"""Increased whenever a change of the code changes the files; part of the cache folder's name."""


def write_coco(folder: Path, *, demonstrations: words.Dialect = DIALECT, wrong_images: bool = False) -> None:
    """Writes images, Karpathy's JSON and the caption file of the test images into ``folder``.

    Args:
        folder: the benchmark's folder, ``.../coco``.
        demonstrations: dialect of the training captions; the test captions are always in ``DIALECT``.
        wrong_images: give every test example the image of the next one (a control: same texts, unrelated images).
    """
    generator = np.random.RandomState(SEED)
    images: list[dict[str, Any]] = []
    test_files: list[Path] = []

    def name(number: int, split: str) -> str:
        filepath = "train2014" if split == "train" else "val2014"
        return f"{filepath}/COCO_{filepath}_{1000 + 7 * number:012d}.png"

    for item in write_images(folder, SIZE, name, generator):
        texts = words.captions(item.scene, demonstrations if item.split == "train" else DIALECT, generator)
        if item.split == "test":
            test_files.append(item.path)
        sentences = [
            {"raw": text, "tokens": text.split(), "imgid": item.number, "sentid": 5 * item.number + i}
            for i, text in enumerate(texts)
        ]
        images.append({"filepath": item.path.parent.name, "filename": item.path.name, "cocoid": 1000 + 7 * item.number,
                       "imgid": item.number, "split": item.split, "sentids": [s["sentid"] for s in sentences],
                       "sentences": sentences})  # fmt: skip
    if wrong_images:
        contents = [file.read_bytes() for file in test_files]
        for file, content in zip(test_files, contents[1:] + contents[:1], strict=True):
            file.write_bytes(content)
    dump(folder / "dataset_coco.json", {"images": images, "dataset": "flamingo-eval demo"})
    test = [image for image in images if image["split"] == "test"]
    dump(
        folder / "annotations" / "captions_val2014.json",
        {
            # "pictures" must stay until VERSION is increased: this text is part of the data's digest
            "info": {"description": "flamingo-eval demo: generated pictures"},
            "type": "captions",
            "images": [
                {"id": i["cocoid"], "file_name": i["filename"], "width": world.SIDE, "height": world.SIDE} for i in test
            ],
            "annotations": [
                {"image_id": i["cocoid"], "id": s["sentid"], "caption": s["raw"]} for i in test for s in i["sentences"]
            ],
        },
    )


def world_digest() -> str:
    """Identifies a version of the generated data; part of the names of the folders that hold it."""
    sizes = [[size.train, size.test] for size in (SIZE, *SIZES.values())]
    held_out = [[list(d.values()) for d in DIALECTS.values()], list(OWNED.items()), [sorted(rule) for rule in RULES]]
    return digest([VERSION, sizes, SEED, held_out, words.spoken()])[:10]


def write_once(final: Path, last: str, write: Callable[[Path], None]) -> Path:
    """Writes a folder into the cache, completely or not at all, if it is not there.

    Args:
        final: the folder.
        last: a file in it; without it the folder is incomplete.
        write: writes everything into the folder it is given.

    Raises:
        StorageError: the cache folder can't be written.
    """
    if (final / last).is_file():
        return final
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in final.parent.glob(f"{_PARTIAL}*"):  # left by a process that was killed while it wrote
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(dir=final.parent, prefix=_PARTIAL))
        try:
            write(partial)
            partial.chmod(0o755)
            if not (final / last).is_file():  # else another process was faster, and wrote the same
                shutil.rmtree(final, ignore_errors=True)  # something that is not ours, or is broken
                os.replace(partial, final)
        except OSError:
            if not (final / last).is_file():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def demo_data_root() -> Path:
    """The demo's data root; written into the cache folder on first use, completely or not at all.

    Raises:
        StorageError: the cache folder can't be written.
    """
    final = cache_folder() / f"demo-data-{world_digest()}"

    def write(folder: Path) -> None:
        count = sum(size.train + size.test for size in (SIZE, *SIZES.values()))
        note(f"writing the demo's {count} images to {final}")
        write_coco(folder / "coco")
        write_others(folder)

    return write_once(final, "imagenet/class_names.json", write)
