"""A folder per class under each split, in the order of torchvision's ``ImageFolder``; a row's number is its id.

Options of a benchmark's ``[data]`` section: ``splits``, from a split's name to its folder; ``names``, a file beside
them that maps class folders to names (``{"n01440764": "tench"}``); ``default_names``, a file of the package that lists
names in the order of the class folders, used where ``names`` is not there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flamingo_eval.benchmark import DataRules
from flamingo_eval.errors import DataError
from flamingo_eval.files import fits, read_json, resource_folder
from flamingo_eval.nouns import Example
from flamingo_eval.ports import DataSet, References

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS


@dataclass(frozen=True)
class ImageFolderLoader:
    """An example per picture; its demonstration answer is its class's name."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Pictures of the training split and of ``split``."""
        train, test = (_read(rules, root, name) for name in (rules.train, split))
        names = tuple(dict.fromkeys(_class_names(rules, root).values()))
        return DataSet(train, test, (), names=names)

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """The class name of each picture."""
        return References({e.id: e.fields["label"] for e in _read(rules, root, split)}, ())


def _class_names(rules: DataRules, root: Path) -> dict[str, str]:
    """Class folder -> name, folders sorted; those of the training split."""
    folder = root / rules.folder
    train = folder / rules.options["splits"][rules.train]
    if not train.is_dir():
        raise DataError(f"{train} is not a folder")
    classes = sorted(entry.name for entry in os.scandir(train) if entry.is_dir())
    path = folder / rules.options["names"]
    if path.exists():
        names = read_json(path)
        if not fits(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise DataError(f"{path} does not map class folders to names")
        unnamed = [c for c in classes if c not in names]
        if unnamed:
            raise DataError(f"{path} has no name for {len(unnamed)} class folders of {train}, such as {unnamed[0]}")
        return {c: names[c] for c in classes}
    known = (resource_folder("benchmarks") / rules.options["default_names"]).read_text(encoding="utf-8").splitlines()
    if len(classes) != len(known):
        raise DataError(f"{train} has {len(classes)} class folders, not {len(known)}: name them in {path}")
    return dict(zip(classes, known, strict=True))


def _read(rules: DataRules, root: Path, split: str) -> list[Example]:
    names = _class_names(rules, root)
    top = root / rules.folder / rules.options["splits"][split]
    if not top.is_dir():
        raise DataError(f"{top} is not a folder")
    strange = sorted({entry.name for entry in os.scandir(top) if entry.is_dir()} - names.keys())
    if strange:
        raise DataError(f"{top} has class folders that the training split has not, such as {strange[0]}")
    examples: list[Example] = []
    for folder, name in names.items():
        for parent, _, files in sorted(os.walk(top / folder, followlinks=True)):
            for file in sorted(files):
                if file.lower().endswith(_ENDINGS):
                    image = PurePosixPath(Path(parent, file).relative_to(root).as_posix())
                    examples.append(Example(len(examples), str(image), {"label": name}))
    if not examples:
        raise DataError(f"{top} holds no pictures")
    return examples


LOADER = ImageFolderLoader()
