"""``bench`` measures what it says, and keeps nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.helpers import Cli, run_cli


def test_a_model_without_arithmetic(root: Path, cli: Cli) -> None:
    result = cli("bench", "coco", "--shots", "0,2", "--queries", "4", "--checkpoint", "scripted", "--data-root", root,
                 "--format", "json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    bench = json.loads(result.stdout)
    assert [row["queries"] for row in bench["rows"]] == [4, 4]
    assert bench["all_queries"] == {"0": 15, "2": 15}
    assert bench["images"] == 17
    assert bench["work"] is None
    assert not Path("results").exists()
    assert "give table, markdown" in cli("bench", "coco", "--format", "pdf").stderr


@pytest.mark.torch
@pytest.mark.slow
def test_shares_operations_and_the_estimate() -> None:
    result = run_cli("bench", "coco", "--shots", "0,4", "--queries", "8", "--device", "cpu", "--format", "json")
    assert result.returncode == 0, result.stderr
    bench = json.loads(result.stdout)
    zero, four = bench["rows"]
    for row in (zero, four):
        parts = row["parts"]
        assert set(parts) == {"vision", "prefill", "decode"}
        assert 0 < sum(parts.values()) <= row["wall"]
    # the demo's language model: 4 layers of 128 with gated blocks, prompts of about 20 and 65 tokens
    assert four["flops"]["prefill"] > 2 * zero["flops"]["prefill"] > 0
    assert four["flops"]["vision"] == zero["flops"]["vision"], "of one image"
    assert bench["work"]["peak"] > 1e9
    language = sum((row["wall"] - row["parts"]["vision"]) / row["queries"] * 600 for row in (zero, four))
    expected = language + bench["metric"] * 1200 + bench["image"] * bench["images"]
    assert bench["estimate"] == pytest.approx(expected)
    assert not Path("results").exists()
    text = run_cli("bench", "coco", "--shots", "0", "--queries", "4", "--device", "cpu").stdout
    for wanted in ("queries/s", "prefill of peak", "whole run: 600 queries", "GFLOP/s", "GiB at most"):
        assert wanted in text


@pytest.mark.torch
def test_operations_are_counted_right() -> None:
    """Two for each multiplication with addition, of a matrix product."""
    import torch

    from flamingo_eval.models.flamingo.measure import Clock, counted, matrix_peak

    flops: dict[str, float] = {}
    with counted(flops, "a"):
        torch.randn(3, 5) @ torch.randn(5, 7)
    with counted(flops, "a"):
        torch.nn.Linear(4, 6)(torch.randn(2, 4))
    assert flops == {"a": 2 * 3 * 5 * 7 + 2 * 2 * 4 * 6}
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock.section("b"):
            matrix_peak(torch.device("cpu"), torch.float32)
    assert clock.seconds()["b"] > 0


def test_a_run_says_where_its_time_went(root: Path, cli: Cli) -> None:
    result = cli("coco", "--shots", "2", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    assert "queries/s" in result.stderr
    assert "scoring" in result.stderr
    assert json.loads(Path("run/run.json").read_text())["sessions"][0]["seconds"]["answering"] > 0
