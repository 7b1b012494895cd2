"""The guide's example of a new benchmark, done as it is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def block(language: str) -> str:
    """The first code block of a language."""
    found = re.search(rf"```{language}[^\n]*\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_adding_a_benchmark_takes_one_file() -> None:
    toml = block("toml")
    assert len(toml.strip().splitlines()) < 40
    exec(compile(block("python"), "CONTRIBUTING.md", "exec"), {})
    Path("easy_vqa.toml").write_text(toml)
    command = [sys.executable, "-m", "flamingo_eval", "easy-vqa", "--shots", "0,4", "--seeds", "42", "--checkpoint",
               "scripted", "--data-root", "data", "--num-samples", "200", "--out", "run", "--format", "json"]  # fmt: skip
    environment = {**os.environ, "FLAMINGO_EVAL_BENCHMARKS": "."}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    cells = json.loads(result.stdout)["cells"]
    assert [cell["shots"] for cell in cells] == [0, 4]
    assert all(0 < cell["mean"] < 100 for cell in cells), "copying the last demonstration is right now and then"
    rows = [json.loads(line) for line in Path("run/scores.jsonl").read_text().splitlines()]
    assert {row["score"] for row in rows} == {0.0, 100.0}, "right or wrong"
