"""Hateful Memes' JSON lines: ``{"id", "img", "label", "text"}``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from flamingo_eval.core.benchmark import DataRules
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.paths import exists
from flamingo_eval.core.protocols import DataSet, References
from flamingo_eval.core.reading import (
    inside_root,
    one_record,
    parse_json,
    read_text,
    record_field,
    refuse_half_characters,
)
from flamingo_eval.core.records import Example, Id
from flamingo_eval.core.schema import Record


class MemeFiles(Record, frozen=True, kw_only=True):
    """Options of a benchmark's ``[data]`` section.

    Attributes:
        splits: a split's name -> its file.
        fallbacks: a split's name -> what the first release called the file.
        labels: class names of the labels 0, 1, ...
    """

    splits: dict[str, str]
    fallbacks: dict[str, str] = msgspec.field(default_factory=dict)
    labels: tuple[str, ...]


@dataclass(frozen=True)
class JsonlMemesLoader:
    """An example per line; its demonstration answer is the name of its label."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Lines of the training split and of ``split``."""
        train_path, test_path = _path(rules, root, rules.train), _path(rules, root, split)
        train, test = _read(rules, train_path), _read(rules, test_path)
        unlabelled = [example.id for example in train if "label" not in example.fields]
        if unlabelled:
            raise DataError(f"{train_path}: demonstrations need labels, and the line of id {unlabelled[0]} has none")
        return DataSet(train, test, (train_path, test_path), (f"{split} from {test_path.name}",))

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """The name of each line's label; none where labels are not public."""
        path = _path(rules, root, split)
        examples = _read(rules, path)
        by_id = {e.id: e.fields["label"] for e in examples if "label" in e.fields}
        if by_id and len(by_id) < len(examples):
            raise DataError(f"{path}: {len(examples) - len(by_id)} lines have no label")
        return References(by_id, (path,))


def _path(rules: DataRules, root: Path, split: str) -> Path:
    folder, files = root / rules.folder, rules.read(MemeFiles)
    if split not in files.splits:
        raise UserError(f"{rules.where}: splits has no {split!r}; it has: {', '.join(files.splits)}")
    path = folder / files.splits[split]
    fallback = files.fallbacks.get(split)
    return folder / fallback if fallback is not None and not exists(path) else path


def _read(rules: DataRules, path: Path) -> list[Example]:
    lines = read_text(path).split("\n")
    labels = rules.read(MemeFiles).labels
    examples: dict[Id, Example] = {}
    for number, line in enumerate(lines, start=1):
        with one_record():
            if line.strip():
                example = _example(rules.folder, labels, f"{path}, line {number}", line)
                if example.id in examples:
                    raise DataError(f"{path}, line {number}: the id {example.id} occurs twice")
                examples[example.id] = example
    if not examples:
        raise DataError(f"{path} holds no lines")
    return list(examples.values())


def _example(folder: str, labels: Sequence[str], where: str, line: str) -> Example:
    row: Any = parse_json(line, where)
    refuse_half_characters(row, where)
    fields = {"text": record_field(where, row, "text", str)}
    if "label" in row:
        label = record_field(where, row, "label", int)
        if not 0 <= label < len(labels):
            raise DataError(f"{where}: label {label} is none of 0 to {len(labels) - 1}")
        fields["label"] = labels[label]
    image = PurePosixPath(folder, inside_root(record_field(where, row, "img", str), where))
    return Example(record_field(where, row, "id", int, str), str(image), fields)


LOADER = JsonlMemesLoader()
