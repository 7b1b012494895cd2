"""Small data sets of questions and of memes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_converted(folder: Path, split: str, first: int, count: int = 3) -> None:
    rows = questions(first, count)
    answers = [{"answer": f"a{i % 4}", "answer_id": i, "answer_confidence": "yes"} for i in range(1, 11)]
    annotations = [
        {"question_id": row["question_id"], "image_id": row["image_id"], "question_type": "what", "answers": answers}
        for row in reversed(rows)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_questions_vqa_format.json").write_text(json.dumps({"questions": rows}))
    (folder / f"{split}_annotations_vqa_format.json").write_text(json.dumps({"annotations": annotations}))


def write_memes(root: Path, *lines: str) -> None:
    folder = root / "hateful_memes"
    folder.mkdir(parents=True, exist_ok=True)
    good = '{"id": 1, "img": "img/1.png", "label": 0, "text": "a"}\n'
    (folder / "train.jsonl").write_text(good)
    (folder / "dev.jsonl").write_text("\n".join(lines) or good)


def questions(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question_id": first + i, "image_id": f"img{first + i}", "question": f"What is {i}?"} for i in range(count)
    ]
