"""OpenFlamingo's architecture. Importing this package does not import torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.core.paths import cache_folder, exists, is_file, is_folder, user_path
from flamingo_eval.core.progress import warn
from flamingo_eval.core.protocols import Capabilities, Model, ModelInfo, ModelSource
from flamingo_eval.models.flamingo.released import find_released, released
from flamingo_eval.models.flamingo.rendering import RENDERER, FlamingoRenderer
from flamingo_eval.models.flamingo.spec import FlamingoSpec, VisionSpec, read_spec
from flamingo_eval.storage.part_files import DigestedFiles, HubFile, read_object

if TYPE_CHECKING:
    from flamingo_eval.models.flamingo.adapter import FlamingoModel
    from flamingo_eval.models.flamingo.counting import PromptCounter
    from flamingo_eval.models.flamingo.encoder import ClipEncoder

DEMO_SPEC = Path(__file__).parents[2] / "demo" / "bundle" / "model.toml"
DEMO = "demo"
DEFAULT_PRETRAINED = "openai"


@dataclass(frozen=True)
class FlamingoSource:
    """A Flamingo that can be loaded.

    Attributes:
        spec: the checkpoint's parts.
        plain: use the plain path, which takes no shortcuts and is slow; for checking the fast paths.
        feature_cache: bytes of memory for latents, which are computed once per image; None for the default.
        keep: whether latents are also kept on disk, for later runs.
    """

    spec: FlamingoSpec
    plain: bool = False
    feature_cache: int | None = None
    keep: bool = True
    renderer = RENDERER
    capabilities = Capabilities()

    @cached_property
    def files(self) -> DigestedFiles:
        """The model's local files, digested once: the loaded model must be made from these bytes."""
        return DigestedFiles.of(self.spec.local_files(), self.spec.local_folders())

    def info(self) -> ModelInfo:
        """Name and digest: local files count by content, hub files by their commit, open_clip weights by their tag.

        Raises:
            CheckpointError: a hub file can't be fetched.
        """
        parts: dict[str, Any] = {str(path): digest for path, digest in self.files.digests.items()}
        for name in self.spec.remote_parts():
            parts[name] = _hub_commit(name) if name.startswith("hub:") else name
        settings = [
            self.spec.vision.model,
            bool(self.spec.vision.quick_gelu),
            self.spec.cross_attn_every_n_layers,
            self.spec.head_width,
        ]
        identity = digest([settings, list(parts.values())])
        return ModelInfo(self.spec.name, identity, _with_activation(parts, self.spec.vision), tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        """Notes for readers of this model's scores."""
        yield from _activation_notes(self.spec.vision)
        folder = self.spec.language.model
        if not isinstance(folder, Path) or not is_file(folder / "config.json"):
            return
        config = read_object(folder / "config.json")
        if config.get("model_type") == "llama" and not config.get("tie_word_embeddings", False):
            yield (
                "the output layer's rows of the added tokens are zero: LLaMA's output layer is not in the checkpoint "
                "(the reference starts these rows at random, anew each time)"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the checkpoint's file, or its name, to errors that name none of the model's files."""
        language = self.spec.language
        files = [
            *self.files.digests,
            *(part for part in (language.model, language.tokenizer) if isinstance(part, Path)),
        ]
        try:
            yield
        except CheckpointError as error:
            if any(str(file) in str(error) for file in files):
                raise
            where = self.spec.checkpoint if isinstance(self.spec.checkpoint, Path) else self.spec.name
            raise CheckpointError(f"{where}: {error}") from error

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """Resolves ``auto``: CUDA if there is one; amp_bf16 on a CUDA card that computes in bfloat16, else float32.

        Raises:
            UserError: unknown precision, or a device this machine doesn't have.
        """
        from flamingo_eval.devices import pick_device, pick_precision

        device = pick_device(device)
        return device, pick_precision(device, precision)

    def load(self, device: str, precision: str) -> FlamingoModel:
        """Builds the model and loads its weights. Raises CheckpointError."""
        from flamingo_eval.models.flamingo.adapter import Caching, FlamingoModel
        from flamingo_eval.models.flamingo.loading import load_model
        from flamingo_eval.models.flamingo.plain import PlainFlamingoModel

        memory = Caching.memory if self.feature_cache is None else self.feature_cache
        folder = _latents_folder() if self.keep else None
        caching = Caching(memory, folder, _latents_digest(self.info().digest, precision, device))
        kind = PlainFlamingoModel if self.plain else FlamingoModel
        self.files.check()
        with self._named():
            model = load_model(self.spec, device=device, precision=precision, kind=kind, caching=caching)
        self.files.check()
        return model

    def token_counter(self) -> PromptCounter:
        """Returns a counter of prompt tokens that needs no weights. Raises CheckpointError."""
        from flamingo_eval.models.flamingo.counting import PromptCounter

        return PromptCounter(self.spec)


@dataclass(frozen=True)
class ClipSource:
    """A CLIP that can be loaded as an image encoder."""

    spec: VisionSpec

    @cached_property
    def files(self) -> DigestedFiles:
        """The encoder's local files, digested once."""
        return DigestedFiles.of(self.spec.local_files())

    def info(self) -> ModelInfo:
        """Name and digest: local files count by content, and weights that are named by a tag by that tag.

        The digest includes the versions of the libraries that make pixels and embeddings: another version can round
        differently.
        """
        parts: dict[str, Any] = {str(path): digest for path, digest in self.files.digests.items()}
        weights = self.spec.pretrained
        if isinstance(weights, str):
            parts["weights"] = f"open_clip:{self.spec.model}/{weights}"
        versions = {package: metadata.version(package) for package in ("open_clip_torch", "torchvision", "pillow")}
        identity = digest([self.spec.model, bool(self.spec.quick_gelu), list(parts.values()), versions])
        name = f"{self.spec.model}/{weights.name if isinstance(weights, Path) else weights}"
        parts = _with_activation(parts, self.spec)
        return ModelInfo(name, identity, {**parts, **versions}, tuple(_activation_notes(self.spec)))

    def load(self, device: str) -> ClipEncoder:
        """Loads the CLIP. Raises CheckpointError."""
        from flamingo_eval.models.flamingo.encoder import ClipEncoder

        self.files.check()
        encoder = ClipEncoder(self.spec, device)
        self.files.check()
        return encoder


def _with_activation(parts: dict[str, Any], vision: VisionSpec) -> dict[str, Any]:
    """Returns ``parts``, with the activation where vision weights come from a file, which does not state it."""
    return {**parts, "activation": vision.activation} if vision.activation else parts


def _activation_notes(vision: VisionSpec) -> Iterator[str]:
    """A note on the activation that is used with vision weights from a file."""
    if vision.activation is not None:
        yield f"vision weights from a file ({Path(vision.pretrained).name}), used with {vision.activation}"


def _latents_folder() -> Path | None:
    """The folder for latents; without a home folder, a warning and None, since latents only save time."""
    try:
        return cache_folder() / "latents"
    except UserError as error:
        warn(f"encoded images are not kept on the disk: {error}")
        return None


LATENTS_FORMAT = 2
"""Increased when a change in this package's code changes latents."""


def _latents_digest(model: str, precision: str, device: str) -> str:
    """Digest of all that determines latents, except the image. Library versions count: they may round differently."""
    versions = [metadata.version(package) for package in ("torch", "open_clip_torch", "torchvision", "pillow")]
    return digest([LATENTS_FORMAT, model, precision, device.partition(":")[0], versions])


def _hub_commit(name: str) -> str:
    """Repository and commit of a hub part; downloads the file (or the model's configuration) if needed."""
    from flamingo_eval.storage.hub import fetch

    repo_and_file = name.removeprefix("hub:").split("/", 2)
    repo = "/".join(repo_and_file[:2])
    path = fetch(HubFile(repo, repo_and_file[2] if len(repo_and_file) == 3 else "config.json"))
    return f"{repo}@{path.parent.name}"


class FlamingoFamily:
    """The demo, the released checkpoints whose language host is supported, and TOML files."""

    options = frozenset(("weights", "plain", "feature_cache", "keep", "tokenizer", "transform"))

    def known(self) -> Mapping[str, str]:
        """Known names, with one line about each."""
        return {
            DEMO: "the embedded tiny Flamingo; for trying things out",
            **{name: one.about() for name, one in released().items()},
        }

    def aliases(self) -> Mapping[str, str]:
        """Short names of the released checkpoints -> their names."""
        return {alias: name for name, one in released().items() for alias in one.aliases}

    def renderers(self) -> tuple[FlamingoRenderer, ...]:
        """The one renderer of all Flamingo models."""
        return (RENDERER,)

    def find(self, checkpoint: str, options: Mapping[str, Any]) -> FlamingoSource | None:
        """Finds the demo, a released checkpoint by name or alias, or a TOML file; None for other names."""
        spec = self._spec(checkpoint, options.get("weights"))
        if spec is None:
            return None
        chosen = {name: options[name] for name in ("plain", "feature_cache", "keep") if name in options}
        return FlamingoSource(spec, **chosen)

    def _spec(self, checkpoint: str, weights: Path | None) -> FlamingoSpec | None:
        known = find_released(checkpoint)
        if known is not None:
            return known.spec(weights)
        if weights is not None and (checkpoint == DEMO or checkpoint.endswith(".toml")):
            raise UserError(f"--weights works only with the name of a released checkpoint, not with {checkpoint}")
        if checkpoint == DEMO:
            return read_spec(DEMO_SPEC)
        if checkpoint.endswith(".toml"):
            return read_spec(user_path(checkpoint, "--checkpoint"))
        path = user_path(checkpoint, "--checkpoint")
        if is_folder(path):
            raise CheckpointError(
                f"--checkpoint {checkpoint} is a folder; if it holds a model of transformers, write hf:{checkpoint}"
            )
        if exists(path):
            raise CheckpointError(
                f"--checkpoint {checkpoint}: give a TOML file that names this file and the models around it "
                "(docs/checkpoints.md)"
            )
        return None

    def adopt(self, model: Any, name: str, options: Mapping[str, Any]) -> ModelSource | None:
        """A source for a loaded Flamingo, or for a module in the released layout."""
        if "torch" not in sys.modules:  # without torch it can be neither
            return None
        from torch import nn

        from flamingo_eval.models.flamingo.adapter import FlamingoModel
        from flamingo_eval.models.flamingo.live import LiveSource

        if not isinstance(model, (nn.Module, FlamingoModel)) or (
            isinstance(model, nn.Module) and isinstance(model, Model)
        ):
            return None
        if hasattr(model, "generation_config") and not hasattr(model, "lang_encoder"):  # a transformers model
            return None
        return LiveSource(model, options.get("tokenizer"), options.get("transform"), name)


class ClipFamily:
    """The demo's CLIP, the CLIP of a checkpoint's TOML file, or an open_clip model by name."""

    takes_any_name = True

    def find(self, name: str, options: Mapping[str, Any]) -> ClipSource:
        """Finds a CLIP by name or TOML file.

        Raises:
            CheckpointError: the name, the TOML file or the choice of weights can't be used.
            UserError: an option does not fit the name or the weights.
        """
        pretrained, quick_gelu = options.get("pretrained"), options.get("quick_gelu")
        if name == DEMO or name.endswith(".toml"):
            if options:
                raise UserError(
                    f"{_flag('pretrained' if pretrained else 'quick_gelu')} works only with an open_clip name; {name} "
                    "names its own weights"
                )
            return ClipSource(read_spec(DEMO_SPEC if name == DEMO else user_path(name, _flag("model"))).vision)
        weights = DEFAULT_PRETRAINED if pretrained is None else pretrained
        file = user_path(weights, _flag("pretrained"))
        if quick_gelu is not None and not is_file(file):
            raise UserError(
                f"{_flag('quick_gelu')} works only with weights from a file; the tag {weights} already fixes the "
                "activation"
            )
        spec = VisionSpec(name, file if is_file(file) else weights, quick_gelu=quick_gelu)
        spec.check()
        return ClipSource(spec)


def _flag(name: str) -> str:
    """The command-line option for a setting of the encoder."""
    return f"--rices-{name.replace('_', '-')}"


MODEL = FlamingoFamily()
ENCODER = ClipFamily()
