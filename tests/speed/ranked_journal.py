"""A journal of rankings as large as ImageNet's: time, bytes on the disk, peak memory; written, then opened again.

``python tests/speed/ranked_journal.py [--queries 50000] [--names 998] [--single]``. Each part is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

BATCH = 64


def write(path: Path, queries: int, names: int, single: bool) -> None:
    from flamingo_eval.core.records import Prediction
    from flamingo_eval.storage.journal import Entry, Journal

    words, draw, journal = [f"class name {i}" for i in range(names)], random.Random(1), Journal(path)
    values = [-20 * draw.random() for _ in words]
    if single:
        values = [struct.unpack("f", struct.pack("f", value))[0] for value in values]
    for start in range(0, queries, BATCH):
        entries = []
        for id in range(start, min(queries, start + BATCH)):
            turned = values[id % names :] + values[: id % names]
            key = f"{id:032x}"
            entries.append(
                Entry(("imagenet", 4, 42, id, 0), Prediction(key, dict(zip(words, turned, strict=True)), key))
            )
        journal.append(entries)


def read(path: Path) -> None:
    from flamingo_eval.storage.journal import Journal

    journal = Journal(path)
    print(len(journal), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--names", type=int, default=998)
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--part")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.part:
        start = time.perf_counter()
        path = options.folder / "journal.jsonl"
        read(path) if options.part == "read" else write(path, options.queries, options.names, options.single)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak MiB": round(memory)}))
        return
    with TemporaryDirectory() as folder:
        for part in ("write", "read"):
            words = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", folder]
            print(part, subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
        print("bytes", sum(sizes.values()), sizes)


if __name__ == "__main__":
    main()
