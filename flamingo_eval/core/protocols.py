"""What the engine expects of its plug-ins: loaders, selectors, models, encoders and metrics.

Each plug-in is one file with one fixed name in it (``LOADER``, ``SELECTOR``, ``MODEL``, ``ENCODER``, ``METRIC``);
what it expects of executors (``EXECUTOR``) stands in :mod:`flamingo_eval.engine.executor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from flamingo_eval.core.benchmark import DataRules, PromptRules
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Answer, Example, Id, NoAnswer, Prompt, Rendering, Replied, Score, Task
from flamingo_eval.core.settings import Setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DataSet:
    """The examples of one benchmark.

    Attributes:
        train: what demonstrations are drawn from, in the file's order.
        test: what can be queried, in the file's order.
        files: the annotation files that were read.
        notes: what a user should know about the choice of files.
        names: class names to rank, where the data decides them.
        listing: whether the data is also which images there are, and not only what ``files`` say.
    """

    train: Sequence[Example]
    test: Sequence[Example]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    listing: bool = False


@dataclass(frozen=True)
class References:
    """What answers are compared with.

    Attributes:
        by_id: query id -> what the metric compares with (captions, an Annotation, a label), in the order of the
            evaluator's own file; empty where the split has no public answers.
        files: the files they were read from.
        notes: what a reader of the numbers should know about them.
        names: the class names that answers are chosen from, where the data decides them.
    """

    by_id: Mapping[Id, Any]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class Loader(Protocol):
    """Reads a data set's files; images stay paths."""

    def examples(self, rules: DataRules, root: Path, split: str) -> DataSet:
        """Training and test examples. Raises DataError, naming file and record."""

    def references(self, rules: DataRules, root: Path, split: str) -> References:
        """References of the test examples. Raises DataError, naming file and record."""


@dataclass(frozen=True)
class Nearest:
    """What the images of queries are most similar to.

    Attributes:
        rows: image -> numbers of the training examples most similar to it, the most similar first.
        failed: image that can't be read -> why; it has no rows.
    """

    rows: Mapping[str, Sequence[int]]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Selection:
    """What a selector may use to pick the demonstrations of one trial.

    Attributes:
        train: all training examples.
        queries: the trial's queries in the order visited.
        count: demonstrations per query.
        pool_size: how many training examples random demonstrations are drawn from.
        pool: numbers of the pool's training examples, where they were drawn together with the queries.
        generator: NumPy generator to draw the pool from, in the state that the protocol has it in.
        seed: seed of the trial.
        ensemble: how many orders of the demonstrations each query is asked in, at most.
        settings: every one of the selector's settings, by name.
        nearest: what each query's image is most similar to, at least ``count`` of them, for selectors that need it.
    """

    train: Sequence[Example]
    queries: Sequence[Example]
    count: int
    pool_size: int
    pool: Sequence[int] | None
    generator: np.random.RandomState
    seed: int
    ensemble: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    nearest: Nearest | None = None


NOTHING, IMAGE_EMBEDDINGS = "nothing", "image embeddings"
"""What a selector may need besides the examples."""


@dataclass(frozen=True)
class Retrieval:
    """Whose embeddings decide what is nearest to a query, and which training examples may be shown for it.

    Attributes:
        encoder: name of the image encoder.
        options: settings of it; None for what nobody said.
        unique_images: show no image twice among a query's demonstrations.
        exclude_same_image: never show the query's own image.
    """

    encoder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unique_images: bool = False
    exclude_same_image: bool = False


class Selector(Protocol):
    """Picks the demonstrations of every query of a trial."""

    @property
    def about(self) -> str:
        """What it does, for help."""

    @property
    def needs(self) -> str:
        """``NOTHING``, or ``IMAGE_EMBEDDINGS``: then it is a :class:`RetrievingSelector`."""

    @property
    def settings(self) -> Sequence[Setting]:
        """What it can be told."""

    def select(self, selection: Selection) -> list[list[list[int]]]:
        """For each query, and each order it is asked in, the numbers of its demonstrations in ``train``."""


class RetrievingSelector(Selector, Protocol):
    """One that uses the images' embeddings: :attr:`Selection.nearest` is there when it selects."""

    def retrieval(self, settings: Mapping[str, Any], demo: bool) -> Retrieval:
        """What decides which examples are nearest.

        Args:
            settings: every one of its settings.
            demo: whether the data is the demo's.
        """


class Metric(Protocol):
    """Scores answers; never needs a model."""

    title: str
    """Name and unit, such as ``CIDEr x 100``."""

    value_key: str
    """What a predictions file calls an answer: ``caption``, ``answer`` or ``score``."""

    value_kinds: tuple[type, ...]
    """Types that such a value may have."""

    rules: type[Any]
    """The record that a benchmark's ``[scoring]`` must be."""

    def check(self, trials: Sequence[Mapping[Id, Any]]) -> Sequence[str]:
        """Called before any query is answered, with the references of each trial's queries, where they are public.

        Returns what a reader of the score should know, such as which queries can only score 0.

        Raises UserError when the metric can't be computed here, DataError when it is undefined for these references.
        """

    def compute(
        self, trials: Sequence[Mapping[Id, Any]], references: Mapping[Id, Any], rules: Mapping[str, Any]
    ) -> list[Score]:
        """One score per trial (query id -> answer) by the benchmark's scoring rules; shared work is done once."""


@runtime_checkable
class Renderer(Protocol):
    """Turns prompts into what a kind of model reads; pure, and without loading a model."""

    @property
    def name(self) -> str:
        """What a run's record calls it."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What divides a rendered prompt: a text of the data that holds one can't be shown."""

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as the model reads it."""

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """Everything about a benchmark's prompts that shows in their renderings, for the identity of a run."""


UNPINNED = "answers come from a server: not reproducible by us"
"""What is said of numbers by a model that only a server has."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself without being loaded.

    Attributes:
        name: the name people know it by.
        digest: digest of everything in it that determines its answers.
        parts: where its parts come from, for the record.
        notes: what a reader of the numbers should know.
        found_as: what ``--checkpoint`` calls it, from any folder; empty where that is what it was called.
        server: what a server says of a model that only it has; None for one whose files determine its answers.
    """

    name: str
    digest: str
    parts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    found_as: str = ""
    server: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a model can be asked; checked before anything is planned.

    Attributes:
        beams: whether it generates by beam search, and not only greedily.
        ranking: whether it gives log-likelihoods of class names.
        images: images that a prompt may have, at most; None for any number.
        reproducible: whether the same prompt has the same answer every time.
        images_reason: why a prompt may not have more images.
    """

    beams: bool = True
    ranking: bool = True
    images: int | None = None
    reproducible: bool = True
    images_reason: str = ""


@runtime_checkable
class Model(Protocol):
    """A loaded model. :class:`ModelBase` has what most need not write themselves."""

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Told which prompts will be prepared next, so that their images can be read at once; raises nothing."""

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> Any:
        """Reads images and tokens of one prompt, whose images are among ``images``: they must be read through it, so
        that all of it uses the same bytes. Raises QueryError if that can't be done.

        Called in a thread of its own, while the batch before is being answered.
        """

    def answer(self, prepared: Sequence[Any], task: Task) -> Sequence[Answer | NoAnswer | Replied]:
        """For each prepared prompt of a batch generated text, or log-likelihoods of class names.

        A prompt whose numbers overflow has no answer; the others of its batch do.

        Raises DeviceMemoryError if the batch is too large, QueryError if an image of it has gone since it was prepared.
        """

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """Batch size for prompts like this one, if the user names none."""

    def timings(self) -> Mapping[str, float]:
        """Where its time has gone so far: section -> seconds, such as ``vision``, ``prefill`` and ``decode``.

        ``images`` are read while others are being answered.
        """

    def close(self) -> None:
        """Lets go of memory and threads; it is not asked anything any more."""


class ModelBase:
    """What a model need not say for itself."""

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Prefetches nothing."""

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """Eight."""
        return 8

    def timings(self) -> Mapping[str, float]:
        """Nothing is measured."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class ModelSource(Protocol):
    """A model that can be loaded.

    It may have more: ``token_counter()``, which gives a :class:`flamingo_eval.core.measuring.TokenCounter`, and
    ``settings``, those of a run that a model has since it was loaded, by name; they are part of what its runs are.
    """

    def info(self) -> ModelInfo:
        """Name and digest, without importing torch. Raises CheckpointError."""

    @property
    def renderer(self) -> Renderer:
        """How it reads prompts."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can be asked."""

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """What ``auto`` stands for on this machine: (device, precision). Raises UserError for what it doesn't have."""

    def load(self, device: str, precision: str) -> Model:
        """Loads the model on a resolved device, in a resolved precision. Raises CheckpointError."""


class ImageEncoder(Protocol):
    """A loaded image encoder, for retrieval."""

    def prepare(self, image: str, rgb: bool, images: Images) -> Any:
        """Reads one image, by its path among ``images``; ``rgb`` converts it before the transform.

        Raises QueryError if that can't be done.

        Called from several threads at once.
        """

    def encode(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """Image embeddings (pooled and projected), (images, width) in float32, of any length."""


class EncoderSource(Protocol):
    """An image encoder that can be loaded."""

    def info(self) -> ModelInfo:
        """Name and digest of everything that determines its embeddings, without importing torch."""

    def load(self, device: str) -> ImageEncoder:
        """Loads the encoder. Raises CheckpointError."""


class EncoderFamily(Protocol):
    """A kind of image encoder (``ENCODER``)."""

    def find(self, name: str, options: Mapping[str, Any]) -> EncoderSource | None:
        """The encoder that a name or file stands for, or None if that is not of this family.

        Args:
            name: what the user named.
            options: ``pretrained`` (name or file of the weights), ``quick_gelu`` (which activation weights from a file
                were trained with), as far as the user said so.
        """


class ModelFamily(Protocol):
    """A kind of model (``MODEL``): knows checkpoints by name, and files that describe one.

    It may have ``aliases()``, too: short names of its known checkpoints -> their names.
    """

    options: frozenset[str]
    """Names of the settings that :meth:`find` and :meth:`adopt` take for it alone."""

    def known(self) -> Mapping[str, str]:
        """Names of its known checkpoints -> one line about each."""

    def renderers(self) -> Sequence[Renderer]:
        """How its models read prompts, so that a run can be read without its checkpoint."""

    def find(self, checkpoint: str, options: Mapping[str, Any]) -> ModelSource | None:
        """The model a name or file stands for, or None if that is not of this family. Raises CheckpointError.

        Args:
            checkpoint: what the user named.
            options: settings for it, by name.
        """

    def adopt(self, model: Any, name: str, options: Mapping[str, Any]) -> ModelSource | None:
        """A model that is in memory already, or None if it is not of this family."""
