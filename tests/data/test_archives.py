"""Archives that harm, or are none: one message, and nothing outside the data root."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.conftest import use_files
from tests.support import owners
from tests.support.owners import Shelf
from tests.support.preparing import BIG, part_of

Call = Callable[..., tuple[int, str, str]]


def zip_link(name: str, to: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, to)
    return buffer.getvalue()


def tar_link(name: str, to: str, kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, to
        archive.addfile(info)
    return buffer.getvalue()


def bomb() -> bytes:
    """A gigabyte of nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive, archive.open("train_images/a.jpg", "w") as file:  # fmt: skip
        for _ in range(1 << 6):
            file.write(bytes(1 << 24))
    return buffer.getvalue()


def damaged() -> bytes:
    """An archive with a wrong byte in an image."""
    content = bytearray(owners.textvqa()[BIG])
    content[200] ^= 0xFF
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: owners.packed({"train_images/../../../evil.jpg": b"x"}), "leads out of the archive"),
        (
            lambda: owners.packed({"train_images/a.jpg": b"x", "train_images//other/evil/../../x.jpg": b"x"}),
            "leads out",
        ),
        (lambda: zip_link("train_images/a.jpg", "/etc/passwd"), "a link or another thing"),
        (lambda: owners.tarred({"train_images/../../../evil.jpg": b"x"}), "leads out of the archive"),
        (lambda: owners.tarred({"/train_images/evil.jpg": b"x"}), "leads out of the archive"),
        (lambda: tar_link("train_images/a.jpg", "/etc/passwd", tarfile.SYMTYPE), "a link or another thing"),
        (lambda: tar_link("train_images/a.jpg", "/etc/passwd", tarfile.LNKTYPE), "a link or another thing"),
        (lambda: tar_link("train_images/a.jpg", "", tarfile.FIFOTYPE), "a link or another thing"),
        (bomb, "no data is packed so densely"),
        (damaged, "can't be unpacked"),
        (lambda: owners.packed({"other/a.jpg": b"x"}), "does not hold train_images/; it begins with: other/a.jpg"),
        (lambda: owners.packed({}), "does not hold train_images/; it begins with: nothing"),
        (lambda: owners.packed({"train_images/readme.txt": b"x"}), "without *.jpg in it"),
        (lambda: b"PK\x03\x04" + b"x" * 100, "a zip file without its end"),
        (lambda: b"", "is empty"),
    ],
)
def test_archives_that_harm(
    call: Call,
    shelf: Shelf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: Callable[[], bytes],
    message: str,
) -> None:
    """From a server (with the digest that is stated) or a folder: one message, nothing outside, nothing under its name."""
    shelf.files[BIG] = content()
    use_files(tmp_path, monkeypatch, shelf)
    have = tmp_path / "have"
    have.mkdir()
    (have / BIG).write_bytes(shelf.files[BIG])
    before = set(tmp_path.iterdir())
    for more in ((), ("--from", have)):
        code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", *more)
        assert code == 2, err
        assert message in err
        assert not (tmp_path / "d/textvqa/train_images").exists()
        assert set(tmp_path.iterdir()) - before == {tmp_path / "d"}
        assert not list(tmp_path.rglob("evil*"))


def test_links_in_the_way(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """Nothing is written through a link that somebody put where a part would go."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    part_of(tmp_path / "d", shelf).symlink_to(outside)
    code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")
    assert outside.read_text() == "mine", err
    assert code in (0, 3)
    assert shelf.asked
