"""What a checkpoint is made of, read from a TOML file; nothing heavy is imported here.

The file names its parts by paths relative to itself, by open_clip tags or by hub names::

    name = "my-flamingo"
    checkpoint = "checkpoint.pt"          # the trained part, in the released layout
    cross_attn_every_n_layers = 2
    head_width = 64                       # optional; width of an attention head in resampler and cross-attention

    [vision]
    model = "ViT-L-14"                    # an open_clip model name
    pretrained = "openai"                 # an open_clip tag, or a file
    configs = "open_clip_configs"         # optional folder; only for models that open_clip does not know
    quick_gelu = false                    # optional; for weights from a file whose model name does not say it

    [language]
    model = "togethercomputer/RedPajama-INCITE-Base-3B-v1"   # a hub name or a folder
    tokenizer = "tokenizer"               # optional; default: the language model's own
    decoder_layers = "model.layers"       # optional; for families that are not known: where the decoder layers are
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_eval.errors import CheckpointError


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository, downloaded when it is first needed."""

    repo: str
    filename: str


@dataclass(frozen=True)
class VisionSpec:
    """An open_clip model and its weights: a tag that open_clip knows, or a file."""

    model: str
    pretrained: str | Path
    configs: Path | None = None
    quick_gelu: bool = False

    def local_files(self) -> list[Path]:
        """Its files on this disk: weights and configuration."""
        files = [self.pretrained] if isinstance(self.pretrained, Path) else []
        return files + (sorted(self.configs.rglob(f"{self.model}.json")) if self.configs is not None else [])


@dataclass(frozen=True)
class LanguageSpec:
    """A Hugging Face causal language model and its tokenizer: hub names or folders."""

    model: str | Path
    tokenizer: str | Path
    decoder_layers: str | None = None


@dataclass(frozen=True)
class FlamingoSpec:
    """Everything needed to build a Flamingo.

    Attributes:
        head_width: of resampler and cross-attention, 64 in all released models.
        block_parameters: how many one gated cross-attention block must have, where that is published.
        trained_parameters: how many the trained part must have, where that is published.
    """

    name: str
    checkpoint: Path | HubFile
    cross_attn_every_n_layers: int
    vision: VisionSpec
    language: LanguageSpec
    head_width: int = 64
    block_parameters: int | None = None
    trained_parameters: int | None = None

    def local_files(self) -> list[Path]:
        """The files on this disk that determine what the model answers, sorted within each part."""
        files = [self.checkpoint] if isinstance(self.checkpoint, Path) else []
        files += self.vision.local_files()
        for folder in self._language_folders():
            if isinstance(folder, Path):
                files += sorted(f for f in folder.iterdir() if f.suffix in _MODEL_FILES and not f.name.startswith("."))
        return files

    def _language_folders(self) -> list[str | Path]:
        return [*dict.fromkeys((self.language.model, self.language.tokenizer))]

    def remote_parts(self) -> list[str]:
        """The parts named by hub repository or open_clip tag, as text that identifies them."""
        parts: list[str] = []
        if isinstance(self.checkpoint, HubFile):
            parts.append(f"hub:{self.checkpoint.repo}/{self.checkpoint.filename}")
        if isinstance(self.vision.pretrained, str):
            parts.append(f"open_clip:{self.vision.model}/{self.vision.pretrained}")
        parts += [f"hub:{name}" for name in self._language_folders() if isinstance(name, str)]
        return parts


_MODEL_FILES = {".json", ".safetensors", ".bin", ".model", ".txt"}
_KEYS: dict[str, dict[str, type]] = {
    "": {"name": str, "checkpoint": str, "cross_attn_every_n_layers": int, "head_width": int},
    "vision": {"model": str, "pretrained": str, "configs": str, "quick_gelu": bool},
    "language": {"model": str, "tokenizer": str, "decoder_layers": str},
}
_REQUIRED = {"": ("checkpoint", "cross_attn_every_n_layers"), "vision": ("model", "pretrained"), "language": ("model",)}


def read_spec(path: Path) -> FlamingoSpec:
    """Reads a checkpoint's TOML file.

    Raises:
        CheckpointError: the file is missing or malformed, a key is missing, unknown or of the wrong type, or a
            file it names is not there.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"can't read checkpoint file {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a TOML file that describes a checkpoint: {error}") from error
    top = {key: value for key, value in table.items() if not isinstance(value, dict)}
    vision, language = _section(path, table, "vision"), _section(path, table, "language")
    _check(path, "", top, extra_sections=set(table) - set(top) - {"vision", "language"})
    folder = path.parent
    pretrained = vision["pretrained"]
    return FlamingoSpec(
        name=top.get("name", path.stem),
        checkpoint=_existing(path, folder / top["checkpoint"], "checkpoint"),
        cross_attn_every_n_layers=top["cross_attn_every_n_layers"],
        vision=VisionSpec(
            model=vision["model"],
            pretrained=_file_or_name(path, folder, pretrained, "vision.pretrained"),
            configs=_existing(path, folder / vision["configs"], "vision.configs") if "configs" in vision else None,
            quick_gelu=vision.get("quick_gelu", False),
        ),
        language=LanguageSpec(
            model=_folder_or_hub_name(path, folder, language["model"], "language.model"),
            tokenizer=_folder_or_hub_name(
                path, folder, language.get("tokenizer", language["model"]), "language.tokenizer"
            ),
            decoder_layers=language.get("decoder_layers"),
        ),
        head_width=top.get("head_width", 64),
    )


def _section(path: Path, table: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = table.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: the section [{name}] is missing")
    _check(path, name, section)
    return section


def _check(path: Path, section: str, table: Mapping[str, Any], extra_sections: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    known, where = _KEYS[section], f"[{section}]" if section else "the top level"
    unknown = sorted({*table.keys() - known.keys(), *extra_sections})
    if unknown:
        raise CheckpointError(f"{path}: unknown key {unknown[0]!r} in {where}; known keys: {', '.join(known)}")
    for key in _REQUIRED[section]:
        if key not in table:
            raise CheckpointError(f"{path}: {key!r} is missing in {where}")
    for key, value in table.items():
        if type(value) is not known[key]:
            raise CheckpointError(f"{path}: {key!r} in {where} must be of type {known[key].__name__}, not {value!r}")
    n = table.get("cross_attn_every_n_layers", 1)
    if n < 1 or table.get("head_width", 1) < 1:
        raise CheckpointError(f"{path}: cross_attn_every_n_layers and head_width must be at least 1")


def _existing(path: Path, target: Path, key: str) -> Path:
    if not target.exists():
        raise CheckpointError(f"{path}: {key} names {target}, which does not exist")
    return target


def _looks_like_path(value: str) -> bool:
    return value.startswith((".", "/", "~")) or Path(value).suffix in {".pt", ".pth", ".bin", ".safetensors"}


def _file_or_name(path: Path, folder: Path, value: str, key: str) -> str | Path:
    target = folder / Path(value).expanduser()
    if target.is_file() or _looks_like_path(value):
        return _existing(path, target, key)
    return value


def _folder_or_hub_name(path: Path, folder: Path, value: str, key: str) -> str | Path:
    """A folder if one is there; else a hub name, which holds exactly one slash and no dots at its start."""
    target = folder / Path(value).expanduser()
    if target.is_dir():
        return target
    if _looks_like_path(value) or value.count("/") != 1:
        raise CheckpointError(f"{path}: {key} = {value!r} is neither a folder ({target}) nor a hub name like org/name")
    return value
