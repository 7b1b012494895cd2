"""What all the demo's data sets share: images in two splits, and a file that states what they show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_eval.demo import world

TRUTH = "truth.json"
"""In every data set's folder: image -> what it shows. No loader reads it; the perfect observer does."""

SAVING: dict[str, Any] = {"quality": 95, "subsampling": 0, "compress_level": 3}
"""How images are saved: JPEGs so that small things keep their colours, PNGs quickly (noise hardly compresses)."""


@dataclass(frozen=True)
class Size:
    """Numbers of training and of test images."""

    train: int
    test: int


@dataclass(frozen=True)
class Item:
    """An image that has been written, and what it shows."""

    number: int
    split: str
    path: Path
    scene: world.Scene


Draw = Callable[[np.random.RandomState], world.Scene]


def write_images(
    folder: Path, size: Size, names: Callable[[int, str], str], generator: np.random.RandomState,
    draw: Draw = world.draw_scene,
) -> Iterator[Item]:  # fmt: skip
    """Writes the images of both splits, and at the end what they show.

    Args:
        folder: the data set's.
        size: how many.
        names: maps (number, split) to a path in the folder.
        generator: scenes, noise and, between two images, the caller's texts are drawn from it.
        draw: how a scene is drawn.
    """
    truth: dict[str, world.Scene] = {}
    for number in range(size.train + size.test):
        split = "train" if number < size.train else "test"
        scene = draw(generator)
        path = folder / names(number, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        world.render(scene, generator).save(path, **SAVING)
        truth[path.relative_to(folder).as_posix()] = scene
        yield Item(number, split, path, scene)
    write_truth(folder, truth)


def write_truth(folder: Path, truth: dict[str, world.Scene]) -> None:
    """Writes what images show, by their path in the folder."""
    dump(folder / TRUTH, {name: asdict(scene) for name, scene in truth.items()})


def read_truth(folder: Path) -> dict[str, world.Scene]:
    """Reads what the images of a data set show, by their path in the folder."""
    table = json.loads((folder / TRUTH).read_text(encoding="utf-8"))
    return {
        name: world.Scene(**{**entry, "things": tuple(world.Thing(**thing) for thing in entry["things"])})
        for name, entry in table.items()
    }


def dump(path: Path, value: Any) -> None:
    """Writes a JSON file, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
