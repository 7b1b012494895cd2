"""Any image-text-to-text model of transformers; nothing heavy is imported before a model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.core.paths import cache_folder
from flamingo_eval.core.progress import warn
from flamingo_eval.core.prompting import Chat, Interleaved, mark_among
from flamingo_eval.core.protocols import Capabilities, ModelInfo, ModelSource, Renderer
from flamingo_eval.core.run_settings import DEMO_CHAT
from flamingo_eval.models.transformers_vlm.checkpoint import PREFIX, Files, Place, weights, weights_of
from flamingo_eval.models.transformers_vlm.families import family_of
from flamingo_eval.models.transformers_vlm.foreign import Switches
from flamingo_eval.storage.part_files import DigestedFiles

if TYPE_CHECKING:
    from flamingo_eval.models.transformers_vlm.adapter import VlmModel
    from flamingo_eval.models.transformers_vlm.counting import PromptCounter
    from flamingo_eval.models.transformers_vlm.loading import Presentation
    from flamingo_eval.models.transformers_vlm.plain import PlainVlmModel

DEMO_BUNDLE = Path(__file__).parents[2] / "demo" / "bundle_chat"
"""Trained by :mod:`flamingo_eval.demo.recipe.chat.train`."""

FEATURES_FORMAT = 1
"""Increased by one when a change in this package's code changes the cached image features."""

_MEMORY = 8 << 30


@dataclass(frozen=True)
class Options:
    """How a model is shown prompts, and how it is run.

    Attributes:
        rendering: ``chat``, ``interleaved``, or ``auto``: chat if there is a template, else interleaved.
        system: a system message.
        template_arg: switches of the template.
        image_tokens: the most tokens that an image may have.
        max_pixels: the most pixels that an image may have.
        device_map: how it is spread over several cards.
        plain: answer without any shortcut.
        feature_cache: bytes of memory for what is computed once per image.
        keep: whether that is kept on the disk, too.
    """

    rendering: str = "auto"
    system: str | None = None
    template_arg: Switches = field(default_factory=dict)
    image_tokens: int | None = None
    max_pixels: int | None = None
    device_map: str | None = None
    plain: bool = False
    feature_cache: int | None = None
    keep: bool = True

    def renderer(self, template: str | None, special: tuple[str, ...], name: str) -> Renderer:
        """How prompts are written. Raises UserError for unsuitable options, such as ``chat`` without a template."""
        kind = self.rendering if self.rendering != "auto" else "interleaved" if template is None else "chat"
        if kind == "chat":
            if template is None:
                raise UserError(
                    f"--rendering chat: {name} has no chat template; a base model is shown --rendering interleaved"
                )
            mark = mark_among([self.system or ""], special)
            if mark is not None:
                raise UserError(f"--system holds {mark}, which has a meaning of its own to {name}")
            return Chat(self.system, special)
        for option, value in (("--system", self.system), ("--template-arg", self.template_arg)):
            if value:
                raise UserError(f"{option} is for conversations, and {name} is shown prompts as one text ({kind})")
        return Interleaved(special=special)

    def presentation(self, renderer: Renderer, template: str | None) -> Presentation:
        """These options in the form that the processor needs."""
        from flamingo_eval.models.transformers_vlm.loading import Presentation

        return Presentation(renderer, template, self.template_arg, self.image_tokens, self.max_pixels)

    def notes(self, renderer: Renderer, template: str | None, name: str) -> tuple[str, ...]:
        """What a reader of the results should know. Raises CheckpointError."""
        from flamingo_eval.models.transformers_vlm.template import notes_on

        return notes_on(template, self.template_arg, name) if isinstance(renderer, Chat) and template else ()


@dataclass(frozen=True)
class VlmSource:
    """A model that can be loaded.

    Attributes:
        place: where its files are.
        options: how it is shown prompts, and how it is run.
    """

    place: Place
    options: Options = Options()

    @cached_property
    def files(self) -> Files:
        """The checkpoint's files; of a repository, all but the weights. Raises CheckpointError."""
        files = Files.of(self.place)
        files.check()
        return files

    @cached_property
    def _digested(self) -> DigestedFiles:
        return self.files.digests()

    @cached_property
    def renderer(self) -> Renderer:
        """How it reads prompts. Raises UserError, CheckpointError."""
        return self.options.renderer(self.files.template, self.files.special, self._name)

    @property
    def _name(self) -> str:
        return self.place.checkpoint

    @property
    def capabilities(self) -> Capabilities:
        """Determined by its architecture."""
        family = family_of(self.files.architecture)
        return Capabilities(images=family.images, images_reason=family.reason)

    def info(self) -> ModelInfo:
        """Name and digest: of a folder's file contents, or of a repository's commit. Raises CheckpointError."""
        notes = self.options.notes(self.renderer, self.files.template, self.place.name)
        if self.files.commit is not None:
            commit = f"{self.place.repo}@{self.files.commit}"
            return ModelInfo(self._name, digest(["hf", commit]), {"repository": commit}, notes, f"{PREFIX}{commit}")
        found = self._digested.digests
        named = {str(path.relative_to(self.files.folder)): one for path, one in found.items()}
        parts = {str(path): one for path, one in found.items()}
        found_as = "" if self.place.embedded else f"{PREFIX}{self.files.folder.absolute()}"
        return ModelInfo(self._name, digest(["hf", named]), parts, notes, found_as)

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """Resolves ``auto``: CUDA if there is one; the precision of the stored weights.

        The precision is float32 on a CPU, and for bfloat16 weights unless a CUDA card computes in bfloat16.

        Raises:
            UserError: unknown precision, or a device this machine doesn't have.
            CheckpointError: transformers does not know the architecture.
        """
        from flamingo_eval.devices import pick_device, pick_precision
        from flamingo_eval.models.transformers_vlm.loading import check_architecture

        check_architecture(self.files.config, self.place.name)
        device = pick_device(device)
        chosen, own = pick_precision(device, precision), self.files.precision
        lacking = own == "bf16" and chosen == "fp32"  # not all cards have bfloat16
        if precision == "auto" and device != "cpu" and not lacking:
            chosen = own
        return device, chosen

    def load(self, device: str, precision: str) -> VlmModel | PlainVlmModel:
        """Builds the model and loads its weights, which are downloaded if necessary. Raises CheckpointError."""
        from flamingo_eval.models.transformers_vlm import loading
        from flamingo_eval.models.transformers_vlm.live import LiveVlm

        folder, info = self._with_weights(), self.info()
        processor = loading.load_processor(folder, self.place.name)
        readers = self._readers(processor)
        if self.place.folder is not None:
            self._digested.check()
        network = loading.load_network(
            folder, self.place.name, device=device, precision=precision, device_map=self.options.device_map
        )
        if self.place.folder is not None:
            self._digested.check()
        cache = feature_cache(self.options, info.digest, device, precision)
        model = loading.build(
            network, readers, processor.tokenizer, precision=precision, cache=cache, plain=self.options.plain,
            name=self.place.name,
        )  # fmt: skip
        model.source = LiveVlm(network, processor, self._name, self.options, precision)
        if model.why_plain and not self.options.plain:
            warn(f"{self._name} is answered without shortcuts, which takes longer: {model.why_plain}")
        return model

    def _readers(self, processor: Any) -> Any:
        from flamingo_eval.models.transformers_vlm.loading import make_readers

        how = self.options.presentation(self.renderer, self.files.template)
        return make_readers(processor, self.files.architecture, how, self.place.name)

    def _with_weights(self) -> Path:
        """The folder with the weights, which are downloaded if necessary. Raises CheckpointError."""
        if self.files.commit is None:
            return self.files.folder
        from flamingo_eval.storage.hub import download, listing

        try:
            weights(self.files.folder, self.files.config)
        except CheckpointError:  # not all of them are in the cache
            try:
                wanted = weights_of(listing(self.place.repo, self.files.commit), self.files)
            except CheckpointError as error:
                raise CheckpointError(f"the weights of {self._name} are not all in the cache: {error}") from error
            return download(self.place.repo, self.files.commit, wanted)
        return self.files.folder

    def token_counter(self) -> PromptCounter:
        """Returns a counter of prompts' tokens, which needs no weights. Raises CheckpointError."""
        from flamingo_eval.models.transformers_vlm import loading
        from flamingo_eval.models.transformers_vlm.counting import PromptCounter

        loading.check_architecture(self.files.config, self.place.name)
        readers = self._readers(loading.load_processor(self.files.folder, self.place.name))
        if readers.apart is None:
            raise CheckpointError(f"tokens can't be counted for {self._name}: {readers.why_not}")
        return PromptCounter(readers.apart, loading.positions_of(self.files.folder, self.place.name))


def feature_cache(options: Options, model: str, device: str, precision: str) -> Any:
    """The cache of image features; its folder is named by all that determines them except the image."""
    from flamingo_eval.models.transformers_vlm.features import FeatureCache
    from flamingo_eval.storage.blobs import BlobStore

    packages = ("torch", "transformers", "torchvision", "pillow")
    key = digest([
        FEATURES_FORMAT, model, precision, device.partition(":")[0], options.image_tokens, options.max_pixels,
        [metadata.version(package) for package in packages],
    ])  # fmt: skip
    disk = None
    if options.keep and not options.plain:
        try:
            disk = BlobStore(cache_folder() / "features-vlm" / key)
        except UserError as error:
            warn(f"encoded images are not kept on the disk: {error}")
    return FeatureCache(_MEMORY if options.feature_cache is None else options.feature_cache, disk)


class VlmFamily:
    """The chat demo; folders and repositories, named ``hf:...``; and models of transformers that are in memory."""

    options = frozenset((*Options.__dataclass_fields__, "processor"))

    def known(self) -> Mapping[str, str]:
        """Names and a line about each."""
        return {DEMO_CHAT: "the embedded tiny chat model of transformers; for trying things out"}

    def renderers(self) -> Sequence[Renderer]:
        """No renderers of its own: its models use those that all models share."""
        return ()

    def find(self, checkpoint: str, options: Mapping[str, Any]) -> VlmSource | None:
        """The source for the demo or a name that begins with ``hf:``; else None. Raises CheckpointError."""
        chosen = {name: value for name, value in options.items() if name != "processor"}
        if checkpoint == DEMO_CHAT:
            return VlmSource(Place(DEMO_CHAT, DEMO_BUNDLE, embedded=True), Options(**chosen))
        if not checkpoint.startswith(PREFIX):
            return None
        return VlmSource(Place.of(checkpoint.removeprefix(PREFIX)), Options(**chosen))

    def adopt(self, model: Any, name: str, options: Mapping[str, Any]) -> ModelSource | None:
        """The source for a model of transformers with its processor, or for a model that this package has loaded."""
        if "torch" not in sys.modules or "transformers" not in sys.modules:  # then the model can be neither
            return None
        from flamingo_eval.models.transformers_vlm.live import adopted

        processor = options.get("processor")
        chosen = {key: value for key, value in options.items() if key in Options.__dataclass_fields__}
        return adopted(model, processor, name, chosen)


MODEL = VlmFamily()
