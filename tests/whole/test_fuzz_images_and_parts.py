"""Damaged images of every format that Pillow knows, and damaged parts of a checkpoint: a message and an exit code, no more.

The whole of it is ``pytest -m fuzz``; a sample runs with the other slow tests.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import FORMATS, NEVER, Images
from flamingo_eval.models.flamingo import DEMO_SPEC
from tests.support.fuzzing import damaged_bytes, damaged_json
from tests.support.helpers import Cli, LazyModule, write_coco_root

transforms: Any = LazyModule("open_clip.transform")
pytestmark = [pytest.mark.torch, pytest.mark.slow]
LONGEST = 60
"""Seconds that a single case may take."""

HEADS = (
    b"8BPS\0\1", b"\x89HDF\r\n\x1a\n", b"BLP1", b"BLP2", b"DDS ", b"FORM", b"GBR ", b"GIF89a", b"GRIB", b"BUFR", b"II*\0",
    b"MM\0*", b"P6\n", b"P7\n", b"PCD_", b"\x59\xa6\x6a\x95", b"\1\xda", b"qoif", b"/* XPM */", b"#define x_width 9\n",
    b"\0\0\2\0", b"\0\0\1\0", b"\x8aMNG\r\n\x1a\n", b"\xd7\xcd\xc6\x9a\0\0", b"SIMPLE  = ", b"%!PS-Adobe", b"\x80\xe8\0\0",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x1cftypavif", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM",
    b"icns", b"FTEX", b"\0\1\0\0Standard Jet", b"Image type: RGB\r\n", b"P7 332", b"\x0e\x03\x13\x01",
)  # fmt: skip
"""First bytes of formats, of those too that Pillow only reads."""


class Late(BaseException):
    """A case took too long. No Exception, so that nothing takes it for an image's or a checkpoint's failure."""


@contextmanager
def limited() -> Iterator[None]:
    """Raises Late, whatever is going on, when a case takes too long."""

    def late(*_: object) -> None:
        raise Late(f"longer than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@cache
def intact_images() -> dict[str, bytes]:
    """A small image in each format that Pillow writes, in each mode that the format takes."""
    Image.init()
    found = {}
    for format in sorted(set(Image.SAVE) - {"PDF"}):
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F"):
            file = io.BytesIO()
            try:
                Image.linear_gradient("L").resize((24, 17)).convert(mode).save(file, format)
            except Exception:  # noqa: BLE001  # a mode that this format does not have
                continue
            found[f"{format} {mode}"] = file.getvalue()
    return found


def damaged_image(draw: random.Random) -> bytes:
    """One of them damaged, or noise behind a format's first bytes."""
    if draw.random() < 0.2:
        return draw.choice(HEADS) + draw.randbytes(draw.choice((0, 9, 200, 3000)))
    content = intact_images()[draw.choice(sorted(intact_images()))]
    for _ in range(draw.choice((1, 1, 2, 5))):
        content = damaged_bytes(content, draw)
        if content and draw.random() < 0.6:  # a wrong number where a decoder expects a length
            at = draw.randrange(len(content))
            content = content[:at] + bytes([draw.choice((0, 1, 127, 128, 255))]) + content[at + 1 :]
    return content


def decode_many(folder: Path, count: int, first_seed: int) -> tuple[int, int]:
    """How many damaged images could be decoded all the same, and how many were refused by name."""
    transform = transforms.image_transform(64, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    formats = ((*FORMATS,), tuple(sorted(set(Image.OPEN) - NEVER)))
    read = refused = unnamed = 0
    for seed in range(first_seed, first_seed + count):
        draw = random.Random(seed)
        (folder / "x.jpg").write_bytes(damaged_image(draw))
        try:
            with limited():
                assert Images(folder, draw.choice(formats)).decode("x.jpg", transform).shape == (3, 64, 64)
            read += 1
        except QueryError as error:
            unnamed += "x.jpg" not in str(error)
            refused += 1
    assert unnamed == 0
    return read, refused


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.fuzz)])
def test_images(tmp_path: Path, count: int) -> None:
    assert len({name.split()[0] for name in intact_images()}) > 20
    read, refused = decode_many(tmp_path, count, first_seed=0)
    assert read > count // 20, "not all of them are beyond reading"
    assert refused > count // 4


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.fuzz)])
def test_runs_over_damaged_images(tmp_path: Path, cli: Cli, count: int) -> None:
    """By RICES, which looks at every image: those of queries cost their queries, those of demonstrations the plan."""
    for seed in range(count):
        draw = random.Random(seed)
        root = write_coco_root(tmp_path / f"{seed}", train=4, test=6)
        folder = draw.choice(("val2014", "val2014", "train2014"))
        for image in draw.sample(sorted((root / "coco" / folder).iterdir()), 2):
            image.write_bytes(damaged_image(draw))
        with limited():
            result = cli("coco", "--shots", "1", "--select", "rices", "--rices-model", "scripted", "--checkpoint",
                         "scripted", "--data-root", root, "--out", root / "run", "--on-error", "skip")  # fmt: skip
        check(result, seed)


def check(result: Any, seed: int) -> None:
    """Ended in good order, with a message if not with success."""
    assert result.returncode in (0, 2, 3, 4), f"seed {seed}: {result.stderr[-2000:]}"
    assert "Traceback" not in result.stderr, f"seed {seed}"
    assert result.returncode == 0 or result.stderr.strip(), f"seed {seed}"
    assert "weights_only=False" not in result.stderr, f"seed {seed}"


def damage_part(bundle: Path, draw: random.Random) -> Path:
    """Damages one file of a checkpoint: its JSON in meaning, anything in bytes."""
    file = draw.choice(sorted(path for path in bundle.rglob("*") if path.suffix in KINDS))
    full = file.read_bytes()
    if file.suffix == ".json" and draw.random() < 0.75:
        table = damaged_json(json.loads(full), draw)
        file.write_text(json.dumps(table), encoding="utf-8", errors="surrogatepass")
    else:
        file.write_bytes(damaged_bytes(full, draw))
    return file


KINDS = {".json", ".toml", ".pt", ".safetensors"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.fuzz)])
def test_checkpoint_parts(tmp_path: Path, cli: Cli, count: int) -> None:
    root = write_coco_root(tmp_path / "data", train=4, test=2)
    codes = set()
    for seed in range(count):
        bundle = tmp_path / f"{seed}"
        shutil.copytree(DEMO_SPEC.parent, bundle)
        damage_part(bundle, random.Random(seed))
        with limited():
            result = cli("coco", "--checkpoint", bundle / "model.toml", "--data-root", root, "--shots", "0", "--seeds",
                         "42", "--device", "cpu", "--out", tmp_path / f"run{seed}", "--on-error", "skip")  # fmt: skip
        check(result, seed)
        if result.returncode == 2:
            assert str(bundle) in result.stderr, f"seed {seed}: {result.stderr}"
        codes.add(result.returncode)
        shutil.rmtree(bundle)
    assert codes >= {0, 2}
