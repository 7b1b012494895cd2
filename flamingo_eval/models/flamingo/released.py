"""The released checkpoints by name: from the Hugging Face hub, or from a folder of copies."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.paths import is_file
from flamingo_eval.models.flamingo.spec import FlamingoSpec, LanguageSpec, VisionSpec
from flamingo_eval.storage.part_files import HubFile

FILE = "checkpoint.pt"
VISION = VisionSpec(model="ViT-L-14", pretrained="openai")


@dataclass(frozen=True)
class Released:
    """A row of ``released.toml``.

    Attributes:
        name: its hub repository.
        aliases: its other names.
        status: ``released`` or ``deprecated``.
        language_model: repository of its language model; without a slash, a folder that the user must provide.
        cross_attn_every_n_layers: n; every n-th decoder layer has cross-attention.
        size: size of ``checkpoint.pt``.
        block_parameters: number of parameters in one gated cross-attention block.
        license: its licence, in short.
        published: where its published numbers are.
        trained_parameters: number of parameters in the full trained part; None if that is not published.
    """

    name: str
    aliases: tuple[str, ...]
    status: str
    language_model: str
    cross_attn_every_n_layers: int
    size: str
    block_parameters: int
    license: str
    published: str
    trained_parameters: int | None = None

    def about(self) -> str:
        """A one-line description for users."""
        return (
            f"{self.status}; {VISION.model}/{VISION.pretrained} and {self.language_model}, cross-attention every "
            f"{self.cross_attn_every_n_layers}; {FILE} {self.size}; licence: {self.license}; "
            f"published numbers: {self.published}; also called {', '.join(self.aliases)}"
        )

    def spec(self, weights: Path | None) -> FlamingoSpec:
        """Its parts, on the hub or in a folder of copies.

        Raises:
            CheckpointError: a part is not in the folder, or a part needs a folder and none is given.
        """
        checkpoint: Path | HubFile = HubFile(self.name, FILE)
        language: str | Path = self.language_model
        vision = VISION
        if weights is not None:
            checkpoint = _copy_of(weights, self.name, FILE) / FILE
            language = _copy_of(weights, self.language_model, "config.json")
            for file in (weights / f"{VISION.model}{ending}" for ending in (".safetensors", ".bin", ".pt")):
                if is_file(file):
                    vision = VisionSpec(VISION.model, file, quick_gelu=True)
                    break
        elif "/" not in self.language_model:
            raise CheckpointError(
                f"{self.name} needs your own copy of {self.language_model}, which its checkpoint does not contain and "
                f"no hub may give away: --weights DIR, with DIR/{self.language_model}/config.json and so on in it"
            )
        return FlamingoSpec(
            name=self.name,
            checkpoint=checkpoint,
            cross_attn_every_n_layers=self.cross_attn_every_n_layers,
            vision=vision,
            language=LanguageSpec(model=language, tokenizer=language),
            block_parameters=self.block_parameters,
            trained_parameters=self.trained_parameters,
        )


def _copy_of(weights: Path, repo: str, file: str) -> Path:
    """The folder of a repository's copy, by its full name, its last part, or its place in a copy of the hub's cache."""
    last = repo.split("/")[-1]
    cached = sorted((weights / f"models--{repo.replace('/', '--')}" / "snapshots").glob("*"))
    tried = [weights / repo, weights / last, *cached]
    if file == FILE:
        tried.append(weights)
    for folder in tried:
        if is_file(folder / file):
            return folder
    raise CheckpointError(f"--weights {weights}: there is no {last}/{file} (a copy of {repo})")


@cache
def released() -> Mapping[str, Released]:
    """Name -> checkpoint, in the order of the file."""
    table = tomllib.loads(Path(__file__).with_name("released.toml").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = table["checkpoint"]
    return {row["name"]: Released(**{**row, "aliases": tuple(row["aliases"])}) for row in rows}


def find_released(name: str) -> Released | None:
    """A checkpoint by its name, with or without ``openflamingo/``, or by an alias."""
    for one in released().values():
        if name in (one.name, one.name.removeprefix("openflamingo/"), *one.aliases):
            return one
    return None
