"""The demo that chats learns from its demonstrations, as its page says; computed anew."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.models.transformers_vlm import DEMO_BUNDLE
from tests.support.demo_pages import scores_of, table_of
from tests.support.helpers import Cli, run_cli

pytestmark = pytest.mark.torch
PAGE = "docs/demo-chat.md"
HOW = ("--checkpoint", "demo-chat", "--data-root", "demo", "--device", "cpu", "--format", "json")


def cells(*arguments: str) -> dict[tuple[str, int], Any]:
    result = run_cli(*arguments)
    assert result.returncode == 0, result.stderr
    return {(cell["benchmark"], cell["shots"]): cell for cell in json.loads(result.stdout)["cells"]}


def test_it_is_small_and_what_transformers_saves() -> None:
    files = {path.name: path.stat().st_size for path in DEMO_BUNDLE.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "training.jsonl",
    } <= files.keys()
    assert sum(files.values()) <= 6e6


def test_naming_it_names_the_data_too(cli: Cli) -> None:
    """As the first demo does; it stands in records by its name, and says what it is."""
    result = cli("okvqa", "--checkpoint", "demo-chat", "--shots", "0", "--num-samples", "2", "--trials", "1", "--out", "run",
                 "--device", "cpu")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "demo: generated images and the tiny demo checkpoint" in result.stdout
    assert "rendering chat; no demonstrations at 0 shots" in result.stdout
    record = json.loads(Path("run/run.json").read_text())
    assert record["settings"]["checkpoint"] == record["checkpoint"]["name"] == "demo-chat"
    assert "demo-chat" in cli("list", "checkpoints").stdout
    refused = cli("okvqa", "--checkpoint", "demo-chat", "--weights", "x", "--shots", "0")
    assert "--checkpoint demo-chat: --weights does not apply to it" in refused.stderr


@pytest.mark.long
@pytest.mark.slow
def test_scores_rise_with_shots_as_its_page_says() -> None:
    """Three trials on held-out dialects and owners: 16 shots above 0 by three deviations, 4 between.

    `make gate` has a sample of it.
    """
    found = cells("run", "coco", "okvqa", "--shots", "0,4,16", *HOW, "--out", "run")
    shown = scores_of(PAGE)
    for (name, shots), cell in found.items():
        assert shown[name, "demo-chat"][shots][0] == pytest.approx(cell["mean"], abs=2, rel=0.015), (name, shots)
    for name in ("coco", "okvqa"):
        zero, four, sixteen = (found[name, shots] for shots in (0, 4, 16))
        assert sixteen["mean"] - zero["mean"] > 3 * max(zero["std"], sixteen["std"]), name
        assert zero["mean"] < four["mean"] < sixteen["mean"], name
    result = run_cli("controls", "run", "--only", "images-shuffled", "--shots", "16", "--format", "json")
    assert result.returncode == 0, result.stderr
    shuffled = {cell["benchmark"]: cell["mean"] for cell in json.loads(result.stdout)["controls"]["images-shuffled"]}
    gain = found["okvqa", 16]["mean"] - found["okvqa", 0]["mean"]
    assert found["okvqa", 16]["mean"] - shuffled["okvqa"] > gain / 2


@pytest.mark.slow
def test_a_held_out_rule_is_learned_from_demonstrations() -> None:
    _, *rows, mean, _ = table_of(PAGE, "rules")
    assert len(rows) == 12
    zero, *_, sixteen = (float(cell.split()[0]) for cell in mean[1:])
    between = float(mean[1].partition("(")[2].rstrip(")"))
    error = between / math.sqrt(len(rows))
    assert abs(zero - 50) < 2 * error, "before a demonstration it has favourite colours, which no rule has"
    assert sixteen >= 85
    found = cells("hateful-memes", "--shots", "0,16", *HOW, "--out", "run")
    shown = scores_of(PAGE)["hateful_memes", "demo-chat"]
    for shots in (0, 16):
        assert found["hateful_memes", shots]["mean"] == pytest.approx(shown[shots][0], abs=1.5)
