"""Owners' files in miniature, a server that has them, and the command line that knows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flamingo_eval.core import benchmark, paths
from flamingo_eval.data import download
from flamingo_eval.loaders import image_folder
from tests.support import owners

BY_HAND = ("flickr30k-images.tar.gz", "hateful_memes.zip", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")  # fmt: skip


@pytest.fixture(scope="session")
def everything() -> dict[str, bytes]:
    """Every owner's files, by name."""
    return {name: content for make in owners.OWNERS.values() for name, content in make().items()}


@pytest.fixture
def shelf(everything: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[owners.Shelf]:
    """The server; the benchmarks' files name its addresses, and the miniatures' sizes and digests."""
    shelf = owners.Shelf(everything)
    use_files(tmp_path, monkeypatch, shelf)
    monkeypatch.setattr(download, "WAITS", (0.01, 0.01))
    yield shelf
    shelf.close()
    benchmark._files.cache_clear()


def use_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: owners.Shelf) -> None:
    """Benchmarks are read from files made for what the server has now."""
    folder = owners.benchmark_files(tmp_path / "benchmarks", shelf.url, shelf.files)
    usual = paths.resource_folder

    def resource_folder(name: str) -> Path:
        return folder if name == "benchmarks" else usual(name)

    for module in (benchmark, image_folder):
        monkeypatch.setattr(module, "resource_folder", resource_folder)
    benchmark._files.cache_clear()


@pytest.fixture
def by_hand(everything: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder with what a person has downloaded."""
    folder = tmp_path / "by hand"
    folder.mkdir()
    for name in BY_HAND:
        (folder / name).write_bytes(everything[name])
    return folder
