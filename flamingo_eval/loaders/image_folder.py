"""A folder per class under each split, in the order of torchvision's ``ImageFolder``; a row's number is its id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from msgspec import Meta

from flamingo_eval.core.benchmark import DataRules
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.paths import exists, is_folder, resource_folder
from flamingo_eval.core.protocols import DataSet, References
from flamingo_eval.core.reading import inside_root, read_json, read_text
from flamingo_eval.core.records import Example
from flamingo_eval.core.schema import Record, typed

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's IMG_EXTENSIONS


class ImageFolders(Record, frozen=True, kw_only=True):
    """Options of a benchmark's ``[data]`` section.

    Attributes:
        splits: a split's name -> its folder.
        names: a file beside them that maps class folders to names (``{"n01440764": "tench"}``).
        default_folders: a file of the package whose n-th line is a class folder.
        default_names: a file of the package whose n-th line is that class's name. Both are used if the ``names`` file
            does not exist. The folders must then be exactly these, since a folder's place among the others does not
            show what is in it.
    """

    splits: dict[str, str]
    names: str
    default_folders: str | None = None
    default_names: str | None = None


@dataclass(frozen=True)
class ImageFolderLoader:
    """An example per image; its demonstration answer is its class's name."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Images of the training split and of ``split``."""
        train, test = (_read(rules, root, name) for name in (rules.train, split))
        path = root / rules.folder / rules.read(ImageFolders).names
        files = (path,) if exists(path) else ()
        return DataSet(train, test, files, names=_answer_names(rules, root), listing=True)

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """The class name of each image."""
        by_id = {e.id: e.fields["label"] for e in _read(rules, root, split)}
        return References(by_id, (), names=_answer_names(rules, root))


def _answer_names(rules: DataRules, root: Path) -> tuple[str, ...]:
    """The classes' names, each once."""
    return tuple(dict.fromkeys(_class_names(rules, root).values()))


def _class_names(rules: DataRules, root: Path) -> dict[str, str]:
    """Class folder of the training split -> name, folders sorted."""
    folder = root / rules.folder
    train = folder / _folder(rules, rules.train)
    classes = _class_folders(train)
    path = folder / rules.read(ImageFolders).names
    if exists(path):
        try:
            names = typed(read_json(path), dict[str, Annotated[str, Meta(min_length=1)]], str(path))
        except UserError as error:
            raise DataError(f"{error}. It should map class folders to names") from error
        unnamed = [c for c in classes if c not in names]
        if unnamed:
            raise DataError(f"{path} has no name for {len(unnamed)} class folders of {train}, such as {unnamed[0]}")
        return {c: names[c] for c in classes}
    known = _known_names(rules)
    if not known:
        raise DataError(f"{path} does not exist; it names the class folders of {train}")
    strange, missing = [c for c in classes if c not in known], sorted(known.keys() - set(classes))
    if strange or missing:
        differences = [f"{len(strange)} others, such as {strange[0]}"] if strange else []
        differences += [f"{len(missing)} are missing, such as {missing[0]}"] if missing else []
        raise DataError(
            f"{train}: the class folders are not the {len(known):,} ids that class names are known for "
            f"({'; '.join(differences)}). A folder's place among the others does not say what it shows: name the "
            f"classes in {path}, as {{folder: name}}"
        )
    return {c: known[c] for c in classes}


def _known_names(rules: DataRules) -> dict[str, str]:
    """Folder -> name, of the classes that the package knows; empty if the benchmark names no such files."""
    options = rules.read(ImageFolders)
    if options.default_folders is None or options.default_names is None:
        return {}
    folders, names = (
        read_text(resource_folder("benchmarks") / inside_root(name, rules.where, "the benchmarks' folder")).splitlines()
        for name in (options.default_folders, options.default_names)
    )
    if len(folders) != len(names):
        raise UserError(f"{rules.where}: default_folders has {len(folders)} lines, default_names {len(names)}")
    return dict(zip(folders, names, strict=True))


def _folder(rules: DataRules, split: str) -> str:
    """The folder of a split. Raises UserError."""
    splits = rules.read(ImageFolders).splits
    if split not in splits:
        raise UserError(f"{rules.where}: splits has no {split!r}; it has: {', '.join(splits)}")
    return splits[split]


def _class_folders(split: Path) -> list[str]:
    """Names of the class folders of a split, sorted; hidden folders (``.ipynb_checkpoints``) are left out."""
    if not is_folder(split):
        raise DataError(f"{split} is not a folder")
    entries = [entry for entry in os.scandir(split) if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes and any(_is_image(entry.name) for entry in entries):
        raise DataError(f"{split} holds images directly; they must lie in a folder per class")
    return classes


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")  # macOS leaves "._name.JPEG", no image


def _images(folder: Path) -> Iterator[Path]:
    """Image files of a class folder in ``ImageFolder``'s order, hidden ones left out."""
    for parent, _, files in sorted(os.walk(folder, followlinks=True)):
        if not any(part.startswith(".") for part in Path(parent).relative_to(folder).parts):
            yield from (Path(parent, file) for file in sorted(files) if _is_image(file))


def _read(rules: DataRules, root: Path, split: str) -> list[Example]:
    names = _class_names(rules, root)
    top = root / rules.folder / _folder(rules, split)
    strange = sorted(set(_class_folders(top)) - names.keys())
    if strange:
        raise DataError(f"{top} has class folders that the training split has not, such as {strange[0]}")
    examples: list[Example] = []
    for folder, name in names.items():
        for file in _images(top / folder):
            image = PurePosixPath(file.relative_to(root).as_posix())
            examples.append(Example(len(examples), str(image), {"label": name}))
    if not examples:
        raise DataError(f"{top} holds no images")
    return examples


LOADER = ImageFolderLoader()
