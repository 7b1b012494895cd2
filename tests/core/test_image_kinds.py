"""Images of every awkward kind are seen as the reference sees them, or are a clear error."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from tests.support.helpers import LazyModule

pytestmark = pytest.mark.torch
open_clip: Any = LazyModule("open_clip")


@pytest.fixture(scope="module")
def transform() -> Any:
    """open_clip's inference transform of ViT-L-14."""
    from open_clip.transform import image_transform

    return image_transform(224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)


@pytest.mark.goldens
@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data", "ignore:Palette images with Transparency", "ignore:Truncated File"
)
@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO", "ignore:Metadata Warning")
def test_as_the_reference_sees_them(goldens: Path, golden: Path, transform: Any) -> None:
    """CMYK, 16 bits, palettes, animations, EXIF orientation, cut off, empty: to the last bit, or refused by name."""
    from flamingo_eval.models.flamingo.vision import read_image

    expected = json.loads((golden / "images.json").read_text(encoding="utf-8"))
    assert len(expected) == 62
    found: dict[str, str | None] = {}
    refusals = []
    for name in expected:
        path = goldens / "images" / "quirky" / name
        try:
            pixels = read_image(Images(Path()), str(path), transform, rgb=False)
            found[name] = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).hexdigest()
        except QueryError as error:
            found[name] = None
            refusals.append((str(path), str(error)))
    assert found == expected
    assert all(path in message for path, message in refusals)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (30_000, 200), (2, 300), (223, 225)])
def test_all_modes_and_sizes(tmp_path: Path, transform: Any, mode: str, size: tuple[int, int]) -> None:
    from flamingo_eval.models.flamingo.vision import read_image

    path = tmp_path / f"image.{'tiff' if mode in ('CMYK', 'F') else 'png'}"
    Image.new(mode, size).save(path)
    try:
        with Image.open(path) as image:
            expected = transform(image)
    except (OSError, ValueError) as error:
        with pytest.raises(QueryError, match=r"image\.\w+ can't be read"):
            read_image(Images(Path()), str(path), transform, rgb=False)
        pytest.fail(f"Pillow has learned to refuse this: {error}")
    assert read_image(Images(Path()), str(path), transform, rgb=False).equal(expected)
    assert read_image(Images(Path()), str(path), transform, rgb=True).shape == (3, 224, 224)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, with nothing much in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused(tmp_path: Path, transform: Any) -> None:
    from flamingo_eval.models.flamingo.vision import read_image

    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(60_000, 60_000))
    with pytest.raises(QueryError, match=r"bomb\.png can't be read: .*could be decompression bomb DOS attack"):
        read_image(Images(Path()), str(path), transform, rgb=False)


def test_an_image_that_resizing_would_blow_up_is_refused(tmp_path: Path, transform: Any) -> None:
    """The reference makes 30,000 x 2 pixels 3,360,000 x 224 before it crops."""
    from flamingo_eval.models.flamingo.vision import read_image

    Image.new("RGB", (30_000, 2)).save(tmp_path / "thread.png")
    with pytest.raises(QueryError, match=r"thread\.png is too long and narrow to be resized: 30000 x 2 pixels"):
        read_image(Images(Path()), str(tmp_path / "thread.png"), transform, rgb=False)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>not found</html>", b"\xff\xd8\xff\xe0\0\x10JFIF"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, transform: Any, content: bytes) -> None:
    from flamingo_eval.models.flamingo.vision import read_image

    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(QueryError, match=r"odd\.jpg (is not an image|is empty|is a web page|can't be read)"):
        read_image(Images(Path()), str(path), transform, rgb=False)
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    with pytest.raises(QueryError, match=r"folder\.jpg can't be read"):
        read_image(Images(Path()), str(folder), transform, rgb=False)
