"""A prompt in the form that a server receives: messages, with the bytes of each image in a ``data:`` address."""

from __future__ import annotations

import base64
import io
import math
import threading
from typing import TYPE_CHECKING

from flamingo_eval.core.images import Images
from flamingo_eval.core.prompting import Chat, OpenAIMessage, openai_form
from flamingo_eval.core.records import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

SENT_AS_IT_IS = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Pillow's name of a format that every server reads -> its media type."""


class Messages:
    """Makes messages. Can be called from several threads at once.

    Args:
        renderer: how a conversation is written.
        max_pixels: larger images are made smaller; None for no limit.
    """

    def __init__(self, renderer: Chat, max_pixels: int | None) -> None:
        self._renderer, self._max_pixels = renderer, max_pixels
        self._kinds: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def of(self, prompt: Prompt, images: Images) -> list[OpenAIMessage]:
        """The messages that :class:`Chat` renders, with images in place of paths.

        Raises:
            QueryError: an image is missing, is not a regular file, or can't be decoded.
        """
        messages = openai_form(self._renderer.render(prompt).messages)
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image_url":
                    part["image_url"]["url"] = self.address(part["image_url"]["url"], images)
        return messages

    def address(self, image: str, images: Images) -> str:
        """A ``data:`` address that contains the image. Raises QueryError."""
        digest = images.digest(image)
        if digest not in self._kinds:  # decoded once, so that nothing but images is sent
            kind = images.decode(image, self._kind)
            with self._lock:
                self._kinds[digest] = kind
        kind = self._kinds[digest]
        content = images.read(image) if kind else images.decode(image, self._png)
        return f"data:{kind or 'image/png'};base64,{base64.b64encode(content).decode('ascii')}"

    def _kind(self, opened: Image) -> str | None:
        """The media type of a file whose bytes can be sent as they are; None for one that must be re-encoded."""
        if self._max_pixels is not None and opened.width * opened.height > self._max_pixels:
            return None
        return SENT_AS_IT_IS.get(opened.format or "")

    def _png(self, opened: Image) -> bytes:
        """The image re-encoded as PNG. A large image is made smaller, and other modes than L and RGBA become RGB."""
        from PIL import Image as Pillow
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(opened)  # what a server would do with the file's own bytes
        small = upright if upright.mode in ("L", "RGB", "RGBA") else upright.convert("RGB")
        if self._max_pixels is not None and small.width * small.height > self._max_pixels:
            scale = math.sqrt(self._max_pixels / (small.width * small.height))
            size = (max(1, int(small.width * scale)), max(1, int(small.height * scale)))
            small = small.resize(size, Pillow.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return buffer.getvalue()
