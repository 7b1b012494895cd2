"""The defaults of all families; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable

from flamingo_eval.models.transformers_vlm.foreign import Inputs


class Family:
    """How an architecture is shown images.

    Attributes:
        images: the most images that a prompt may have; None for any number.
        reason: why not more.
        image_text: what stands for an image in a text, if no template defines it; None for the processor's token.
        texts: (processor, text) -> the text's tokens without its images' pixels, for a processor that does not use
            ``_process_images`` to prepare images separately from texts; None for all others.
    """

    images: int | None = None
    reason: str = ""
    image_text: str | None = None
    texts: Callable[..., Inputs] | None = None

    def variant(self, images: int) -> str:  # noqa: ARG002
        """What determines how each image of a prompt is processed, such as how many images there are.

        Args:
            images: how many images the prompt has.
        """
        return ""

    def companions(self, variant: str) -> int:  # noqa: ARG002
        """How many more images must be processed with one, so that it is processed as in a prompt of this variant."""
        return 0
