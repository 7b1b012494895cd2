"""What all families have in common; nothing heavy is imported here."""

from __future__ import annotations

from typing import Any

from flamingo_eval.models.transformers_vlm.foreign import Inputs


class Family:
    """How an architecture is shown images.

    Attributes:
        images: how many a prompt may have, at most; None for any number.
        reason: why not more.
        image_text: how a text has an image in it, where neither template nor processor say so.
        processes_images: whether its processor prepares images and texts one after the other, by ``_process_images``;
            if not, :meth:`texts` writes what a text has in place of an image.
    """

    images: int | None = None
    reason: str = ""
    image_text: str | None = None
    processes_images: bool = True

    def variant(self, images: int) -> str:  # noqa: ARG002
        """What of a prompt decides how each of its images is processed, such as how many there are.

        Args:
            images: how many images the prompt has.
        """
        return ""

    def companions(self, variant: str) -> int:  # noqa: ARG002
        """How many further images must be processed along with one, so that it is processed as in such a prompt."""
        return 0

    def texts(self, processor: Any, text: str, **settings: Any) -> Inputs:
        """A text's tokens without its images' pixels, for a family whose processor can't be given what it found before.

        Raises:
            NotImplementedError: unless a family has its own way.
        """
        raise NotImplementedError
