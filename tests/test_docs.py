"""Examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import flamingo_eval

PACKAGE = Path(flamingo_eval.__file__).parent
TORCH = ("models.flamingo.", "engine.nearest", "demo.", "weights")
"""Modules that import it."""


def modules() -> Iterator[object]:
    """Every module with an example in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "\n    >>> " in (text := path.read_text(encoding="utf-8")) or "\n>>> " in text or ">>> " in text:
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            marks = (
                [pytest.mark.torch] if name.startswith(TORCH) else [pytest.mark.slow] if name == "core.stemming" else []
            )
            yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [*modules()])
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"flamingo_eval.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
