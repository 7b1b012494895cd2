"""Prompts as OpenFlamingo reads them: ``<image>Output:a dog<|endofchunk|>`` ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flamingo_eval.core.benchmark import PromptRules
from flamingo_eval.core.digests import changed_fields
from flamingo_eval.core.prompting import interleaved
from flamingo_eval.core.records import Prompt, Rendering

END_OF_CHUNK = "<|endofchunk|>"
IMAGE = "<image>"


class FlamingoRenderer:
    """An image is ``<image>``, a demonstration ends with ``<|endofchunk|>`` (open_flamingo/eval/models)."""

    name = "flamingo"
    marks: tuple[str, ...] = (IMAGE, END_OF_CHUNK)

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as text.

        With ``zero_shot_keeps_images`` the protocol keeps a defect of the reference: images of text-only demonstrations
        are passed without a mark, so that the query's mark stands for the first of them (evaluate.py,
        ``evaluate_classification``).
        """
        rendering = interleaved(prompt, IMAGE, END_OF_CHUNK)
        if not prompt.zero_shot_keeps_images:
            return rendering
        shown = [path for turn in prompt.demonstrations for path in (*turn.images, *turn.hidden)]
        return replace(rendering, images=(*shown, *prompt.query.images))

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """The templates with their marks, and all other rules that differ from the defaults."""
        others = {k: v for k, v in changed_fields(rules).items() if k not in ("text", "answer", "separator")}
        asked = IMAGE + rules.text
        return {"demonstration": asked + rules.answer + END_OF_CHUNK + rules.separator, "query": asked, **others}


RENDERER = FlamingoRenderer()
