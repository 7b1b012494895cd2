"""COCO's caption files with every caption as an example of its own, as the harness of tag 0.1 read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from flamingo_eval.core.benchmark import DataRules
from flamingo_eval.core.errors import DataError
from flamingo_eval.core.protocols import DataSet, References
from flamingo_eval.core.reading import inside_root, one_record, read_json, record_field
from flamingo_eval.core.records import Example, Id
from flamingo_eval.core.schema import image_name


class CaptionFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a benchmark's ``[data]`` section; other keys, which may be another loader's options, are ignored.

    Attributes:
        annotations: the caption file.
        images: template of an image's path, by its id.
    """

    annotations: str
    images: str


@dataclass(frozen=True)
class CocoCaptionsLoader:
    """One set for queries and demonstrations: a row per caption, whose id is its image's id and can occur again."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:  # noqa: ARG002  # the file is the split
        """Every caption of the file."""
        path = root / rules.folder / rules.read(CaptionFiles).annotations
        template = rules.read(CaptionFiles).images
        rows = [_example(rules.folder, template, *row) for row in _captions(path)]
        return DataSet(rows, rows, (path,))

    def references(self, rules: DataRules, root: Path, split: str) -> References:  # noqa: ARG002
        """All captions of every image, images in the order of their first caption in the file."""
        path = root / rules.folder / rules.read(CaptionFiles).annotations
        by_id: dict[Id, list[str]] = {}
        for _, id, caption in _captions(path):
            by_id.setdefault(id, []).append(caption)
        return References(by_id, (path,))


def _captions(path: Path) -> list[tuple[str, Id, str]]:
    """(location for messages, image id, caption) of every row."""
    table: Any = read_json(path)
    rows = table.get("annotations") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f'{path} is not a COCO caption file: it has no list "annotations"')
    found = []
    for number, row in enumerate(rows):
        where = f"{path}: annotations[{number}]"
        with one_record():
            id, caption = record_field(where, row, "image_id", int, str), record_field(where, row, "caption", str)
            found.append((where, id, caption))
    return found


def _example(folder: str, template: str, where: str, id: Id, caption: str) -> Example:
    try:
        name = image_name(template, id)
    except ValueError as error:
        raise DataError(f"{where}: image id {id!r} does not fit {template!r}: {error}") from error
    return Example(id, str(PurePosixPath(folder, inside_root(name, where))), {"caption": caption})


LOADER = CocoCaptionsLoader()
