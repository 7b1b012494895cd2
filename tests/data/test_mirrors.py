"""Mirrors: asked for what a person would have to get, and one that fails costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.owners import Shelf
from tests.support.preparing import BIG, is_right

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


def test_a_mirror_that_sends_a_page(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """The owner is asked next."""
    mirror = Shelf(dict.fromkeys(shelf.files, b"<html>not here"))
    mirror.lengths = False
    try:
        code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", "--from", mirror.url)
        assert code == 0, err
        assert is_right(tmp_path / "d")
    finally:
        mirror.close()


def test_mirrors_are_asked_for_what_a_person_would_have_to_get(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    code, _, err = call("data", "prepare", "flickr30k", "--data-root", tmp_path / "d", "--from", shelf.url)
    assert code == 0, err


def test_a_mirror_that_fails_costs_nothing(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """What came from the owner is gone on with, though a mirror is asked first."""
    shelf.cut = lambda name: 2000 if name == BIG and len(shelf.asked) < 4 else 0 if name == BIG else None
    assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")[0] == 2
    shelf.cut, mirror = lambda _: None, Shelf({})
    shelf.asked.clear()
    try:
        assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", "--from", mirror.url)[0] == 0
    finally:
        mirror.close()
    assert shelf.asked[0][1].startswith("bytes="), "from where it stopped"
    assert is_right(tmp_path / "d")


def test_a_mirror_whose_archive_is_none(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """Of a file without a stated digest it turns out when it is unpacked; then the owner is asked."""
    mirror = Shelf({"Annotations.zip": b"plain text"})
    try:
        code, _, err = call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d", "--from", mirror.url)
        assert code == 0, err
    finally:
        mirror.close()
    assert "Annotations.zip" in {name for name, _ in shelf.asked}
