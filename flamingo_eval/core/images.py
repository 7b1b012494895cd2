"""Images on disk. Only this module opens them.

An image's bytes are digested as they are read, and the same bytes are decoded. So a digest always stands for the
decoded content, whatever happens to the file meanwhile. Pillow may use only the decoders of a few formats, and any
error that a decoder raises counts as a failure of that image.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flamingo_eval.core.digests import bytes_digest, file_digest_once
from flamingo_eval.core.errors import QueryError, UserError
from flamingo_eval.core.paths import open_regular
from flamingo_eval.core.reading import odd_content

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are always decoded, by Pillow's names; the user may name more. JPEG includes MPO, which phones write."""

NEVER = frozenset({"EPS", "IPTC"})
"""Formats that are never decoded. EPS is a program, which Pillow has Ghostscript run; IPTC may contain one."""

_PROGRAM = "such a file is, or may hold, a program that would have to be run"

_ORIENTATION = 0x0112
"""EXIF's tag for the orientation of an image; with 5 to 8 it is turned on its side."""

MOST_BYTES = 1 << 30
"""Larger files are refused without reading them. (The largest uncompressed image that Pillow opens has 0.7 GB.)"""


CHANGED = "has changed since this command began; given again, it reads the new one"
"""Message about an image whose content is not the same as when it was first read."""


class Images:
    """The images under a data root, each as it was when this command first read it.

    Args:
        root: the folder that image paths are relative to.
        formats: Pillow's names of the formats that may be decoded.

    Raises:
        UserError: one of the formats is never read.
    """

    def __init__(self, root: Path, formats: Sequence[str] = FORMATS) -> None:
        for name in formats:
            if name in NEVER:
                raise UserError(f"images in {name} are never read: {_PROGRAM}")
        self.root, self.formats = root, tuple(formats)
        self._digests: dict[str, str] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def anew(self) -> Images:
        """The same images, with no digests recorded yet."""
        return Images(self.root, self.formats)

    def only(self, shown: Iterable[str]) -> Images:
        """The same images, with the digests known of those in ``shown``, so that another process notices a change."""
        part = self.anew()
        part._digests = {image: self._digests[image] for image in shown if image in self._digests}
        return part

    def seen(self) -> dict[str, str]:
        """Image -> digest of its content, for all images read so far."""
        with self._lock:
            return dict(self._digests)

    def learn(self, seen: Mapping[str, str]) -> list[str]:
        """Adds the digests that another process recorded; returns the images whose content was different here."""
        return [image for image, digest in seen.items() if self._first_seen(image, digest) != digest]

    def __getstate__(self) -> tuple[Path, tuple[str, ...], dict[str, str]]:
        with self._lock:
            return self.root, self.formats, dict(self._digests)

    def __setstate__(self, state: tuple[Path, tuple[str, ...], dict[str, str]]) -> None:
        self.root, self.formats, self._digests = state
        self._sizes = {}
        self._lock = threading.Lock()

    def digest(self, image: str) -> str:
        """Digest of an image's bytes as they were first read.

        Raises:
            QueryError: it is missing, unreadable, too large, or not a regular file; the message names it.
        """
        known = self._digests.get(image)
        if known is None:
            path = self.root / image
            try:
                _check_size(path, path.stat().st_size)
                known = self._first_seen(image, file_digest_once(path))
            except (OSError, ValueError) as error:  # a ValueError for a name with a null character
                raise _unreadable(path, error) from error
        return known

    def read(self, image: str) -> bytes:
        """The content of an image's file.

        Raises:
            QueryError: as :meth:`digest`; or the content has changed since it was first read.
        """
        content = self._content(image)
        digest = bytes_digest(content)
        if self._first_seen(image, digest) != digest:
            raise QueryError(f"{self.root / image} {CHANGED}")
        return content

    def _content(self, image: str) -> bytes:
        path = self.root / image
        try:
            with open_regular(path) as file:
                _check_size(path, os.fstat(file.fileno()).st_size)
                return file.read()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def decode(self, image: str, use: Callable[[Image.Image], T]) -> T:
        """Calls a function with an image as Pillow opened it, and returns the result.

        Raises:
            QueryError: as :meth:`read`; or the bytes are not an image in an allowed format, or can't be decoded.
        """
        path = self.root / image
        with _opened(path, self.read(image), self.formats) as opened:
            try:
                return use(opened)
            except _UNUSABLE as error:
                raise _cant_be_decoded(path, error) from error

    def size(self, image: str) -> tuple[int, int]:
        """Width and height of an image in pixels, the right way up, from the header of its file.

        Raises:
            QueryError: as :meth:`decode`, except that damage after the header is not noticed.
        """
        known = self._sizes.get(image)
        if known is None:
            known = self._sizes[image] = self._size(image)
        return known

    def _size(self, image: str) -> tuple[int, int]:
        from PIL import Image

        content = self.read(image)
        try:
            with Image.open(io.BytesIO(content), formats=self.formats) as opened:
                turned = opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
                return (opened.height, opened.width) if turned else opened.size
        except Exception:  # noqa: BLE001  # decoders raise whatever they like
            return self.decode(image, lambda opened: opened.size)  # its error states what is wrong

    def _first_seen(self, image: str, digest: str) -> str:
        with self._lock:
            return self._digests.setdefault(image, digest)


_UNUSABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, ArithmeticError, RuntimeError)
"""Errors that resizing and converting raise for an image that can't be resized or converted."""


def _opened(path: Path, content: bytes, formats: Sequence[str]) -> Image.Image:
    """An image, decoded but otherwise as Pillow opened it. Raises QueryError."""
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(content), formats=tuple(formats))
        opened.load()
    except UnidentifiedImageError as error:
        raise QueryError(f"{path} {_what_it_is(content, formats)}") from error
    except Exception as error:
        # decoders raise whatever they like: KeyError, struct.error, MemoryError, errors of their own
        raise _cant_be_decoded(path, error) from error
    return opened


def _cant_be_decoded(path: Path, error: Exception) -> QueryError:
    return QueryError(f"{path} can't be read: {str(error) or type(error).__name__}")


def _what_it_is(content: bytes, formats: Sequence[str]) -> str:
    """Why a file is not decoded, judged by its first bytes; no decoder is run."""
    from PIL import Image

    odd = odd_content(content)
    if odd is not None:
        return odd
    Image.init()
    for name, (_, accepts) in Image.OPEN.items():
        if name not in formats and _accepted(accepts, content[:16]):
            if name in NEVER:
                return f"is an {name} file, which is never read: {_PROGRAM}"
            return f"is a {name} image; it is read only with --image-formats {name} (always read: {', '.join(FORMATS)})"
    return f"is not an image in a known format ({', '.join(formats)})"


def _accepted(accepts: Callable[[bytes], bool | str] | None, begins: bytes) -> bool:
    """Whether a format's files begin like this; Pillow's check may raise an error if the bytes are too few."""
    try:
        return accepts is not None and accepts(begins) is True
    except Exception:  # noqa: BLE001  # struct.error, IndexError
        return False


def _check_size(path: Path, size: int) -> None:
    if size > MOST_BYTES:
        raise QueryError(
            f"{path} has {size / 2**30:.1f} GiB, more than any image that is read ({MOST_BYTES >> 30} GiB)"
        )


def _unreadable(path: Path, error: OSError | ValueError) -> QueryError:
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return QueryError(f"{path} does not exist")
    return QueryError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}")


def formats_with(more: Iterable[str]) -> tuple[str, ...]:
    """The formats that are always read, and further ones, such as ``AVIF`` and ``JPEG2000``.

    Raises:
        UserError: Pillow knows no such format, or it is one that is never read.
    """
    names = [name.strip().upper() for name in more if name.strip()]
    if not names:
        return FORMATS
    from PIL import Image

    Image.init()
    for name in names:
        if name in NEVER:
            raise UserError(f"--image-formats {name}: never read; {_PROGRAM}")
        if name not in Image.OPEN:
            known = ", ".join(sorted(set(Image.OPEN) - NEVER))
            raise UserError(f"--image-formats {name}: no such format; Pillow reads {known}")
    return tuple(dict.fromkeys((*FORMATS, *names)))
