"""Sorts images from one folder into a folder per class, as loaders need them, by a file that lists their classes.

ImageNet's validation images come in one folder. Any of these files lists their classes:

- Kaggle's table (``LOC_val_solution.csv``): ``ImageId,PredictionString``, where a prediction begins with the class;
- a list of classes, one line per image (``imagenet_2012_validation_synset_labels.txt``);
- a list of numbers, one line per image (``ILSVRC2012_validation_ground_truth.txt``), with ``meta.mat`` beside it,
  whose ``synsets`` map each number to a class (the development kit's readme, section 2).
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.paths import exists
from flamingo_eval.core.reading import read_text
from flamingo_eval.data.finding import is_image

_NUMBER = re.compile(r"(\d+)$")
_CLASS = re.compile(r"\w+")


def classes_of(file: Path) -> Callable[[str], str | None]:
    """A function from an image's file name to its class; it returns None for an image that the file does not list.

    Raises:
        DataError: the file is of none of the three kinds, or ``meta.mat`` does not explain its numbers.
    """
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if lines and lines[0].lower().startswith("imageid,"):
        rows = [row for row in csv.reader(lines[1:]) if len(row) > 1 and row[1].split()]
        classes = {row[0]: row[1].split()[0] for row in rows}
        return lambda name: classes.get(Path(name).stem)
    if lines and all(line.isdecimal() for line in lines):
        known = _synsets(file.with_name("meta.mat"))
        unknown = next((line for line in lines if int(line) not in known), None)
        if unknown is not None:
            raise DataError(f"{file} has the class number {unknown}, which {file.with_name('meta.mat')} does not know")
        lines = [known[int(line)] for line in lines]
    if not lines or not all(_CLASS.fullmatch(line) for line in lines):
        raise DataError(f"{file} does not tell images' classes: it is no table, and no list of classes or numbers")

    def by_number(name: str) -> str | None:
        match = _NUMBER.search(Path(name).stem)
        number = int(match[1]) if match else 0
        return lines[number - 1] if 1 <= number <= len(lines) else None

    return by_number


def _synsets(path: Path) -> Mapping[int, str]:
    """Number -> class, from a MATLAB file of version 5. It holds numbers and texts; no code in it is run."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not exists(path):
        raise DataError(f"{path} does not exist; it says which classes the numbers stand for")
    try:
        table = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table.ravel()}
    except (MatReadError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path} is not the development kit's table of classes: {error}") from error


def arrange(images: Path, file: Path, put: Callable[[str, str], None]) -> None:
    """Puts images into a folder per class.

    Args:
        images: folder that holds the images; files that are not images stay where they are.
        file: the file that lists their classes.
        put: called with an image's file name and its class; puts the image into the class's folder.

    Raises:
        DataError: an image has no class, or its class can't be a folder's name; then no image is put anywhere.
    """
    class_of = classes_of(file)
    with os.scandir(images) as entries:
        names = sorted(entry.name for entry in entries if is_image(entry.name) and not entry.is_dir())
    classes = {name: class_of(name) for name in names}
    unknown = [name for name, one in classes.items() if one is None]
    if unknown:
        raise DataError(f"{file} does not tell the class of {len(unknown):,} images in {images}, such as {unknown[0]}")
    strange = next((one for one in classes.values() if not _CLASS.fullmatch(str(one))), None)
    if strange is not None:
        raise DataError(f"{file} tells of a class {strange!r}, which no folder can be called")
    for name, one in classes.items():
        put(name, str(one))
