"""What the engine expects of its plug-ins: loaders, selectors, models, encoders and metrics.

Each plug-in is one file that defines one fixed name (``LOADER``, ``SELECTOR``, ``MODEL``, ``ENCODER``, ``METRIC``).
What the engine expects of executors (``EXECUTOR``) is in :mod:`flamingo_eval.engine.executor`.
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
        train: the examples that demonstrations are drawn from, in the file's order.
        test: the examples that can be queried, in the file's order.
        files: the annotation files that were read.
        notes: what a user should know about the choice of files.
        names: class names to rank, where the data decides them.
        listing: whether the list of images that exist is part of the data, besides the content of ``files``.
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
    """The training examples that are most similar to the images of queries.

    Attributes:
        rows: image -> numbers of the training examples most similar to it, the most similar first.
        failed: image that can't be read -> why; its rows are empty.
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
        generator: NumPy generator to draw the pool with, in the state that the protocol requires.
        seed: seed of the trial.
        ensemble: largest number of orders of the demonstrations in which each query is asked.
        settings: all of the selector's settings, by name.
        nearest: for selectors that need it, the examples most similar to each query's image, at least ``count``.
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
    """Which encoder decides what is nearest to a query, and which training examples may be shown for it.

    Attributes:
        encoder: name of the image encoder.
        options: the encoder's settings; None for one that was not given.
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
        """Its settings."""

    def select(self, selection: Selection) -> list[list[list[int]]]:
        """For each query, and each order it is asked in, the numbers of its demonstrations in ``train``."""


class RetrievingSelector(Selector, Protocol):
    """A selector that uses the images' embeddings: :attr:`Selection.nearest` is set when ``select`` is called."""

    def retrieval(self, settings: Mapping[str, Any], demo: bool) -> Retrieval:
        """What decides which examples are nearest.

        Args:
            settings: all of its settings, by name.
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
    """The type of record that a benchmark's ``[scoring]`` must fit."""

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
        """Its name in a run's record."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Strings that divide a rendered prompt; a text of the data that contains one can't be shown."""

    def render(self, prompt: Prompt) -> Rendering:
        """The prompt as the model reads it."""

    def describe(self, rules: PromptRules) -> Mapping[str, Any]:
        """Everything about a benchmark's prompts that shows in their renderings, for the identity of a run."""


UNPINNED = "answers come from a server: not reproducible by us"
"""Note about the numbers of a model that only a server has."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without loading it.

    Attributes:
        name: the name people know it by.
        digest: digest of everything in it that determines its answers.
        parts: where its parts come from, for the run's record.
        notes: what a reader of the numbers should know.
        found_as: its name for ``--checkpoint`` that is valid in any folder; empty where the given name serves.
        server: what a server reports about a model that only it has; None if files determine the answers.
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
        images: largest number of images in a prompt; None for no limit.
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
    """A loaded model. :class:`ModelBase` provides methods that most need not write themselves."""

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Called with the prompts that will be prepared next, so that their images can be read early. Never raises."""

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> Any:
        """Reads images and tokens of one prompt. Images must be read through ``images``, so that every use of one has
        the same bytes. Raises QueryError if that can't be done.

        Called in a separate thread, while the batch before is being answered.
        """

    def answer(self, prepared: Sequence[Any], task: Task) -> Sequence[Answer | NoAnswer | Replied]:
        """Returns generated text, or log-likelihoods of class names, for each prepared prompt of a batch.

        A prompt whose numbers overflow gets a :class:`NoAnswer`; the others of its batch are answered.

        Raises DeviceMemoryError if the batch is too large, QueryError if an image of it has gone since it was prepared.
        """

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """Batch size for prompts like this one, if the user gives none."""

    def timings(self) -> Mapping[str, float]:
        """Time spent so far: section -> seconds, such as ``vision``, ``prefill`` and ``decode``.

        Time for ``images`` overlaps with the others: images are read while other prompts are being answered.
        """

    def close(self) -> None:
        """Releases memory and threads; the model is not used after this."""


class ModelBase:
    """Methods that a model need not write itself."""

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Prefetches nothing."""

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """Always 8."""
        return 8

    def timings(self) -> Mapping[str, float]:
        """Measures nothing."""
        return {}

    def close(self) -> None:
        """Releases nothing."""


class ModelSource(Protocol):
    """A model that can be loaded.

    It may also have ``token_counter()``, which returns a :class:`flamingo_eval.core.measuring.TokenCounter`, and
    ``settings``: the run settings, by name, that were fixed when the model was loaded. Its runs then have these.
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
        """Image embeddings (pooled and projected), (images, width) in float32, of any norm."""


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
                were trained with), as far as the user gave them.
        """


class ModelFamily(Protocol):
    """A kind of model (``MODEL``): knows checkpoints by name, and files that describe one.

    It may also have ``aliases()``: short names of its known checkpoints -> their names.
    """

    options: frozenset[str]
    """Names of the settings for it that :meth:`find` and :meth:`adopt` accept."""

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
