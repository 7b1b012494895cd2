"""Counts the tokens of prompts without a model's weights."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Prompt, Task
from flamingo_eval.libraries import host_as_it_was, loading
from flamingo_eval.models.flamingo.adapter import MAX_PROMPT_TOKENS
from flamingo_eval.models.flamingo.hosts import max_positions
from flamingo_eval.models.flamingo.loading import in_cache
from flamingo_eval.models.flamingo.rendering import RENDERER
from flamingo_eval.models.flamingo.spec import FlamingoSpec
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer


class PromptCounter:
    """See :class:`flamingo_eval.core.measuring.TokenCounter`. An image is one token.

    Args:
        spec: the checkpoint's parts.
    """

    def __init__(self, spec: FlamingoSpec) -> None:
        source: str | Path = in_cache(spec.language.model)
        with host_as_it_was(), loading(f"the language model's configuration {source}"):
            table, _ = PreTrainedConfig.get_config_dict(str(source))
            self._positions = max_positions(PreTrainedConfig(**{k: v for k, v in table.items() if isinstance(v, int)}))
        self._tokenizer = FlamingoTokenizer(in_cache(spec.language.tokenizer))

    def count(self, prompt: Prompt, images: Images) -> int:  # noqa: ARG002  # each image is one token of the text
        """Number of tokens in a prompt."""
        return len(self._tokenizer.encode(RENDERER.render(prompt).text))

    def limit(self, task: Task) -> int | None:
        """The protocol's limit, or what the language model leaves for a prompt if that is less."""
        if isinstance(task, Decoding):
            behind = task.max_new_tokens
        else:
            behind = max(len(self._tokenizer.encode_plain(name)) for name in task.names)
        return min(MAX_PROMPT_TOKENS, self._positions - behind)
