"""What a benchmark is: one TOML file in ``benchmarks/``, read into a frozen record."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from flamingo_eval.core.benchmark_table import in_form, merge, override, with_turns
from flamingo_eval.core.errors import DataError, UserError
from flamingo_eval.core.layout import Download, Piece, read_layout
from flamingo_eval.core.paths import is_folder, resource_folder, user_path
from flamingo_eval.core.reading import inside_root, read_text, read_toml
from flamingo_eval.core.records import Decoding, Ranking, Task
from flamingo_eval.core.schema import Record, typed

DEFAULT_PROTOCOL = "openflamingo"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanRules:
    """How queries and demonstrations are drawn.

    Attributes:
        reseed_pool: seed NumPy with the trial's seed again before the pool of demonstrations is drawn.
        one_set: draw queries and pool together from one set, the pool first; queries are visited in the order drawn.
        num_samples: queries per trial if the user gives no number; None for all.
        seeds: seeds of the trials if the user gives none.
        selectors: names of the selectors that the protocol allows; empty for all.
    """

    reseed_pool: bool = False
    one_set: bool = False
    num_samples: Annotated[int, Meta(ge=1)] | None = None
    seeds: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**32 - 1)], ...], Meta(min_length=1)] = (42, 43, 44)
    selectors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRules:
    """How prompts are written; templates use an example's fields as ``{caption}`` or ``{caption|strip}``.

    Attributes:
        text: template of what follows the image, in demonstrations and in the query alike.
        answer: template of a demonstration's answer.
        separator: text after each demonstration.
        zero_shot_demonstrations: how many text-only demonstrations a zero-shot prompt has.
        zero_shot_keeps_images: still pass on the images of text-only demonstrations, so that the query's mark
            stands for the first of them (a defect of the reference's classification; only a renderer that follows the
            reference repeats it).
        rgb: convert images to RGB before the transform.
    """

    text: str
    answer: str
    separator: str = ""
    zero_shot_demonstrations: Annotated[int, Meta(ge=0, le=10_000)] = 2
    zero_shot_keeps_images: bool = False
    rgb: bool = False


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How an answer is extracted from the raw text.

    Attributes:
        blocks: (begin, end) marks around text that a model writes before its answer. The answer follows the last such
            block, and is empty if that block has no end.
        first_line: only the first line that is not blank.
        cut: groups of strings; for each group in turn, the text is cut before the first occurrence of any of them.
        remove: strings removed after that.
        trim_end: characters removed from the end, together with spaces.
        stem: stem the words as OK-VQA's answers are stemmed.
    """

    blocks: tuple[tuple[str, str], ...] = ()
    first_line: bool = False
    cut: tuple[tuple[str, ...], ...] = ()
    remove: tuple[str, ...] = ()
    trim_end: str = ""
    stem: bool = False


@dataclass(frozen=True, slots=True)
class DataRules:
    """Where the data is and how to read it.

    Attributes:
        loader: name of the file format's loader.
        folder: folder of the benchmark under the data root.
        train: name of the split that demonstrations come from.
        layout: what the folder must hold.
        options: the other settings of ``[data]``, mainly for the loader: file names, keys.
        where: file and section, for messages.
    """

    loader: str
    folder: str
    train: str
    layout: tuple[str | Piece, ...]
    options: Mapping[str, Any]
    where: str = "[data]"

    @property
    def renamed(self) -> tuple[str, ...]:
        """Folders in which images may be named by their number alone, as in COCO 2017. Raises UserError."""
        return tuple(typed(self.options.get("renamed", []), list[str], f"{self.where}: renamed"))

    def read(self, kind: type[T]) -> T:
        """The options as the loader's own record. Raises UserError."""
        own = {key: value for key, value in self.options.items() if key not in ("counts", "renamed")}
        return typed(own, kind, self.where)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Everything that defines a benchmark under one protocol.

    Attributes:
        name: its name, as files spell it.
        title: its name for people.
        split: the split that is queried.
        splits: those that can be queried.
        protocol: name of the protocol.
        metric: name of the metric.
        scoring: settings of the metric.
        alternatives: other protocols -> their ``scoring``, where the same answers can be scored by it too.
        data: where its files are and how they are read.
        plan: how queries and demonstrations are drawn.
        prompt: how prompts are written.
        task: generation and its decoding, or the class names to rank.
        answer: how an answer is extracted from the raw text.
        submission: how an evaluation server expects answers; None if there is none.
        sources: papers and code that these rules come from.
        download: where its data comes from; None if the file does not state it.
        file: the TOML file that all this comes from.
        chat: whether prompt, decoding and answer are those of a conversation.
    """

    name: str
    title: str
    split: str
    splits: tuple[str, ...]
    protocol: str
    metric: str
    scoring: Mapping[str, Any]
    alternatives: Mapping[str, Mapping[str, Any]]
    data: DataRules
    plan: PlanRules
    prompt: PromptRules
    task: Task
    answer: AnswerRules
    submission: Submission | None
    sources: tuple[str, ...]
    download: Download | None
    file: Path
    chat: bool = False


MORE_BENCHMARKS = "FLAMINGO_EVAL_BENCHMARKS"
"""Environment variable: a folder with further benchmarks, one TOML file each."""


@cache
def _files() -> dict[str, Path]:
    """Name -> TOML file of every benchmark: those that ship with the package, and the user's own."""
    folders = [resource_folder("benchmarks")]
    if os.environ.get(MORE_BENCHMARKS):
        own = user_path(os.environ[MORE_BENCHMARKS], MORE_BENCHMARKS)
        if not is_folder(own):
            raise UserError(f"{MORE_BENCHMARKS} names {own}, which is not a folder")
        folders.append(own)
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            if path.name == "flamingo-eval.toml":  # the configuration file, where both are in one folder
                continue
            if not path.stem.replace("_", "").isalnum() or path.stem.lower() != path.stem:
                raise UserError(f"{path}: a benchmark's file is named by small letters, digits and underscores")
            if path.stem in files:
                raise UserError(f"{path}: there is a benchmark {path.stem} already ({files[path.stem]})")
            files[path.stem] = path
    return files


def benchmark_names() -> tuple[str, ...]:
    """Names of all benchmarks, sorted."""
    return tuple(sorted(_files()))


def canonical_name(name: str) -> str:
    """The benchmark's name as files spell it; a dash is accepted in place of an underscore.

    Raises:
        UserError: unknown name; the message lists the known ones.
    """
    spelled, known = name.replace("-", "_"), benchmark_names()
    if spelled not in known:
        near = get_close_matches(spelled.lower(), known, 1)
        raise UserError(
            f"unknown benchmark {name!r}{f' (did you mean {near[0]}?)' if near else ''}; known benchmarks: "
            f"{', '.join(known)}"
        )
    return spelled


def load_benchmark(
    name: str,
    data_overrides: Mapping[str, Any] | None = None,
    *,
    protocol: str = DEFAULT_PROTOCOL,
    split: str | None = None,
    chat: bool = False,
) -> Benchmark:
    """A benchmark by name, with the user's own file names where they differ.

    Args:
        name: name of the benchmark.
        data_overrides: ``[data]`` settings that differ from the file's.
        protocol: name of the protocol; its section overrides the file's other sections.
        split: which split to query; None for the protocol's own.
        chat: whether prompts are conversations: ``[prompt.chat]`` in place of ``[prompt]``, and so on.

    Raises:
        UserError: unknown benchmark, protocol, split or override; the message lists the known ones.
    """
    path = _files()[canonical_name(name)]
    try:
        table = read_toml(path)
    except DataError as error:
        raise UserError(f"not a benchmark: {error}") from error
    return parse_benchmark(table, path, data_overrides or {}, protocol=protocol, split=split, chat=chat)


class _Names(Record, frozen=True, kw_only=True):
    """``[ranking]``: class names, or a file of names that ships with the package."""

    names: tuple[str, ...] | str


class _Data(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of ``[data]`` that all loaders share."""

    loader: str
    folder: str
    train: str
    layout: tuple[str | Piece, ...]
    counts: dict[str, int] = msgspec.field(default_factory=dict)


def _own(data: Mapping[str, object]) -> dict[str, object]:
    """The keys of ``[data]`` that become :attr:`DataRules.options`."""
    return {key: value for key, value in data.items() if key not in ("loader", "folder", "train", "layout")}


class Submission(Record, frozen=True, kw_only=True):
    """How an evaluation server expects answers.

    Attributes:
        key: the field that identifies an answer.
        split: the split whose questions must all be answered.
        of: splits that the run may have queried (``from`` in the file).
    """

    key: Literal["question_id", "image"]
    split: str
    of: tuple[str, ...] = msgspec.field(name="from")


class _File(Record, frozen=True, kw_only=True):
    """A benchmark's file, merged with the protocol's section."""

    name: str
    title: str
    split: str
    splits: Annotated[tuple[str, ...], Meta(min_length=1)]
    metric: str
    sources: tuple[str, ...]
    data: dict[str, Any]
    prompt: PromptRules
    answer: AnswerRules
    plan: PlanRules = PlanRules()
    decoding: Decoding | None = None
    ranking: _Names | None = None
    scoring: dict[str, Any] = msgspec.field(default_factory=dict)
    submission: Submission | None = None
    download: Download | None = None


def parse_benchmark(
    table: Mapping[str, Any],
    path: Path,
    data_overrides: Mapping[str, Any] | None = None,
    *,
    protocol: str = DEFAULT_PROTOCOL,
    split: str | None = None,
    chat: bool = False,
) -> Benchmark:
    """Checks a benchmark's table and turns it into records.

    Raises:
        UserError: a key is missing, unknown or of another type; the message names it, and what is there.
    """
    base = {key: value for key, value in table.items() if key != "protocols"}
    sections = typed(table.get("protocols", {}), dict[str, dict[str, Any]], f"{path}: [protocols]")
    protocols: Mapping[str, Any] = {DEFAULT_PROTOCOL: {}, **sections}
    if protocol not in protocols:
        raise UserError(f"{path.stem} has no protocol {protocol!r}; it has: {', '.join(protocols)}")
    chosen = protocols[protocol]
    if "refused" in chosen:
        raise UserError(f"{path.stem} is not run under {protocol}: {chosen['refused']}")
    merged = in_form(path, with_turns(path, merge(base, chosen)), chat=chat)
    where = str(path) if protocol == DEFAULT_PROTOCOL else f"{path} under {protocol}"
    file = typed(merged, _File, where)
    task = _task(file, where)
    overridden = override(path, file.data, data_overrides or {})
    data = typed(overridden, _Data, f"{where}: [data]")
    if file.name != path.stem:
        raise UserError(f"{path}: the name {file.name!r} must be the file's, {path.stem!r}")
    if (split or file.split) not in file.splits:
        raise UserError(f"{path.stem} has no split {split or file.split!r}; it has: {', '.join(file.splits)}")
    layout = read_layout(data.layout, file.data, overridden, f"{where}: [data]")
    alternatives = {
        other: merge(base, rules)["scoring"]
        for other, rules in protocols.items()
        if other != protocol and "refused" not in rules and "scoring" in rules and rules.keys() <= {"scoring"}
    }
    if alternatives and "scoring" in chosen:
        alternatives[DEFAULT_PROTOCOL] = base["scoring"]
    return Benchmark(
        name=file.name,
        title=file.title,
        split=split or file.split,
        splits=file.splits,
        protocol=protocol,
        metric=file.metric,
        scoring=file.scoring,
        alternatives=alternatives,
        data=DataRules(data.loader, data.folder, data.train, layout, _own(overridden), f"{path}: [data]"),
        plan=file.plan,
        prompt=file.prompt,
        task=task,
        answer=file.answer,
        submission=file.submission,
        sources=file.sources,
        download=file.download,
        file=path,
        chat=chat,
    )


def _task(file: _File, where: str) -> Task:
    """What the model is asked to do, from exactly one of ``[decoding]`` and ``[ranking]``. Raises UserError."""
    if file.ranking is None:
        if file.decoding is None:
            raise UserError(f"{where}: [decoding] or [ranking] is missing")
        if not math.isfinite(file.decoding.length_penalty):
            raise UserError(f"{where}: decoding.length_penalty is {file.decoding.length_penalty}: expected a number")
        return file.decoding
    if file.decoding is not None:
        raise UserError(f"{where}: [decoding] and [ranking] exclude each other; leave one out")
    names = file.ranking.names
    if isinstance(names, str):  # a file of names that ships with the package
        listed = resource_folder("benchmarks") / inside_root(names, f"{where}: ranking.names", "the benchmarks' folder")
        try:
            names = tuple(read_text(listed).splitlines())
        except DataError as error:
            raise UserError(f"{where}: ranking.names: {error}") from error
    if len(names) < 2 or not all(names):
        raise UserError(f"{where}: ranking.names holds {len(names)} names: expected two or more, none empty")
    return Ranking(tuple(dict.fromkeys(names)))
