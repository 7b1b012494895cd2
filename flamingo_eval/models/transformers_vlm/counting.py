"""Counts tokens of prompts, without a model's weights."""

from __future__ import annotations

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Prompt, Task
from flamingo_eval.models.transformers_vlm.answering import limit_of
from flamingo_eval.models.transformers_vlm.pixels import texts_of
from flamingo_eval.models.transformers_vlm.reading import Reader


class PromptCounter:
    """See :class:`flamingo_eval.core.measuring.TokenCounter`.

    Args:
        reader: the processor.
        positions: the most tokens of prompt and answer together; None for any number.
    """

    def __init__(self, reader: Reader, positions: int | None) -> None:
        self._reader, self._positions = reader, positions

    def count(self, prompt: Prompt, images: Images) -> int:
        """The tokens of a prompt. Raises QueryError if an image can't be read."""
        return len(self._reader.tokens(prompt, texts_of(self._reader, prompt, images)).ids)

    def limit(self, task: Task) -> int | None:
        """The most tokens that a prompt may have; None for any number."""
        behind = (
            task.max_new_tokens
            if isinstance(task, Decoding)
            else max(len(self._reader.encode_plain(name)) for name in task.names)
        )
        return limit_of(self._positions, behind)
