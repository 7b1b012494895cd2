"""``hf:NAME_OR_FOLDER[@REVISION]``: a checkpoint's files, in a folder or on the hub; torch is not imported here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.paths import exists, is_file, is_folder, user_path
from flamingo_eval.core.reading import read_text
from flamingo_eval.models.transformers_vlm.foreign import Table
from flamingo_eval.storage.part_files import DigestedFiles, read_object, weight_files

PREFIX = "hf:"
LIST = "https://huggingface.co/docs/transformers/model_doc/auto#transformers.AutoModelForImageTextToText"
"""Where transformers lists the architectures that it knows."""

_READ = (".json", ".jinja", ".model", ".txt", ".spm", ".tiktoken", ".vocab", ".bpe")
"""Endings of the files that are read besides the weights."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is.

    Attributes:
        name: the name that the user gave, without ``hf:``.
        folder: a folder on this machine; None for a repository on the hub.
        repo: the repository.
        revision: its branch, tag or commit; None for its main branch.
        embedded: whether it is part of this package; then ``--checkpoint`` has its name without ``hf:``.
    """

    name: str
    folder: Path | None = None
    repo: str = ""
    revision: str | None = None
    embedded: bool = False

    @property
    def checkpoint(self) -> str:
        """The value of ``--checkpoint``."""
        return self.name if self.embedded else f"{PREFIX}{self.name}"

    @staticmethod
    def of(text: str) -> Place:
        """Parses what follows ``hf:``. Raises CheckpointError if it is neither a folder nor a valid repository name."""
        if not text.strip():
            raise CheckpointError(f"--checkpoint {PREFIX}: name a folder or a repository behind it")
        folder = user_path(text, "--checkpoint")
        if is_folder(folder):
            return Place(text, folder)
        repo, at, revision = text.partition("@")
        if at and is_folder(user_path(repo or ".", "--checkpoint")):
            raise CheckpointError(
                f"--checkpoint {PREFIX}{text}: {repo or '.'} is a folder, and a folder has no revisions"
            )
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo) or repo.startswith((".", "-")) or text.endswith("@"):
            raise CheckpointError(
                f"--checkpoint {PREFIX}{text}: there is no such folder, and it is no repository's name either "
                "(owner/name, owner/name@revision)"
            )
        return Place(text, None, repo, revision or None)


@dataclass(frozen=True)
class Files:
    """A checkpoint's files, except for its weights.

    Attributes:
        place: where they come from.
        folder: where they are on this machine.
    """

    place: Place
    folder: Path

    @staticmethod
    def of(place: Place) -> Files:
        """The files, which are downloaded if necessary. Raises CheckpointError."""
        if place.folder is None:
            from flamingo_eval.storage.hub import small_files

            return Files(place, small_files(place.repo, place.revision, _READ))
        if not is_file(place.folder / "config.json"):
            raise CheckpointError(f"{place.folder} holds no config.json: it is no model that transformers has saved")
        return Files(place, place.folder)

    @property
    def commit(self) -> str | None:
        """The commit of a repository; None for a folder."""
        return None if self.place.folder else self.folder.name

    @cached_property
    def config(self) -> Table:
        """``config.json``. Raises CheckpointError."""
        return read_object(self.folder / "config.json")

    @property
    def architecture(self) -> str:
        """``model_type`` in ``config.json``. Raises CheckpointError."""
        kind = self.config.get("model_type")
        if not isinstance(kind, str):
            raise CheckpointError(f"{self.folder / 'config.json'} names no model_type")
        return kind

    @property
    def precision(self) -> str:
        """The precision of its stored weights: from its configuration, else from the file of weights."""
        parts = [self.config, self.config.get("text_config")]
        named = [part.get(key) for part in parts if isinstance(part, dict) for key in ("dtype", "torch_dtype")]
        stored = next((str(one) for one in named if isinstance(one, str)), None) or self._stored()
        return {"bfloat16": "bf16", "BF16": "bf16", "float16": "fp16", "F16": "fp16"}.get(
            stored.removeprefix("torch."), "fp32"
        )

    def _stored(self) -> str:
        """The type of a tensor in its weights, by its safetensors name; empty if they can't be read."""
        from safetensors import SafetensorError, safe_open

        for file in sorted(self.folder.glob("*.safetensors")):
            with suppress(SafetensorError, OSError), safe_open(file, framework="numpy") as tensors:
                return next((str(tensors.get_slice(key).get_dtype()) for key in tensors.keys()), "")  # noqa: SIM118
        return ""

    @cached_property
    def template(self) -> str | None:
        """The chat template, from its own file, or the processor's or the tokenizer's file; None if there is none."""
        own = self.folder / "chat_template.jinja"
        if is_file(own):
            return read_text(own)
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            if is_file(self.folder / name) and (
                found := _default(read_object(self.folder / name).get("chat_template"))
            ):
                return found
        return None

    @cached_property
    def special(self) -> tuple[str, ...]:
        """The tokenizer's special tokens: a text of the data that contains one would be misread."""
        found: list[str] = []
        for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer.json", "added_tokens")):
            if is_file(self.folder / name):
                listed = read_object(self.folder / name).get(key)
                entries = [*listed.values()] if isinstance(listed, dict) else listed if isinstance(listed, list) else []
                found += [
                    str(one.get("content", "")) for one in entries if isinstance(one, dict) and one.get("special")
                ]
        return tuple(dict.fromkeys(text for text in found if text.strip()))

    def check(self) -> None:
        """Raises CheckpointError if there is no processor, or if the folder contains an adapter of another model."""
        if not any(is_file(self.folder / name) for name in ("processor_config.json", "preprocessor_config.json")):
            raise CheckpointError(
                f"{self.place.name} has no processor (processor_config.json or preprocessor_config.json): images and "
                "texts can't be prepared for it"
            )
        if exists(self.folder / "adapter_config.json"):
            raise CheckpointError(
                f"{self.place.name} holds an adapter (adapter_config.json) of another model: merge the two and save it"
            )

    def digests(self) -> DigestedFiles:
        """Digests of a folder's files, weights included. Raises CheckpointError."""
        files = [*_read_files(self.folder), *weights(self.folder, self.config)]
        return DigestedFiles.of(dict.fromkeys(files), [self.folder])


def _default(template: Any) -> str | None:
    """The template; if there are several, the one called ``default``."""
    if isinstance(template, list):
        template = {str(one.get("name")): one.get("template") for one in template if isinstance(one, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template.strip() else None


def _read_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ and not file.name.startswith(".") and not is_folder(file):
            yield file
    more = folder / "additional_chat_templates"
    if is_folder(more):
        yield from sorted(more.glob("*.jinja"))


def weights(folder: Path, config: Table) -> list[Path]:
    """The files of weights that transformers loads from a folder.

    Raises:
        CheckpointError: there are none, or only pickles, or an index lists a file that does not exist.
    """
    try:
        found = weight_files(folder, config)
    except CheckpointError:
        if not any(file.suffix in _PICKLES for file in folder.iterdir()):
            raise
        found = [file for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    pickles = [file.name for file in found if file.suffix in _PICKLES or file.name == "pytorch_model.bin.index.json"]
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as pickles only ({pickles[0]}), which are never read, since that can run "
            "code: save them anew with safe_serialization=True where you trust them"
        )
    return found


def weights_of(listed: Mapping[str, int], files: Files) -> list[str]:
    """Names of a repository's files of weights, among all its files. Raises CheckpointError, like :func:`weights`."""
    name, index = files.place.name, "model.safetensors.index.json"
    if "model.safetensors" in listed:
        return ["model.safetensors"]
    if index in listed and is_file(files.folder / index):
        table = read_object(files.folder / index).get("weight_map")
        if not isinstance(table, dict):
            raise CheckpointError(f"{name}: {index} has no weight_map, which names the files of weights")
        return sorted({str(one) for one in table.values()})
    if any(one.endswith(_PICKLES) for one in listed):
        raise CheckpointError(
            f"{name} has its weights as pickles only, which are never read, since that can run code; look for a "
            "revision with safetensors"
        )
    raise CheckpointError(f"{name} has no weights (model.safetensors)")


def needs_code(config: Table) -> bool:
    """Whether a configuration refers to code in its repository (``auto_map``)."""
    return bool(config.get("auto_map"))
