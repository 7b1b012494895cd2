"""Finds the files that a checkpoint's parts are loaded from, and checks that they stay as they were digested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_eval.core.digests import path_state, settled_digest
from flamingo_eval.core.errors import CheckpointError, DataError
from flamingo_eval.core.paths import is_file, is_folder
from flamingo_eval.core.reading import inside_root, odd_content, read_json


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository, downloaded when it is first needed."""

    repo: str
    filename: str
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""


@dataclass(frozen=True)
class DigestedFiles:
    """Files as they were when they were digested.

    Attributes:
        digests: file -> digest of its content.
        states: file, or folder that files were found in -> state that shows whether its path still leads to it.
        above: folder above them -> inode, time of the last change of its entries, time of the last change of any kind.
    """

    digests: Mapping[Path, str]
    states: Mapping[Path, object]
    above: Mapping[Path, tuple[int, int, int]]

    @classmethod
    def of(cls, files: Iterable[Path], folders: Iterable[Path] = ()) -> DigestedFiles:
        """Digests files.

        Args:
            files: the files.
            folders: the folders that the files were found in: a file that is added there later might be loaded too.

        Raises:
            CheckpointError: a file can't be read, or changes meanwhile.
        """
        files, folders = list(files), list(folders)
        states = {path: path_state(path) for path in (*files, *folders)}
        above = {path: _above(path) for one in files for path in one.absolute().parents}
        digests = {}
        for file in files:
            try:
                digests[file] = settled_digest(file)
            except OSError as error:
                raise CheckpointError(f"{file} can't be read: {error.strerror}") from error
        found = cls(digests, states, above)
        found.check()
        return found

    def check(self) -> None:
        """Raises CheckpointError if a file may have been another one at any time since it was digested."""
        changed = [path for path, state in self.states.items() if path_state(path) != state]
        for path, (inode, entry, change) in self.above.items():
            now = _above(path)
            # a new entry sets both times; moving a folder away and back sets only the time of the last change
            if now[0] != inode or (now[1] == entry and now[2] != change):
                changed.append(path)
        if changed:
            raise CheckpointError(
                f"{changed[0]} has changed since this command looked at it first: what was loaded may not be what was "
                "digested. Give the command again, once nothing writes to it"
            )


def _above(folder: Path) -> tuple[int, int, int]:
    try:
        status = folder.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


_MODEL_FILES = {
    ".json", ".safetensors", ".bin", ".model", ".txt", ".spm", ".tiktoken", ".codes", ".vocab", ".bpe"
}  # fmt: skip


def model_files(folder: Path, *, weights: bool) -> list[Path]:
    """The files that transformers may load from a model's or tokenizer's folder: those in it, and those they name.

    Args:
        folder: the folder.
        weights: whether a model is loaded from it, and not only a tokenizer.

    Raises:
        CheckpointError: one of them names a file outside the folder, or another model.
    """
    try:
        top = sorted(f for f in folder.iterdir() if f.suffix in _MODEL_FILES and not f.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror}") from error
    top = [file for file in top if not is_folder(file)]
    named = [folder / name for name in _tokenizer_files(folder)]
    if weights and (folder / "adapter_config.json") in top:
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json) of another model: merge it, and save the merged model"
        )
    if weights and (folder / "config.json") in top:
        named += weight_files(folder, read_object(folder / "config.json"))
    return [*top, *sorted({file for file in named if file not in top})]


def _tokenizer_files(folder: Path) -> list[str]:
    """Files that a tokenizer's configuration names besides the usual ones, if they are there."""
    config = folder / "tokenizer_config.json"
    names = read_object(config).get("fast_tokenizer_files") if is_file(config) else None
    inside = [_inside(str(name), config) for name in names] if isinstance(names, list) else []
    return [name for name in inside if is_file(folder / name)]


def _inside(name: str, file: Path) -> str:
    """The path that a model's file names. Raises CheckpointError if it leads out of the model's folder."""
    try:
        return inside_root(name, str(file), "the model's folder")
    except DataError as error:
        raise CheckpointError(str(error)) from error


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The weight files that transformers loads from a folder, by its order of preference (modeling_utils.py).

    Raises:
        CheckpointError: there are none; or an index, or the configuration, names a file that is not in the folder.
    """
    names: tuple[str, ...] = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    explicit = config.get("transformers_weights")
    if isinstance(explicit, str):
        names = (_inside(explicit, folder / "config.json"),)
    for name in names:
        file = folder / name
        if is_file(file):
            return shards_of(file) if name.endswith(".index.json") else [file]
    raise CheckpointError(f"{folder} holds no weights ({', '.join(names)})")


def shards_of(index: Path) -> list[Path]:
    """An index and the files that it names. Raises CheckpointError."""
    table = read_object(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} has no weight_map")
    shards = [index.parent / _inside(str(name), index) for name in sorted({str(name) for name in table.values()})]
    missing = [shard for shard in shards if not is_file(shard)]
    if missing:
        raise CheckpointError(f"{index} names {missing[0].name}, which is not there")
    return [index, *shards]


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
