# mypy: ignore-errors
"""Times the open-flamingo package on the first queries of a plan; in the old environment, started by peer.py.

What its evaluation does for a batch (open_flamingo/eval/models/open_flamingo.py): images are opened and transformed,
prompts padded on the left, ``generate`` with three beams, new tokens decoded. Nothing else is timed; before that, one
small batch is answered that does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))

import open_clip
import reference
import torch
import transformers
from PIL import Image

PACKAGES = ("open-flamingo", "torch", "transformers", "open_clip_torch", "torchvision", "pillow")


def load(folder: Path):
    """(model, transform, tokenizer) with the trained part loaded as the package does."""
    spec = tomllib.loads((folder / "model.toml").read_text(encoding="utf-8"))
    open_clip.add_model_config(folder / "open_clip_configs")
    reference.CLIP, every = spec["vision"]["model"], spec["cross_attn_every_n_layers"]
    tokens = len(transformers.AutoTokenizer.from_pretrained(str(folder / "tokenizer")))
    model, transform, tokenizer = reference.build(folder, every)
    reference.load_trained_part(model, folder / "checkpoint.pt", tokens)
    return model, transform, tokenizer


class Evaluation:
    """Batches of planned queries."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.data = data
        self.model, self.transform, self.tokenizer = load(folder)
        self.answers = reference.Answers(self.model, self.tokenizer, [])

    @torch.inference_mode()
    def answer(self, batch: list[dict], tokens: int = 20) -> list[tuple[str, list[int]]]:
        """Text and ids of every query's answer."""
        rows, pixels = [], []
        for query in batch:
            rows.append(tuple(range(len(pixels), len(pixels) + len(query["images"]))))
            pixels += [self.transform(Image.open(self.data / image)) for image in query["images"]]
        self.answers.pixels = pixels
        vision = self.answers.look(rows)
        encoded = self.answers.encode([query["prompt"] for query in batch])
        ids = encoded["input_ids"]
        new = self.model.generate(
            vision, ids, attention_mask=encoded["attention_mask"], min_new_tokens=0, max_new_tokens=tokens,
            num_beams=3, length_penalty=0.0,
        )[:, ids.shape[1] :]  # fmt: skip
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [(text, self._until_end(row)) for text, row in zip(texts, new.tolist(), strict=True)]

    def _until_end(self, ids: list[int]) -> list[int]:
        end = self.model.eoc_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids


def measure(evaluation: Evaluation, queries: list[dict], batch_size: int) -> dict:
    """Answers and seconds per query."""
    answers, start = [], time.perf_counter()
    for first in range(0, len(queries), batch_size):
        answers += evaluation.answer(queries[first : first + batch_size])
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds / len(queries),
        "queries": len(queries),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "answers": {str(query["query_id"]): answer for query, answer in zip(queries, answers, strict=True)},
        "threads": torch.get_num_threads(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "data", "plan", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("shots", "queries", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    plan = [json.loads(line) for line in options.plan.read_text(encoding="utf-8").splitlines()]
    queries = [query for query in plan if query["shots"] == options.shots][: options.queries]
    evaluation = Evaluation(options.model, options.data)
    evaluation.answer([{**queries[0], "prompt": "<image>Output:", "images": queries[0]["images"][-1:]}], tokens=2)
    options.out.write_text(json.dumps(measure(evaluation, queries, options.batch_size)), encoding="utf-8")


if __name__ == "__main__":
    main()
