"""Models without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelBase, ModelInfo
from flamingo_eval.core.records import Prompt


class Says(ModelBase):
    """Says the same to everything; fails over some images."""

    def __init__(self, text: str = "a thing", fails: Sequence[str] = ()) -> None:
        self.text, self.fails = text, fails

    def info(self) -> ModelInfo:
        return ModelInfo("says", "says-1", {})

    def prepare(self, prompt: Prompt, task: Any, images: Images) -> Prompt:
        for image in prompt.images:
            images.digest(image)
        if any(image.endswith(name) for name in self.fails for image in prompt.query.images):
            raise QueryError(f"{self.fails[0]} can't be read")
        return prompt

    def answer(self, prepared: Sequence[Prompt], task: Any) -> list[str]:
        return [self.text] * len(prepared)
