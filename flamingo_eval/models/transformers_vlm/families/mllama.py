"""Llama 3.2 Vision."""

from __future__ import annotations

from flamingo_eval.models.transformers_vlm.families.base import Family


class Mllama(Family):
    """One image per prompt."""

    images = 1
    reason = (
        "transformers' attention over several images is wrong for this architecture: tokens before the first image "
        "attend to all images, and padding does too (huggingface/transformers issue 39379, pull request 47845)"
    )


FAMILY = Mllama()
