"""Karpathy's JSON (``dataset_coco.json``, ``dataset_flickr30k.json``) and COCO-style caption files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flamingo_eval.core.benchmark import DataRules
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.paths import exists
from flamingo_eval.core.protocols import DataSet, References
from flamingo_eval.core.reading import inside_root, one_record, read_json, record_field
from flamingo_eval.core.records import Example, Id
from flamingo_eval.core.schema import Record


class KarpathyFiles(Record, frozen=True, kw_only=True):
    """Options of a benchmark's ``[data]`` section.

    Attributes:
        annotations: the Karpathy file.
        references: a COCO caption file, used if it exists; empty for none.
        images: folder of the images.
        id: key that holds an image's id, or ``stem`` for its file name without the ending.
    """

    annotations: str
    references: str = ""
    images: str = ""
    id: str


@dataclass(frozen=True)
class KarpathyLoader:
    """An example per image; its demonstration caption is the first sentence, its references are all of them."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Images of the training split and of ``split``."""
        options = rules.read(KarpathyFiles)
        path = root / rules.folder / options.annotations
        by_split: dict[str, dict[Id, Example]] = {rules.train: {}, split: {}}
        seen: set[str] = set()
        for where, image in _images(path):
            with one_record():
                name = record_field(where, image, "split", str)
                seen.add(name)
                if name in by_split:
                    example = _example(where, image, rules.folder, options)
                    if example.id in by_split[name]:
                        raise DataError(f"{where}: the id {example.id} occurs twice in split {name!r}")
                    by_split[name][example.id] = example
        for name, found in by_split.items():
            if not found:
                raise DataError(f"{path} has no image in split {name!r}; its splits: {', '.join(sorted(seen))}")
        return DataSet(list(by_split[rules.train].values()), list(by_split[split].values()), (path,))

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """All captions of the images of ``split``: from the COCO caption file if it exists, else Karpathy's."""
        path = root / rules.folder / rules.read(KarpathyFiles).annotations
        id_key = rules.read(KarpathyFiles).id
        karpathy: dict[Id, list[str]] = {}
        for where, image in _images(path):
            with one_record():
                if record_field(where, image, "split", str) == split:
                    captions = [record_field(where, s, "raw", str) for s in _sentences(where, image)]
                    karpathy[_image_id(where, image, id_key)] = captions
        named = rules.read(KarpathyFiles).references
        coco_path = root / rules.folder / named
        if not named or not exists(coco_path):
            return References(karpathy, (path,), (f"references from {path.name}",))
        coco = _coco_captions(coco_path, set(karpathy))
        missing = [id for id in karpathy if id not in coco]
        if missing:
            raise DataError(f"{coco_path} has no caption of {len(missing)} images of {path}, such as {missing[0]}")
        notes = [f"references from {coco_path.name}"]
        differing = [id for id in coco if _bag(coco[id]) != _bag(karpathy[id])]
        if differing:
            notes.append(f"{path.name} has other captions for {len(differing)} images, such as {differing[0]}")
        return References(coco, (coco_path,), tuple(notes))


def _example(where: str, image: Mapping[str, Any], folder: str, options: KarpathyFiles) -> Example:
    folders = (folder, options.images, image.get("filepath", ""), record_field(where, image, "filename", str))
    path = PurePosixPath(*(inside_root(str(part), where) for part in folders if part))
    caption = record_field(where, _sentences(where, image)[0], "raw", str)
    return Example(_image_id(where, image, options.id), str(path), {"caption": caption})


def _bag(captions: list[str]) -> list[str]:
    return sorted(caption.strip() for caption in captions)


def _images(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(location for messages, record) for each image of a Karpathy file."""
    table = read_json(path)
    images = table.get("images") if isinstance(table, dict) else None
    if not isinstance(images, list):
        raise DataError(f'{path} is not a Karpathy file: it has no list "images"')
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        with one_record():
            if not isinstance(image, dict):
                raise DataError(f"{where} is not an object")
            yield where, image


def _sentences(where: str, image: Mapping[str, Any]) -> list[Any]:
    sentences: list[Any] = record_field(where, image, "sentences", list)
    if not sentences:
        raise DataError(f"{where}: the image has no sentence")
    return sentences


def _image_id(where: str, image: Mapping[str, Any], key: str) -> Id:
    """The id under the benchmark's key, or, for ``id = "stem"``, the file name without its ending, as text."""
    if key == "stem":
        return PurePosixPath(record_field(where, image, "filename", str)).stem
    value: Id = record_field(where, image, key, int)
    return value


def _coco_captions(path: Path, wanted: set[Id]) -> dict[Id, list[str]]:
    """Captions of the wanted images, images in the order of the file's own list (as CIDEr's evaluator visits them)."""
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(table.get(key), list) for key in ("images", "annotations")):
        raise DataError(f'{path} is not a COCO caption file: it needs the lists "images" and "annotations"')
    captions: dict[Id, list[str]] = {}
    for number, image in enumerate(table["images"]):
        id = record_field(f"{path}: images[{number}]", image, "id", int, str)
        if id in wanted:
            captions[id] = []
    for number, annotation in enumerate(table["annotations"]):
        where = f"{path}: annotations[{number}]"
        with one_record():
            id = record_field(where, annotation, "image_id", int, str)
            if id in captions:
                captions[id].append(record_field(where, annotation, "caption", str))
    return {id: found for id, found in captions.items() if found}


LOADER = KarpathyLoader()
