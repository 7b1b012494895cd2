"""Image embeddings of the reference's data by its small CLIP, as ``tests/golden/rices_features.npz`` has them.

``python tests/parity/rices_features.py GOLDENS OUT`` reads the reference's outputs in full; the file lets a plain clone
hold the ranking and the plans of RICES against the reference's without their images and without that CLIP.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from flamingo_eval.core import registry
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.retrieval import encode_images
from tests.support.reference import linked_data

BENCHMARKS = ("coco", "flickr30k", "vqav2", "okvqa", "textvqa", "vizwiz", "hateful_memes")


def main(goldens: Path, out: Path) -> None:
    encoder = registry.image_encoder(str(goldens / "model" / "model.toml"), None)
    arrays: dict[str, np.ndarray] = {}
    with TemporaryDirectory() as folder:
        data = linked_data(goldens, Path(folder) / "data")
        for name in BENCHMARKS:
            source = read_source(name, data)
            images = list(dict.fromkeys(e.image for part in (source.data.train, source.data.test) for e in part))
            encoding = encode_images(source, images, encoder, "cpu")
            arrays |= {
                f"{name}_images": np.array(images),
                f"{name}_rows": np.array([encoding.number[image] for image in images]),
                f"{name}_vectors": encoding.vectors,
            }
    np.savez_compressed(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
