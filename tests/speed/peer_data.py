"""Made-up data in COCO's layout: ``python tests/speed/peer_data.py --out DIR --queries 250 --pool 102``.

As many queries and pool images as asked for, images of COCO's size and weight, captions of COCO's length. The
training set is ten times the pool, so that, as with COCO, every trial draws another pool.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRAIN_PER_POOL = 10
SIZES = ((640, 480), (640, 426), (480, 640), (640, 427), (500, 375))
QUALITY = 88
_TEXT = """
a a a a a the the of on on in in with with and and is to at by next near over under behind sitting standing holding
riding walking eating playing looking flying parked lying large small white black red blue green brown yellow old
young two three several many group man woman people person boy girl child dog cat horse cow sheep elephant giraffe
zebra bear bird bus train truck car motorcycle bicycle boat airplane kite skateboard surfboard snowboard tennis
baseball ball bat racket player field court street road sidewalk park beach ocean water snow mountain hill grass tree
building house room kitchen bathroom bedroom table chair couch bed toilet sink mirror window door wall clock sign
light plate bowl cup glass bottle knife fork spoon pizza sandwich cake donut banana apple orange broccoli carrot salad
food laptop keyboard phone television refrigerator oven microwave umbrella suitcase backpack tie hat shirt teddy toy
book vase flowers scissors
"""
WORDS = _TEXT.split()


def caption(draw: np.random.Generator) -> str:
    """Eight to thirteen words, and a full stop every other time."""
    words = draw.choice(WORDS, size=draw.integers(8, 14)).tolist()
    return " ".join(words) + (" ." if draw.random() < 0.5 else "")


def drawing(draw: np.random.Generator) -> Image.Image:
    """Blurred noise with fine grain on top: compresses about as badly as a photograph."""
    width, height = SIZES[int(draw.integers(len(SIZES)))]
    coarse, medium = (
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        for size in ((8, 10, 3), (60, 80, 3))
    )
    grain = draw.normal(0, 7, (height, width, 1))
    mixed = 0.65 * np.asarray(coarse, np.float32) + 0.35 * np.asarray(medium, np.float32) + grain
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def record(number: int, split: str, draw: np.random.Generator) -> dict[str, Any]:
    """An image's entry in Karpathy's file."""
    folder = "val2014" if split == "test" else "train2014"
    return {
        "filepath": folder,
        "filename": f"COCO_{folder}_{number:012d}.jpg",
        "cocoid": number,
        "split": split,
        "sentences": [{"raw": caption(draw)} for _ in range(5)],
    }


def write_data(root: Path, queries: int, pool: int) -> None:
    """Karpathy's file and all images; the same ones for the same numbers."""
    draw = np.random.default_rng(0)
    images = [record(1000 + i, "train", draw) for i in range(TRAIN_PER_POOL * pool)]
    images += [record(500_000 + i, "test", draw) for i in range(queries)]
    for image in images:
        path = root / "coco" / image["filepath"] / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(draw).save(path, quality=QUALITY)
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": images}), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=250)
    parser.add_argument("--pool", type=int, default=102)
    options = parser.parse_args()
    write_data(options.out, options.queries, options.pool)


if __name__ == "__main__":
    main()
