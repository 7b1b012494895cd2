"""``bench`` measures what it says, and keeps nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.helpers import Cli, run_cli


@pytest.mark.slow
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
    for wanted in ("queries/s", "prefill of peak", "complete run: 600 queries", "GFLOP/s", "GiB at most"):
        assert wanted in text


@pytest.mark.torch
@pytest.mark.slow
def test_stability_counts_the_answers_that_depend_on_the_batch() -> None:
    """In float32 none does."""
    words = ("bench", "hateful-memes", "--shots", "4", "--queries", "12", "--device", "cpu", "--stability")
    exact = json.loads(run_cli(*words, "--format", "json").stdout)["stability"]
    assert [(row["shots"], row["queries"], row["batch"]) for row in exact] == [(4, 12, 12)]
    assert exact[0]["moved"] == {"1": 0, "6": 0, "11": 0}
    assert exact[0]["largest"] < 1e-4
    table = run_cli(*words).stdout
    assert "stability, 4 shots: answers other than in batches of 12: 0 of 12 in batches of 1" in table
    texts = json.loads(run_cli("bench", "coco", *words[2:], "--format", "json").stdout)["stability"]
    assert texts[0]["largest"] is None


def test_answers_that_move_are_counted() -> None:
    """A model that answers otherwise where it is asked one thing alone, or an odd number of things."""
    from collections.abc import Sequence

    from flamingo_eval.analysis.bench import Measured, _stability
    from flamingo_eval.core.images import Images
    from flamingo_eval.core.protocols import ModelBase
    from flamingo_eval.core.records import Answer, Prompt, Task
    from tests.support.plans import plan_of, source_of

    class Fickle(ModelBase):
        def prepare(self, prompt: Prompt, task: Task, images: Images) -> str:
            return prompt.images[-1]

        def answer(self, prepared: Sequence[str], task: Task) -> list[Answer]:
            return [f"{image} {len(prepared) % 2 if i < 2 else 0}" for i, image in enumerate(prepared)]

    source = source_of(9, 16)
    row = Measured(shots=2, queries=16, wall=1.0, parts={}, batch=8, flops={})
    found = _stability(Fickle(), source, plan_of(source, 2), row)
    assert (found.shots, found.queries, found.batch, found.largest) == (2, 16, 8, None)
    assert found.moved == {1: 16, 4: 0, 7: 4}, "the first two of two batches of 7; the last 2 make an even one"


@pytest.mark.torch
def test_operations_are_counted_right() -> None:
    """Two for each multiplication with addition, of a matrix product."""
    import torch

    from flamingo_eval.measure import Clock, counted, matrix_peak

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


@pytest.mark.slow
def test_a_run_says_where_its_time_went(root: Path, cli: Cli) -> None:
    result = cli("coco", "--shots", "2", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    assert "queries/s" in result.stderr
    assert "scoring" in result.stderr
    assert json.loads(Path("run/run.json").read_text())["sessions"][0]["seconds"]["answering"] > 0
