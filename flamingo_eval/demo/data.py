"""The demo's data set: written once, deterministically, in COCO's on-disk format."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_eval.demo import world
from flamingo_eval.demo.others import write_others
from flamingo_eval.files import cache_folder, digest, storage_errors

TRAIN, TEST = 2400, 200
SEED = 2014
DIALECT: world.Dialect = world.draw_dialect(np.random.RandomState(SEED))
"""The shipped data set's dialect; training never draws it."""

VERSION = "2"
"""Counted up whenever a change of the code changes the files; part of the cache folder's name."""


def write_coco(folder: Path, *, demonstrations: world.Dialect = DIALECT, wrong_pictures: bool = False) -> None:
    """Writes pictures, Karpathy's JSON and the caption file of the test pictures into ``folder``.

    Args:
        folder: the benchmark's folder, ``.../coco``.
        demonstrations: dialect of the training captions; the test captions are always in ``DIALECT``.
        wrong_pictures: give every test picture's file to the next test example (a control: same texts, pictures
            that have nothing to do with them).
    """
    generator = np.random.RandomState(SEED)
    images: list[dict[str, Any]] = []
    test_files: list[Path] = []
    for number in range(TRAIN + TEST):
        split = "train" if number < TRAIN else "test"
        filepath = "train2014" if split == "train" else "val2014"
        id = 1000 + 7 * number
        scene = world.draw_scene(generator)
        picture = world.render(scene, generator)
        texts = world.captions(scene, demonstrations if split == "train" else DIALECT, generator)
        filename = f"COCO_{filepath}_{id:012d}.png"
        (folder / filepath).mkdir(parents=True, exist_ok=True)
        picture.save(folder / filepath / filename)
        if split == "test":
            test_files.append(folder / filepath / filename)
        sentences = [
            {"raw": text, "tokens": text.split(), "imgid": number, "sentid": 5 * number + i}
            for i, text in enumerate(texts)
        ]
        images.append({"filepath": filepath, "filename": filename, "cocoid": id, "imgid": number, "split": split,
                       "sentids": [s["sentid"] for s in sentences], "sentences": sentences})  # fmt: skip
    if wrong_pictures:
        contents = [file.read_bytes() for file in test_files]
        for file, content in zip(test_files, contents[1:] + contents[:1], strict=True):
            file.write_bytes(content)
    _dump(folder / "dataset_coco.json", {"images": images, "dataset": "flamingo-eval demo"})
    test = [image for image in images if image["split"] == "test"]
    _dump(
        folder / "annotations" / "captions_val2014.json",
        {
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


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def world_digest() -> str:
    """Tells one version of the generated data from another; part of the names of folders that hold it."""
    return digest([VERSION, TRAIN, TEST, SEED, list(DIALECT), world.FRAMES, world.SYNONYMS])[:10]


def demo_data_root() -> Path:
    """The demo's data root; written into the cache folder on first use, whole or not at all.

    Raises:
        StorageError: the cache folder can't be written.
    """
    final = cache_folder() / f"demo-data-{world_digest()}"
    if (final / "imagenet" / "class_names.json").is_file():  # the file that is written last
        return final
    shutil.rmtree(final, ignore_errors=True)  # something that is not ours, or is broken
    print(f"note: writing the demo's {TRAIN + TEST} pictures to {final}", file=sys.stderr)
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=final.parent, prefix=".demo-data-"))
        try:
            write_coco(partial / "coco")
            write_others(partial, DIALECT, SEED)
            partial.chmod(0o755)
            os.replace(partial, final)
        except OSError:
            if not final.is_dir():  # else another process was faster, and wrote the same
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final
