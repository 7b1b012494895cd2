"""Tokens of prompts, without a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Prompt, Task
from flamingo_eval.models.transformers_vlm.adapter import limit_of, text_of_sizes
from flamingo_eval.models.transformers_vlm.reading import Reader


class PromptCounter:
    """See :class:`flamingo_eval.core.protocols.TokenCounter`.

    Args:
        reader: the processor.
        config: the model's configuration.
    """

    def __init__(self, reader: Reader, config: Mapping[str, Any]) -> None:
        self._reader = reader
        text = config.get("text_config")
        places = (text if isinstance(text, dict) else {}, config)
        self._positions = next(
            (n for part in places if isinstance(n := part.get("max_position_embeddings"), int)), None
        )

    def count(self, prompt: Prompt, images: Images) -> int:
        """Raises QueryError if an image can't be read."""
        return len(self._reader.tokens(prompt, text_of_sizes(self._reader, prompt, images)).ids)

    def limit(self, task: Task) -> int | None:
        """Tokens that a prompt may have; None for any number."""
        behind = (
            task.max_new_tokens
            if isinstance(task, Decoding)
            else max(len(self._reader.encode_plain(name)) for name in task.names)
        )
        return limit_of(self._positions, behind)
