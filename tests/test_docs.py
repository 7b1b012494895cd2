"""Examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "errors", "workers", "engine.controls", "reading", "text", "prompting", "seeds", "vqa_text", "metrics.cider", "metrics.roc_auc",
    "metrics.vqa_accuracy", "metrics.accuracy",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *MODULES,
        pytest.param("stemming", marks=pytest.mark.slow),
        pytest.param("models.flamingo.tokenizer", marks=pytest.mark.torch),
        pytest.param("models.flamingo.weights", marks=pytest.mark.torch),
        pytest.param("models.flamingo.model", marks=pytest.mark.torch),
    ],
)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"flamingo_eval.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
