"""Every benchmark and protocol against the reference's plans and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.engine.plan import query_row
from tests.support.bundles import load_over
from tests.support.helpers import pixels_of, read_lines, run_cli
from tests.support.reference import linked_data, plan_like, protocol_of


def test_plans(golden: Path) -> None:
    files = sorted((golden / "plans").glob("*_random_*.json"))
    assert len(files) >= 21
    for file in files:
        expected = json.loads(file.read_text())
        plan = plan_like(expected, golden)
        rows = [query_row(plan, query) for query in plan]
        got = [tuple(row[key] for key in ("query_id", "demonstration_ids", "images", "prompt")) for row in rows]
        keys = ("query_id", "demonstration_ids", "model_images", "prompt")
        assert got == [tuple(query[key] for key in keys) for query in expected["queries"]], file.name


def test_plans_of_the_older_harnesses(golden: Path) -> None:
    files = sorted((golden / "runs").glob("2023-*.json"))
    assert len(files) >= 4
    for file in files:
        expected = json.loads(file.read_text())
        plan = plan_like(expected, golden, protocol_of(file))
        rows = [query_row(plan, query) for query in plan]
        got = [tuple(row[key] for key in ("query_id", "demonstration_ids", "images", "prompt")) for row in rows]
        keys = ("query_id", "demo_ids", "model_image_paths", "prompt")
        assert got == [tuple(query[key] for key in keys) for query in expected["queries"]], file.name


@pytest.mark.goldens
@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.long), 7])
def test_full_runs_whatever_the_batch_size(goldens: Path, tmp_path: Path, batch_size: int) -> None:
    data = linked_data(goldens, tmp_path / "data")
    files = sorted((goldens / "runs").glob("*.json"))
    assert len(files) >= 7
    for file in files:
        expected, protocol = json.loads(file.read_text()), protocol_of(file)
        number = ["--num-samples", str(expected["num_samples"])] if protocol.endswith("03") else []
        result = run_cli(
            expected["benchmark"], "--shots", str(expected["num_shots"]), "--seeds", str(expected["seed"]),
            "--query-set-size", str(expected["query_set_size"]), "--protocol", protocol, *number,
            "--checkpoint", goldens / "model" / "model.toml", "--data-root", data,
            "--batch-size", str(batch_size), "--out", file.stem, "--format", "json",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        check_answers(read_lines(Path(file.stem, "journal.jsonl")), expected["queries"])
        check_scores(read_lines(Path(file.stem, "scores.jsonl")), expected)
        mean = json.loads(result.stdout)["cells"][0]["mean"]
        unit = 100 if expected["benchmark"] == "hateful_memes" else 1  # the file has ROC AUC as a fraction
        assert mean == pytest.approx(unit * expected["metric"], abs=1e-9), file.name


def check_answers(rows: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    """Texts are equal, log-likelihoods within 1e-4."""
    assert len(rows) == len(queries)
    by_id: dict[Any, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row.get("occurrence", 0)):
        by_id.setdefault(row["query_id"], []).append(row)
    for query in queries:
        row = by_id[query["query_id"]].pop(0)
        if "class_logprobs" in query:
            assert row["raw"] is None
            assert row["class_logprobs"] == pytest.approx(query["class_logprobs"], abs=1e-4)
        else:
            assert row["raw"] == query["generated_text"]


def check_scores(items: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Answers after post-processing, and CIDEr per image."""
    by_id = {row["query_id"]: row for row in items}
    for query in expected["queries"]:
        prediction = query.get("prediction")
        if isinstance(prediction, str):
            assert by_id[query["query_id"]]["answer"] == prediction
        elif prediction is not None:
            assert by_id[query["query_id"]]["answer"] == prediction["pred_label"]
    for id, value in expected.get("per_image_cider", {}).items():
        assert by_id[int(id)]["score"] / 100 == pytest.approx(value, abs=1e-9)


@pytest.mark.goldens
@pytest.mark.torch
def test_ranking_agrees_with_the_references_cached_and_uncached(goldens: Path) -> None:
    import torch

    from flamingo_eval.core import registry
    from flamingo_eval.core.records import Ranking, Rendering

    expected = torch.load(goldens / "model_outputs.pt", weights_only=True)
    source = registry.model_source(str(goldens / "model" / "model.toml"))
    model: Any = load_over(source, goldens / "data")
    task = Ranking(("yes", "no"))
    prompts = [Rendering(t, tuple(i)) for t, i in zip(expected["hm_prompts"], expected["hm_image_paths"], strict=True)]
    items = [model.read(prompt, task) for prompt in prompts]
    alone = [model.answer([item], task)[0] for item in items]
    for answers in (alone, model.answer(items, task)):
        ours = torch.tensor([[a["yes"], a["no"]] for a in answers if isinstance(a, dict)])
        for name, theirs in expected["rank"].items():
            assert (ours - theirs).abs().max() < 1e-4, name


@pytest.mark.goldens
@pytest.mark.torch
@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_ranking_names_of_several_tokens(goldens: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Against a plain computation: prompt and name as one sequence, no cache, no padding, one name at a time."""
    import torch

    from flamingo_eval.core import registry
    from flamingo_eval.core.records import Ranking, Rendering
    from flamingo_eval.models.flamingo import ranking
    from flamingo_eval.models.flamingo.cross_attention import Media

    monkeypatch.setattr(ranking, "CHUNK_TOKENS", chunk)
    expected = torch.load(goldens / "model_outputs.pt", weights_only=True)
    source = registry.model_source(str(goldens / "model" / "model.toml"))
    model: Any = load_over(source, goldens / "data")
    task = Ranking(("yes", "a grey wolf in the snow", "screwdriver", "no way, never", "x"))
    prompts = [Rendering(t, tuple(i)) for t, i in zip(expected["hm_prompts"], expected["hm_image_paths"], strict=True)]
    items = [model.read(prompt, task) for prompt in prompts]
    batched = model.answer(items, task)
    assert len({len(item.ids) for item in items}) > 1, "the batch has padding"
    for item, answers in zip(items, batched, strict=True):
        latents = model.model.encode(pixels_of(model, item))[None]
        for name in task.names:
            ids = model.tokenizer.inner(name, add_special_tokens=False)["input_ids"]
            assert len(ids) >= 1
            sequence = torch.tensor([item.ids + ids])
            with torch.inference_mode():
                media = Media.of(latents, sequence, model.tokenizer.image_id)
                logprobs = model.model(sequence, torch.ones_like(sequence), media)[0].log_softmax(-1)
            start = len(item.ids) - 1
            plain = sum(logprobs[start + i, id].item() for i, id in enumerate(ids)) / len(ids)
            assert answers[name] == pytest.approx(plain, abs=1e-4), name
