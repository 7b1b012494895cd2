"""VQAv2 in its real size, made up: seconds and memory of reading it and planning one trial at 32 shots.

``python tests/speed/vqav2_plan.py --work DIR`` writes 443,757 training and 214,354 validation questions with ten answers
each into DIR (560 MB, kept), and plans them in a process of its own, as ``flamingo-eval plan`` does.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPLITS = (("train2014", 443_757, 82_783, 1), ("val2014", 214_354, 40_504, 200_000))
"""Name, questions, images, first image's number."""

_TEXT = "what is the color of this man doing in picture how many people are there on table a red blue dog cat"
WORDS = _TEXT.split()


def write_split(folder: Path, name: str, count: int, images: int, first: int) -> None:
    """Questions and annotations, with the fields of the published files."""
    draw = random.Random(first)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        image, question = first + i * images // count, first * 1000 + i
        text = " ".join(draw.choices(WORDS, k=draw.randint(4, 9))).capitalize() + "?"
        questions.append({"image_id": image, "question": text, "question_id": question})
        answers = [{"answer": draw.choice(WORDS), "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)]
        annotations.append({"question_type": "what is the", "multiple_choice_answer": answers[0]["answer"],
                            "answers": answers, "image_id": image, "answer_type": "other",
                            "question_id": question})  # fmt: skip
    files = {f"v2_OpenEnded_mscoco_{name}_questions.json": {"questions": questions},
             f"v2_mscoco_{name}_annotations.json": {"annotations": annotations}}  # fmt: skip
    for file, table in files.items():
        (folder / file).write_text(
            json.dumps({"info": {}, "license": {}, "data_subtype": name, **table}), encoding="utf-8"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    folder = options.work / "vqav2"
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        if not (folder / f"v2_mscoco_{split[0]}_annotations.json").exists():
            write_split(folder, *split)
    began = time.perf_counter()
    command = [sys.executable, "-m", "flamingo_eval", "plan", "vqav2", "--shots", "32", "--seeds", "42", "--data-root",
               str(options.work)]  # fmt: skip
    message = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{message.strip()}: {seconds:.1f} s, {peak:.2f} GiB")


if __name__ == "__main__":
    main()
