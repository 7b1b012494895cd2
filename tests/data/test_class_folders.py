"""ImageNet's validation images are put into folders by class; killed, linked or damaged, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flamingo_eval.data import class_folders, prepare
from tests.support import owners
from tests.support.owners import VALIDATION, Shelf
from tests.support.preparing import unpacked

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def imagenet(tmp_path: Path, shelf: Shelf) -> Path:
    """A data root with ImageNet's training folders, and what tells the validation images' classes."""
    for one in owners.SYNSETS:
        (tmp_path / "d/imagenet/train" / one).mkdir(parents=True)
        (tmp_path / "d/imagenet/train" / one / "1.JPEG").write_bytes(owners.jpeg(1))
    unpacked(shelf, tmp_path / "d", "ILSVRC2012_devkit_t12.tar.gz")
    return tmp_path / "d"


def by_class(root: Path) -> dict[str, str]:
    return {image.stem: image.parent.name for image in (root / "imagenet/val").glob("*/*") if image.read_bytes()}


SORTED = {f"ILSVRC2012_val_{n:08d}": one for n, one in enumerate(VALIDATION, start=1)}


def test_a_linked_folder_is_not_emptied(call: Call, shelf: Shelf, imagenet: Path, tmp_path: Path) -> None:
    mine = unpacked(shelf, tmp_path / "mine", "ILSVRC2012_img_val.tar")
    (mine / "labels.txt").write_text("mine")
    before = contents(mine)
    (imagenet / "imagenet/val").symlink_to(mine)
    assert call("data", "prepare", "imagenet", "--data-root", imagenet)[0] == 0
    assert by_class(imagenet) == SORTED
    assert contents(mine) == before


@pytest.mark.parametrize(
    "step", ["before the images are put", "before the old name is given away", "before the new one"]
)
def test_killed_while_images_are_put_into_classes(
    call: Call, shelf: Shelf, imagenet: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """At any moment: the images stay together, and the same command ends it."""
    unpacked(shelf, imagenet / "imagenet/val", "ILSVRC2012_img_val.tar")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        match step:
            case "before the images are put":
                patch.setattr(class_folders, "is_image", killed)
            case "before the old name is given away":
                patch.setattr(prepare, "check_place", killed)
            case _:
                patch.setattr(prepare, "finish", killed)
        with pytest.raises(Killed):
            call("data", "prepare", "imagenet", "--data-root", imagenet)
    assert len(list((imagenet / "imagenet").glob("val*/*.JPEG"))) == len(VALIDATION)
    assert call("data", "prepare", "imagenet", "--data-root", imagenet)[0] == 0
    assert by_class(imagenet) == SORTED


@pytest.mark.usefixtures("shelf")
def test_killed_after_an_archive_was_put_into_classes(
    call: Call, by_hand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ("data", "prepare", "imagenet", "--data-root", tmp_path / "d", "--from", by_hand)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "finish", killed)
        code, _, err = call(*arguments)
        assert code == 130, err
    assert call(*arguments)[0] == 0
    assert by_class(tmp_path / "d") == SORTED
    assert not list((tmp_path / "d/imagenet/val").glob("*.JPEG"))


def test_copies_are_copies(call: Call, shelf: Shelf, imagenet: Path, tmp_path: Path) -> None:
    have = unpacked(shelf, tmp_path / "have/val", "ILSVRC2012_img_val.tar")
    assert call("data", "prepare", "imagenet", "--data-root", imagenet, "--from", tmp_path / "have", "--copy")[0] == 0
    assert not any(path.is_symlink() for path in (imagenet / "imagenet/val").rglob("*"))
    assert len(contents(have)) == len(VALIDATION)


@pytest.mark.parametrize("rows", ["ImageId,PredictionString\nx\n", "ImageId,PredictionString\n" + "".join(f"{i},../../x 1\n" for i in SORTED)])  # fmt: skip
def test_tables_of_classes_that_are_none(call: Call, shelf: Shelf, tmp_path: Path, rows: str) -> None:
    for one in owners.SYNSETS:
        (tmp_path / "d/imagenet/train" / one).mkdir(parents=True)
        (tmp_path / "d/imagenet/train" / one / "1.JPEG").write_bytes(owners.jpeg(1))
    val = unpacked(shelf, tmp_path / "d/imagenet/val", "ILSVRC2012_img_val.tar")
    (val / "LOC_val_solution.csv").write_text(rows)
    code, _, err = call("data", "prepare", "imagenet", "--data-root", tmp_path / "d")
    assert code == 2
    assert "does not tell the class of 20 images" in err or "no folder can be called" in err
    assert len(list(val.glob("*.JPEG"))) == len(VALIDATION)


def test_labels_beside_the_images(call: Call, shelf: Shelf, imagenet: Path) -> None:
    val = unpacked(shelf, imagenet / "imagenet/val", "ILSVRC2012_img_val.tar")
    rows = "".join(f"{image},{one} 1 2 3 4\n" for image, one in SORTED.items())
    (val / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    assert call("data", "prepare", "imagenet", "--data-root", imagenet)[0] == 0
    assert by_class(imagenet) == SORTED
