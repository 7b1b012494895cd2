"""Help for tests that hold plans and runs against the reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.plan import TrialPlan, plan_trial
from flamingo_eval.models.flamingo.rendering import RENDERER


def linked_data(goldens: Path, folder: Path) -> Path:
    """The golden data with its links as links; some ways of copying leave a small file naming the target instead."""
    for benchmark in (goldens / "data").iterdir():
        (folder / benchmark.name).mkdir(parents=True)
        for part in benchmark.iterdir():
            target = part.read_text() if part.is_file() and part.name.endswith("2014") else part
            (folder / benchmark.name / part.name).symlink_to(target)
    return folder


def protocol_of(file: Path) -> str:
    return "openflamingo-" + file.name.partition("_")[0] if file.name.startswith("2023") else "openflamingo"


def plan_like(expected: dict[str, Any], data: Path, protocol: str = "openflamingo") -> TrialPlan:
    """The plan of what a file of the reference's describes."""
    return plan_trial(
        read_source(expected["benchmark"], data, protocol=protocol),
        RENDERER,
        RunSpec(
            num_samples=expected["num_samples"] if protocol.endswith("03") else None,
            pool_size=expected["query_set_size"],
        ),
        shots=expected["shots"] if "shots" in expected else expected["num_shots"],
        seed=expected["seed"],
    )
