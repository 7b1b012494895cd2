"""The parts of a checkpoint, read from a TOML file. This module imports nothing heavy.

The file names its parts by paths relative to itself, by open_clip tags or by hub names::

    name = "my-flamingo"
    checkpoint = "checkpoint.pt"          # the trained part, in the released layout
    cross_attn_every_n_layers = 2
    head_width = 64                       # optional; width of an attention head in resampler and cross-attention

    [vision]
    model = "ViT-L-14"                    # an open_clip model name
    pretrained = "openai"                 # an open_clip tag, or a file
    configs = "open_clip_configs"         # optional folder; only for models that open_clip does not know
    quick_gelu = false                    # only for weights from a file; needed if the model's name leaves it open

    [language]
    model = "togethercomputer/RedPajama-INCITE-Base-3B-v1"   # a hub name or a folder
    tokenizer = "tokenizer"               # optional; default: the language model's own
    decoder_layers = "model.layers"       # optional; for families that are not known: where the decoder layers are
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from flamingo_eval.core.errors import CheckpointError, DataError, UserError
from flamingo_eval.core.paths import exists, is_file, is_folder, user_path
from flamingo_eval.core.reading import read_toml
from flamingo_eval.core.schema import Record, typed
from flamingo_eval.storage.part_files import HubFile, model_files, read_object


@dataclass(frozen=True)
class VisionSpec:
    """An open_clip model and its weights: a tag that open_clip knows, or a file."""

    model: str
    pretrained: str | Path
    configs: Path | None = None
    quick_gelu: bool | None = None
    """Whether weights from a file were trained with QuickGELU; None if that is not stated."""

    @property
    def config_file(self) -> Path | None:
        """The open_clip configuration file of the model; None if ``configs`` and open_clip have none by its name."""
        folders = ([self.configs] if self.configs is not None else []) + [built_in_configs()]
        return next((file for folder in folders if is_file((file := folder / f"{self.model}.json"))), None)

    @property
    def activation(self) -> str | None:
        """The activation that weights from a file are used with; None for a tag, whose own configuration states it."""
        if not isinstance(self.pretrained, Path) or self.config_file is None:
            return None
        table = read_object(self.config_file)
        vision = table.get("vision_cfg")
        if isinstance(vision, dict) and "timm_model_name" in vision:
            return "the model's own"
        return "QuickGELU" if table.get("quick_gelu") or self.quick_gelu else "GELU"

    def check(self) -> None:
        """Refuses model names that would load weights of their own, and settings that leave the activation open.

        Raises:
            CheckpointError: the model is not the name of a configuration, or its configurations are not a folder; or
                weights come from a file, and the model's name leaves open which activation they need.

        open_clip has some models under two names, and weights of either load into both (its issues 771 and 915).
        """
        own = self.configs is not None and is_file(self.configs / f"{self.model}.json")
        if ":" in self.model or "/" in self.model:
            raise CheckpointError(f"vision model {self.model!r}: give the name of an open_clip model configuration")
        if self.configs is not None and not is_folder(self.configs):
            raise CheckpointError(f"vision.configs: {self.configs} is not a folder")
        both = is_file(built_in_configs() / f"{self.model}-quickgelu.json")
        if isinstance(self.pretrained, Path) and self.quick_gelu is None and both and not own:
            raise CheckpointError(
                f"{self.pretrained}: open_clip has {self.model} with GELU and, as {self.model}-quickgelu, with "
                "QuickGELU, and the file does not say which it was trained with. OpenAI's weights want QuickGELU, most "
                "of LAION's GELU. Say so: quick_gelu = true or false in [vision] of the TOML file; for RICES "
                "--rices-quick-gelu or --no-rices-quick-gelu"
            )

    def local_files(self) -> list[Path]:
        """The local files: weights and configuration."""
        files = [self.pretrained] if isinstance(self.pretrained, Path) else []
        own = self.configs / f"{self.model}.json" if self.configs is not None else None
        return files + ([own] if own is not None and is_file(own) else [])


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
        name: name of the checkpoint.
        checkpoint: file of the trained part.
        cross_attn_every_n_layers: n; cross-attention is before every n-th decoder layer.
        vision: vision model.
        language: language model and tokenizer.
        head_width: width of an attention head in resampler and cross-attention, 64 in all released models.
        block_parameters: number of parameters that one gated cross-attention block must have, if published.
        trained_parameters: number of parameters that the trained part must have, if published.
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
        """The local files that determine what the model answers, sorted within each part."""
        files = [self.checkpoint] if isinstance(self.checkpoint, Path) else []
        files += self.vision.local_files()
        for folder in self._language_folders():
            if isinstance(folder, Path):
                files += model_files(folder, weights=folder == self.language.model)
        return files

    def local_folders(self) -> list[Path]:
        """The local folders of language model and tokenizer, which some of these files were found in."""
        return [folder for folder in self._language_folders() if isinstance(folder, Path)]

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


def built_in_configs() -> Path:
    """The folder of open_clip's own model configurations, found without importing it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise CheckpointError("open_clip is not installed: pip install open_clip_torch")
    return Path(found.submodule_search_locations[0]) / "model_configs"


_Text = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=1)]


class _Vision(Record, frozen=True, kw_only=True):
    model: _Text
    pretrained: _Text
    configs: _Text | None = None
    quick_gelu: bool | None = None


class _Language(Record, frozen=True, kw_only=True):
    model: _Text
    tokenizer: _Text | None = None
    decoder_layers: _Text | None = None


class _File(Record, frozen=True, kw_only=True):
    name: _Text | None = None
    checkpoint: _Text
    cross_attn_every_n_layers: _Count
    head_width: _Count = 64
    vision: _Vision
    language: _Language


def read_spec(path: Path) -> FlamingoSpec:
    """Reads a checkpoint's TOML file.

    Raises:
        CheckpointError: the file is missing or malformed, a key is missing, unknown or of the wrong type, or a
            file it names is not there.
    """
    try:
        file = typed(read_toml(path), _File, str(path))
    except DataError as error:
        raise CheckpointError(f"{error}; a checkpoint is described by a TOML file (docs/checkpoints.md)") from error
    except UserError as error:
        raise CheckpointError(str(error)) from error
    try:
        return _spec_of(path, file)
    except CheckpointError:
        raise
    except UserError as error:  # a name that no file can have
        raise CheckpointError(f"{path}: {error}") from error


def _spec_of(path: Path, file: _File) -> FlamingoSpec:
    """Resolves the files and names in a checkpoint's TOML file. Raises CheckpointError, UserError."""
    folder, vision, language = path.parent, file.vision, file.language
    vision_spec = VisionSpec(
        model=vision.model,
        pretrained=_file_or_name(path, folder, vision.pretrained, "vision.pretrained"),
        configs=_existing(path, folder / vision.configs, "vision.configs") if vision.configs else None,
        quick_gelu=vision.quick_gelu,
    )
    try:
        vision_spec.check()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return FlamingoSpec(
        name=file.name or path.stem,
        checkpoint=_existing(path, folder / file.checkpoint, "checkpoint"),
        cross_attn_every_n_layers=file.cross_attn_every_n_layers,
        vision=vision_spec,
        language=LanguageSpec(
            model=_folder_or_hub_name(path, folder, language.model, "language.model"),
            tokenizer=_folder_or_hub_name(path, folder, language.tokenizer or language.model, "language.tokenizer"),
            decoder_layers=language.decoder_layers,
        ),
        head_width=file.head_width,
    )


def _existing(path: Path, target: Path, key: str) -> Path:
    if not exists(target):
        raise CheckpointError(f"{path}: {key} names {target.absolute()}, which does not exist")
    return target


def _looks_like_path(value: str) -> bool:
    return value.startswith((".", "/", "~")) or Path(value).suffix in {".pt", ".pth", ".bin", ".safetensors"}


def _file_or_name(path: Path, folder: Path, value: str, key: str) -> str | Path:
    target = folder / user_path(value, key)
    if is_file(target) or _looks_like_path(value):
        return _existing(path, target, key)
    return value


def _folder_or_hub_name(path: Path, folder: Path, value: str, key: str) -> str | Path:
    """The folder if it exists, else a hub name, which has exactly one slash and does not look like a path."""
    target = folder / user_path(value, key)
    if is_folder(target):
        return target
    if _looks_like_path(value) or value.count("/") != 1:
        raise CheckpointError(
            f"{path}: {key} = {value!r} is neither a folder ({target.absolute()}) nor a hub name like org/name"
        )
    return value
