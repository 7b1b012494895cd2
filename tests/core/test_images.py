"""Images: one place opens them, few formats are decoded, one that can't be read fails alone, and no bytes are swapped."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from flamingo_eval.core.errors import QueryError, UserError
from flamingo_eval.core.images import FORMATS, Images, formats_with
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.retrieval import encode_images, store_of
from flamingo_eval.models.scripted import ThumbnailEncoder, ThumbnailSource
from tests.support.helpers import Cli, read_lines, write_coco_root

QUERY_500 = "coco/val2014/COCO_val2014_000000000500.png"


def encoded(color: int, format: str = "PNG") -> bytes:
    """An image file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (color, 90, 40)).save(file, format)
    return file.getvalue()


def refusal(images: Images, name: str) -> str:
    """What is said of an image that can't be decoded."""
    with pytest.raises(QueryError) as error:
        images.decode(name, lambda opened: opened.load())
    assert name in str(error.value)
    return str(error.value)


def test_the_formats_that_are_always_read(tmp_path: Path) -> None:
    images = Images(tmp_path)
    for format in FORMATS:
        (tmp_path / f"{format}.jpg").write_bytes(encoded(7, format))
        assert images.decode(f"{format}.jpg", lambda opened: opened.size) == (16, 16)


def test_other_formats_are_named_and_read_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(7, "JPEG2000"))
    message = refusal(Images(tmp_path), "a.png")
    assert "is a JPEG2000 image; it is read only with --image-formats JPEG2000 (always read: JPEG, PNG," in message
    assert "--image-formats JPEG2000" in message
    more = Images(tmp_path, formats_with([" jpeg2000", "JPEG2000 "]))
    assert more.formats == (*FORMATS, "JPEG2000")
    assert more.decode("a.png", lambda opened: opened.size) == (16, 16)
    with pytest.raises(UserError, match="--image-formats JPEGXXL: no such format; Pillow reads AVIF, "):
        formats_with(["JPEGXXL"])


def test_a_program_in_an_image_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(subprocess, "Popen", run)
    assert "is an EPS file, which is never read: such a file is, or may hold, a program" in refusal(
        Images(tmp_path), "a.png"
    )
    with pytest.raises(UserError, match="never read"):
        formats_with(["EPS"])
    with pytest.raises(UserError, match="never read"):
        formats_with(["IPTC"])  # Pillow opens what is inside one with every decoder it has
    with pytest.raises(UserError, match="never read"):
        Images(tmp_path, ("JPEG", "EPS"))


@pytest.mark.parametrize(
    "raised",
    [KeyError("mode"), struct.error("unpack"), NotImplementedError("BC9"), MemoryError(), RuntimeError("codec"),
     ZeroDivisionError("size"), RecursionError(), AssertionError(), SyntaxError("broken"), OverflowError("too large")],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_that_images_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def load(*_: Any) -> None:
        raise raised

    (tmp_path / "a.png").write_bytes(encoded(7))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    assert "a.png can't be read: " in refusal(Images(tmp_path), "a.png")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2 << 30)
    images = Images(tmp_path)
    for name, words in {"pipe.jpg": "not a regular file", "device.jpg": "not a regular file", "none.jpg": "not exist",
                        "folder.jpg": "can't be read", "loop.jpg": "symbolic links", "huge.jpg": "2.0 GiB",
                        "a\0b.jpg": "null", f"{'n' * 300}.jpg": "too long"}.items():  # fmt: skip
        assert words in refusal(images, name)
        with pytest.raises(QueryError):
            images.digest(name)
    (tmp_path / "real.png").write_bytes(encoded(3))
    (tmp_path / "link.jpg").symlink_to("real.png")
    assert images.decode("link.jpg", lambda opened: opened.size) == (16, 16), "links are the user's own"


def test_bytes_swapped_after_the_digest_are_refused(tmp_path: Path) -> None:
    images = Images(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(1))
    (tmp_path / "b.png").write_bytes(encoded(2))
    first = images.digest("a.png")
    (tmp_path / "b.png").replace(tmp_path / "a.png")
    assert "has changed since this command began" in refusal(images, "a.png")
    assert images.digest("a.png") == first, "one image is one content throughout a command"
    assert Images(tmp_path).digest("a.png") != first


@pytest.mark.torch
def test_features_of_swapped_bytes_are_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is replaced between digest and read, and put back afterwards; and a link is led astray and back."""
    root = write_coco_root(tmp_path / "data", train=3, test=1)
    first, second = (example.image for example in read_source("coco", root).data.train[:2])
    true, false = (root / first).read_bytes(), (root / second).read_bytes()
    prepare = ThumbnailEncoder.prepare
    for swap, restore in (
        (lambda: (root / first).write_bytes(false), lambda: (root / first).write_bytes(true)),
        (lambda: relink(root / first, root / second), lambda: relink(root / first, tmp_path / "kept.png")),
    ):
        shutil.rmtree(Path(os.environ["FLAMINGO_EVAL_CACHE"]) / "features", ignore_errors=True)

        def swapped(
            self: ThumbnailEncoder, image: str, rgb: bool, images: Images, swap: Any = swap, restore: Any = restore
        ) -> Any:
            if image != first:
                return prepare(self, image, rgb, images)
            swap()
            try:
                return prepare(self, image, rgb, images)
            finally:
                restore()

        monkeypatch.setattr(ThumbnailEncoder, "prepare", swapped)
        source = read_source("coco", root)
        encoding = encode_images(source, [first, second], ThumbnailSource(), "cpu")
        assert "has changed since" in encoding.failed[first]
        monkeypatch.setattr(ThumbnailEncoder, "prepare", prepare)
        again = encode_images(read_source("coco", root), [first, second], ThumbnailSource(), "cpu")
        assert not again.failed
        expected = prepare(ThumbnailEncoder(), first, False, Images(root))
        found = again.vectors[again.number[first]]
        assert abs(found / found[0] - expected / expected[0]).max() < 1e-5
        assert len(store_of(ThumbnailSource())) == 2
        (tmp_path / "kept.png").write_bytes(true)
        relink(root / first, tmp_path / "kept.png")


def relink(path: Path, target: Path) -> None:
    """Makes a path a link to a target."""
    path.unlink()
    path.symlink_to(target)


@pytest.mark.torch
def test_latents_of_swapped_bytes_are_never_kept(tmp_path: Path) -> None:
    import torch

    from flamingo_eval.models.flamingo.latents import LatentStore
    from flamingo_eval.storage.vectors import FeatureStore

    def transform(image: Image.Image) -> Any:
        return torch.tensor(image.getpixel((0, 0)), dtype=torch.float32)

    def store() -> LatentStore:
        disk = FeatureStore(tmp_path / "latents", "key")
        return LatentStore(transform, lambda pixels: pixels[:, None], torch.zeros(1, 3), budget=1 << 20, disk=disk)

    path = tmp_path / "a.png"
    path.write_bytes(encoded(1))
    one = store()
    found = one.find("a.png", False, Images(tmp_path))
    path.write_bytes(encoded(2))
    with pytest.raises(QueryError, match="has changed since"):
        one.read([found])
    one.close()
    path.write_bytes(encoded(1))
    two = store()
    found = two.find("a.png", False, Images(tmp_path))
    two.read([found])
    assert two.latents([found])[0, 0, 0] == 1
    two.close()


def breaking(root: Path, name: str, content: bytes) -> Path:
    """Puts a content in place of an image."""
    (root / name).write_bytes(content)
    return root / name


@pytest.mark.torch
@pytest.mark.parametrize("format", ["AVIF", "DDS", "JPEG2000", "ICNS", "PPM"])
def test_a_query_whose_image_is_of_another_format_fails_alone(tmp_path: Path, cli: Cli, format: str) -> None:
    """A real model: that query fails by name, the others are answered, exit 4; with its format named it is answered."""
    root = write_coco_root(tmp_path / "data", train=4, test=3)
    breaking(root, QUERY_500, encoded(9, format))
    run = ("coco", "--checkpoint", "demo", "--data-root", root, "--shots", "0", "--seeds", "42", "--device", "cpu",
           "--out", "run")  # fmt: skip
    result = cli(*run, "--on-error", "skip")
    assert result.returncode == 4, result.stderr
    failures = json.loads(Path("run/failures.json").read_text())
    assert [row["query_id"] for row in failures] == [500]
    assert f"{QUERY_500} is a {format} image" in failures[0]["reason"]
    assert len(read_lines(Path("run/journal.jsonl"))) == 2
    result = cli(*run, "--image-formats", format)
    assert result.returncode == 0, result.stderr
    assert len(read_lines(Path("run/journal.jsonl"))) == 3


@pytest.mark.torch
def test_a_demonstrations_image_that_is_a_pipe_fails_its_queries_alone(tmp_path: Path, cli: Cli) -> None:
    root = write_coco_root(tmp_path / "data", train=9, test=8)
    pipe = root / "coco/train2014/COCO_train2014_000000000103.png"
    pipe.unlink()
    os.mkfifo(pipe)
    result = cli("coco", "--checkpoint", "demo", "--data-root", root, "--shots", "2", "--seeds", "42", "--device",
                 "cpu", "--out", "run", "--on-error", "skip")  # fmt: skip
    assert result.returncode == 4, result.stderr
    rows = [json.loads(line) for line in cli("plan", "coco", "--data-root", root, "--shots", "2", "--seeds", "42",
                                             "--json").stdout.splitlines()]  # fmt: skip
    shown = {row["query_id"] for row in rows if 103 in row["demonstration_ids"]}
    failures = json.loads(Path("run/failures.json").read_text())
    assert {row["query_id"] for row in failures} == shown
    assert 0 < len(shown) < 8
    assert all("103.png can't be read: it is not a regular file" in row["reason"] for row in failures)


@pytest.mark.slow
def test_a_special_token_in_a_text_is_that_records_failure(tmp_path: Path, cli: Cli) -> None:
    root = write_coco_root(tmp_path / "data", train=9, test=8)
    file = root / "coco/dataset_coco.json"
    file.write_text(file.read_text().replace('"a thing 104"', '"an <image> of thing 104"'))
    run = ("coco", "--checkpoint", "scripted", "--data-root", root, "--shots", "0,2", "--seeds", "42", "--out", "run")
    result = cli(*run)
    assert result.returncode == 2
    assert "everything else is answered and saved" in result.stderr
    reason = f"coco: the text of demonstration 104 ({file}) holds the special token <image>"
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    result = cli(*run, "--on-error", "skip")
    assert result.returncode == 4
    planned = cli("plan", "coco", "--data-root", root, "--shots", "0,2", "--seeds", "42", "--json")
    assert planned.returncode == 2
    assert reason in planned.stderr
    rows = [json.loads(line) for line in planned.stdout.splitlines()]
    assert len(rows) == 16, "the plan lists them all the same"
    shown = {(row["shots"], row["query_id"]) for row in rows if 104 in row["demonstration_ids"]}
    failures = json.loads(Path("run/failures.json").read_text())
    assert {(row["shots"], row["query_id"]) for row in failures} == shown
    answered = {(row["shots"], row["query_id"]) for row in read_lines(Path("run/journal.jsonl"))}
    assert len(answered) + len(shown) == 16
    for command in (("score", "run"), ("samples", "run"), ("controls", "run", "--only", "majority")):
        assert cli(*command).returncode in (0, 4), command


def png(extra: bytes = b"", width: int = 8, data: bytes = zlib.compress(bytes(25 * 8))) -> bytes:
    """A PNG of eight rows, with chunks of one's own."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def packed(kind: bytes, size: int, times: int = 1) -> bytes:
    """Chunks of a PNG that unpack to far more than they take."""
    content = kind + b"a\0\0" + zlib.compress(bytes(size), 9)
    return (struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))) * times


BMP = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, *[0] * 6)
GIF = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
TIFF_TAGS = {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8}
TIFF = (
    b"II*\0\x08\0\0\0" + struct.pack("<H", 6) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in TIFF_TAGS.items())
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(packed(b"zTXt", 30_000_000)), "Decompressed data too large"),
        (png(packed(b"zTXt", 900_000, times=100)), "Too much memory used in text chunks"),
        (png(packed(b"iCCP", 30_000_000)), "Decompressed data too large"),
        (png(width=2**31 - 1), "decompression bomb"),
        (BMP, "decompression bomb"),
        (GIF + b"\x02\x02L\x01\0;", "decompression bomb"),
        (TIFF + b"\0\0\0\0", "decompression bomb"),
    ],
    ids=["text", "texts", "profile", "png", "bmp", "gif", "tiff"],
)
def test_images_that_unpack_to_far_more_than_they_take_fail_by_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bomb").write_bytes(content)
    assert re.search(rf"bomb can't be read: .*{message}", refusal(Images(tmp_path), "bomb"))


def test_what_follows_an_images_rows_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(data=zlib.compress(bytes(30_000_000), 9)))
    assert Images(tmp_path).decode("a.png", lambda image: image.size) == (8, 8)
