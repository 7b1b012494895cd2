"""Made-up data, and plans of it."""

from __future__ import annotations

from pathlib import Path

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import DataSet
from flamingo_eval.core.records import Example
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.source import Source
from flamingo_eval.engine.plan import TrialPlan, plan_trial
from flamingo_eval.models.flamingo.rendering import RENDERER


def source_of(train: int, test: int) -> Source:
    """A made-up COCO whose training rows are numbered 0.. and whose test rows have the ids 1000.. ."""
    examples = [Example(i, f"{i}.jpg", {"caption": f"thing {i}"}) for i in range(train)]
    queries = [Example(1000 + i, f"q{i}.jpg", {"caption": ""}) for i in range(test)]
    return Source(load_benchmark("coco"), Images(Path("nowhere")), DataSet(examples, queries, ()))


def plan_of(source: Source, shots: int, seed: int = 42, num_samples: int | None = None, pool: int = 2048) -> TrialPlan:
    return plan_trial(source, RENDERER, RunSpec(num_samples=num_samples, pool_size=pool), shots=shots, seed=seed)
