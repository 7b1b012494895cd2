"""The files that a checkpoint's parts are loaded from: which they are, and that they stay what was digested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_eval.errors import CheckpointError, DataError
from flamingo_eval.files import inside_root, is_file, is_folder, odd_content, path_state, read_json, settled_digest


@dataclass(frozen=True)
class DigestedFiles:
    """Files as they were when they were digested.

    Attributes:
        digests: file -> digest of its content.
        states: file -> what tells that its path has led to that content ever since.
    """

    digests: Mapping[Path, str]
    states: Mapping[Path, object]

    @classmethod
    def of(cls, files: Iterable[Path]) -> DigestedFiles:
        """Digests files. Raises CheckpointError if one can't be read."""
        digests, states = {}, {}
        for file in files:
            states[file] = path_state(file)
            try:
                digests[file] = settled_digest(file)
            except OSError as error:
                raise CheckpointError(f"{file} can't be read: {error.strerror}") from error
        found = cls(digests, states)
        found.check()
        return found

    def check(self) -> None:
        """Raises CheckpointError if a file may have been another one at any time since it was digested."""
        for file, state in self.states.items():
            if path_state(file) != state:
                raise CheckpointError(
                    f"{file} has changed since this command looked at it first: what was loaded may not be what was "
                    "digested. Give the command again, once nothing writes to it"
                )


_MODEL_FILES = {
    ".json", ".safetensors", ".bin", ".model", ".txt", ".spm", ".tiktoken", ".codes", ".vocab", ".bpe"
}  # fmt: skip


def model_files(folder: Path) -> list[Path]:
    """The files that transformers may load from a model's or tokenizer's folder: on top, and what these name.

    Raises:
        CheckpointError: one of them names a file outside the folder, or another model.
    """
    try:
        top = sorted(f for f in folder.iterdir() if f.suffix in _MODEL_FILES and not f.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror}") from error
    top = [file for file in top if not is_folder(file)]
    if (folder / "adapter_config.json") in top:
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json) of another model: merge it, and save it whole"
        )
    known, todo = set(top), [*top]
    while todo:
        file = todo.pop()
        for name in _names_in(file):
            try:
                target = file.parent / inside_root(name, str(file), "the model's folder")
            except DataError as error:
                raise CheckpointError(str(error)) from error
            if not is_file(target):
                raise CheckpointError(f"{file} names {name}, which is not there")
            if target not in known:
                known.add(target)
                todo.append(target)
    return [*top, *sorted(known - set(top))]


def _names_in(file: Path) -> list[str]:
    """Files of the same folder that a file names, and that are loaded because of it."""
    if file.name.endswith(".index.json"):
        table = read_object(file).get("weight_map")
        return sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if file.name == "config.json":
        name = read_object(file).get("transformers_weights")
        return [name] if isinstance(name, str) else []
    if file.name == "tokenizer_config.json":
        names = read_object(file).get("fast_tokenizer_files")
        return [str(name) for name in names] if isinstance(names, list) else []
    return []


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, naming the file."""
    odd = odd_content(file)
    try:
        table = None if odd else read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} {odd or 'is not a JSON object'}")
    return table
