"""What all families have in common; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable

from flamingo_eval.models.transformers_vlm.foreign import Inputs


class Family:
    """How an architecture is shown images.

    Attributes:
        images: how many a prompt may have, at most; None for any number.
        reason: why not more.
        image_text: how a text has an image in it, where neither template nor processor say so.
        texts: (processor, text) -> the text's tokens without its images' pixels, for a processor that does not prepare
            images and texts one after the other by ``_process_images``; None for all others.
    """

    images: int | None = None
    reason: str = ""
    image_text: str | None = None
    texts: Callable[..., Inputs] | None = None

    def variant(self, images: int) -> str:  # noqa: ARG002
        """What of a prompt decides how each of its images is processed, such as how many there are.

        Args:
            images: how many images the prompt has.
        """
        return ""

    def companions(self, variant: str) -> int:  # noqa: ARG002
        """How many further images must be processed along with one, so that it is processed as in such a prompt."""
        return 0
