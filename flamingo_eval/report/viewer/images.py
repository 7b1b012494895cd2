"""Images for the page: those that a run's plan names, decoded, scaled to the size that the page shows, and kept."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from flamingo_eval.core.digests import bytes_digest, digest
from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD
from flamingo_eval.report.viewer.payload import ImagePayload

if TYPE_CHECKING:
    from PIL import Image

SIDE = 512
"""Pixels of the longer side, at most; the page shows no more."""

_SMALL = 96
"""An image whose longer side has at most this many pixels is kept without loss: the demo's are that small."""

Put = Callable[[str, bytes], None]


def scaled(image: Image.Image) -> tuple[str, bytes]:
    """Ending and bytes of an image as the page shows it, the way up that a model sees it; no metadata is kept."""
    image = image.convert("RGB")
    image.info = {}  # Pillow would write a JPEG's comment and a PNG's colour profile from it
    image.thumbnail((SIDE, SIDE))
    small, kept = max(image.size) <= _SMALL, io.BytesIO()
    image.save(kept, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    return ("png" if small else "jpg"), kept.getvalue()


class ShownImages:
    """Images by the name that the page has for them; only those that :meth:`name` has named can be read."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Images, str]] = {}
        self._scaled = lru_cache(maxsize=256)(self._scale)

    def name(self, images: Images, path: str) -> ImagePayload:
        """Names an image; returns how the page asks for it."""
        if path == WITHHELD:
            return ImagePayload(path="", file="", problem="withheld from the model")
        file = digest([str(images.root), path])[:24]
        self._known[file] = (images, path)
        return ImagePayload(path=path, file=file)

    def read(self, file: str) -> tuple[str, bytes] | None:
        """Ending and bytes of an image by its name; None if nothing has that name.

        Raises:
            QueryError: it is gone, is no regular file, or can't be decoded.
        """
        if file not in self._known:
            return None
        images, path = self._known[file]
        try:
            status = (images.root / path).stat()
        except (OSError, ValueError):
            return images.decode(path, scaled)  # raises an error that states what is wrong
        return self._scaled(file, status.st_mtime_ns, status.st_size)

    def _scale(self, file: str, *_: int) -> tuple[str, bytes]:
        images, path = self._known[file]
        return images.anew().decode(path, scaled)  # the image may have changed since: the page says so


class BundledImages(ShownImages):
    """The same, but each image is put into a file as soon as it is named, each content once.

    Args:
        put: writes a file, given its name and bytes.
    """

    def __init__(self, put: Put) -> None:
        super().__init__()
        self._put = put
        self._done: dict[str, ImagePayload] = {}
        self._files: set[str] = set()

    def name(self, images: Images, path: str) -> ImagePayload:
        """Where the bundle has an image, or the problem if it can't be shown."""
        key = f"{images.root}\0{path}"
        if key not in self._done:
            self._done[key] = self._bundled(images, path)
        return self._done[key]

    def _bundled(self, images: Images, path: str) -> ImagePayload:
        if path == WITHHELD:
            return super().name(images, path)
        try:
            ending, content = images.decode(path, scaled)
        except QueryError as error:
            return ImagePayload(path=path, file="", problem=str(error))
        file = f"{bytes_digest(content)[:24]}.{ending}"
        if file not in self._files:
            self._files.add(file)
            self._put(f"images/{file}", content)
        return ImagePayload(path=path, file=file)
