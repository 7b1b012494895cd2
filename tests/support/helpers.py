"""Small data, and ways to call the command line."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from flamingo_eval.core.records import Cell, Trial
from flamingo_eval.storage.identity_tables import with_identity
from flamingo_eval.storage.run_records import RunRecord

Cli = Callable[..., subprocess.CompletedProcess[str]]
"""The command line as a function of its arguments."""


class Kit(NamedTuple):
    """A small checkpoint and the data that goes with it."""

    toml: Path
    data: Path

    def images(self, count: int) -> list[str]:
        """Paths of some images, relative to the data."""
        folder = self.data / "coco/val2014"
        return [str(path.relative_to(self.data)) for path in sorted(folder.iterdir())[:count]]


FAST = ("coco", "--shots", "0,2", "--seeds", "42,43", "--checkpoint", "scripted")
"""A run that needs no weights; the data root is missing."""


def karpathy_image(number: int, split: str) -> dict[str, Any]:
    """A record of a Karpathy file; image n shows 'thing n'."""
    folder = "val2014" if split == "test" else "train2014"
    texts = [f"a thing {number}", f"thing {number} on a table", f"there is thing {number}"]
    return {
        "filepath": folder,
        "filename": f"COCO_{folder}_{number:012d}.png",
        "cocoid": number,
        "split": split,
        "sentences": [{"raw": text} for text in texts],
    }


def write_coco_root(root: Path, *, train: int, test: int) -> Path:
    """A data root in COCO's layout with images of one colour each; training ids from 100 on, test ids from 500 on."""
    images = [karpathy_image(100 + i, "train") for i in range(train)]
    images += [karpathy_image(500 + i, "test") for i in range(test)]
    images.append(karpathy_image(900, "restval"))
    folder = root / "coco"
    for image in images:
        path = folder / image["filepath"] / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (image["cocoid"] % 256, 80, 80)).save(path)
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    return root


def run_cli(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "flamingo_eval", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def run_scripted(cli: Cli, root: Path, out: str | Path = "run", *more: object) -> Any:
    """A finished run of the scripted model."""
    result = cli(*FAST, "--data-root", root, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    return result


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of shell with ``CLI`` in it."""
    command = line.replace("CLI", f"{sys.executable} -m flamingo_eval")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment})  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class LazyModule:
    """A module that is imported when it is first used, so that collecting tests stays fast."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest looks at every name of a test module
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def pixels_of(model: Any, prepared: Any) -> Any:
    """The images of a prepared prompt as the vision tower gets them, (images, 3, height, width)."""
    import torch

    return torch.stack([model.stores[False].pixels(image) for image in prepared.images])


def run_record(checkpoint: str = "my_model", digest: str = "0123456789abcdef", demo: str | None = None) -> RunRecord:
    """The record of a run of coco, as small as it may be."""
    table: dict[str, Any] = {
        "format": 1,
        "demo": demo,
        "checkpoint": {"name": checkpoint, "digest": digest},
        "identity": {"checkpoint": digest, "precision": "fp32", "selector": "random", "num_samples": None,
                     "query_set_size": 2048, "ensemble": 1, "benchmarks": {}},
        "settings": {"checkpoint": checkpoint, "benchmarks": {"coco": {"data_root": "", "data_overrides": {}, "pool": 2048}}},
        "cells": [["coco", 0, 42]],
        "sessions": [],
    }  # fmt: skip
    record: RunRecord = with_identity(table, RunRecord, "run.json")
    return record


def cell(shots: int, *values: float, missing: int = 0) -> Cell:
    trials = tuple(Trial(42 + i, value, 100 - missing, 100) for i, value in enumerate(values))
    return Cell("coco", "test", shots, "random", "openflamingo", "CIDEr x 100", trials)


def scored(run: Path, score: float, every: int) -> None:
    """Gives a run's items made-up scores: 100 and a little more or less; every n-th another one. Table and cells follow."""
    rows = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["score"] = (score if i % every == 0 else 100.0) + (i * 7919 % 11) / 10
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = json.loads((run / "scores.json").read_text())
    for cell in table["cells"]:
        for trial in cell["trials"]:
            own = [r["score"] for r in rows if (r["shots"], r["seed"]) == (cell["shots"], trial["seed"])]
            trial["value"] = sum(own) / len(own)
        values = [trial["value"] for trial in cell["trials"]]
        cell["mean"], cell["std"] = statistics.fmean(values), statistics.pstdev(values)
    (run / "scores.json").write_text(json.dumps(table))
