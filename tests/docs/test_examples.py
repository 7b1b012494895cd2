"""The example notebook does what it says, outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def cells_of(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells: list[dict[str, Any]] = notebook["cells"]
    return cells


def test_no_output_is_stored() -> None:
    cells = cells_of("curve.ipynb")
    assert 0 < len(cells) < 12
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.torch
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    code = "\n\n".join("".join(cell["source"]) for cell in cells_of("curve.ipynb") if cell["cell_type"] == "code")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "agg"}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    run = tmp_path / "curve-run"
    for name in ("run.json", "journal.jsonl", "scores.json", "scores.jsonl"):
        assert (run / name).stat().st_size > 0, name
    for name in ("curve.png", "histograms.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG"), name
    worst = (tmp_path / "worst.csv").read_text(encoding="utf-8").splitlines()
    assert worst[0] == "query_id,seed,score,answer,raw"
    assert len(worst) == 11
