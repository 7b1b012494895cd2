"""A benchmark with its data, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import DEFAULT_PROTOCOL, AnswerRules, Benchmark, DataRules, load_benchmark
from flamingo_eval.core.digests import digest, file_digest
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.paths import is_folder
from flamingo_eval.core.prompting import demonstration_turn, mark_in
from flamingo_eval.core.protocols import DataSet, References
from flamingo_eval.core.reading import digests_of_reads, many_objects, read_text
from flamingo_eval.core.records import Example, Ranking, Task, Turn
from flamingo_eval.core.schema import typed

_MOST_TURNS = 20_000
"""Largest number of demonstrations that are kept as turns."""


@dataclass(frozen=True)
class Source:
    """A benchmark with its data, read once."""

    benchmark: Benchmark
    images: Images
    data: DataSet
    reads: dict[Path, str] = field(default_factory=dict)
    """Digest of the bytes that each annotation file was read from."""
    _turns: dict[tuple[int, bool], Turn] = field(default_factory=dict)
    _unusable: dict[tuple[str, ...], tuple[Mapping[int, str], Mapping[int, str]]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder that image paths are relative to."""
        return self.images.root

    @cached_property
    def digest(self) -> str:
        """Digest of what the plan was made from: annotation files, or the list of images, or both."""
        files = [self.digest_of(self.data.files)] if self.data.files else []
        if files and not self.data.listing:
            return files[0]
        return digest([*([e.image for e in part] for part in (self.data.train, self.data.test)), *files])

    def digest_of(self, files: Iterable[Path]) -> str:
        """One digest for annotation files as they were read."""
        return digest([self.reads.get(file) or file_digest(file) for file in files])

    def turn(self, number: int, *, shown: bool) -> Turn:
        """A training example as a demonstration. It is kept, since demonstrations from a pool are shown many times."""
        key = (number, shown)
        if key not in self._turns:
            if len(self._turns) >= _MOST_TURNS:
                self._turns.clear()
            self._turns[key] = demonstration_turn(self.benchmark.prompt, self.data.train[number], shown=shown)
        return self._turns[key]

    def unusable(self, marks: tuple[str, ...]) -> tuple[Mapping[int, str], Mapping[int, str]]:
        """Training and test examples whose texts contain a mark, which would divide a prompt at the wrong place.

        Args:
            marks: the strings that divide a rendered prompt.

        Returns:
            For the training and for the test examples: number of the example -> what is wrong.
        """
        if marks not in self._unusable:
            rules = self.benchmark.prompt
            self._unusable[marks] = (
                self._with_marks(self.data.train, (rules.text, rules.answer), marks, "demonstration"),
                self._with_marks(self.data.test, (rules.text,), marks, "query"),
            )
        return self._unusable[marks]

    def _with_marks(
        self, examples: Sequence[Example], templates: Sequence[str], marks: Sequence[str], role: str
    ) -> dict[int, str]:
        tokens = ((i, mark_in(templates, example, marks)) for i, example in enumerate(examples))
        found = {i: token for i, token in tokens if token is not None}
        where = {token: self._files_with(token) for token in set(found.values())}
        return {
            i: f"{self.benchmark.name}: the text of {role} {examples[i].id} ({where[token]}) holds the special token "
            f"{token}"
            for i, token in found.items()
        }

    def _files_with(self, token: str) -> str:
        """The annotation files in which a special token occurs."""
        holding = [file for file in self.data.files if token in read_text(file)]
        return ", ".join(map(str, holding or self.data.files)) or str(self.root / self.benchmark.data.folder)

    @cached_property
    def task(self) -> Task:
        """What the model is asked to do; the data may decide which names are ranked."""
        return Ranking(self.data.names) if self.data.names else self.benchmark.task

    @cached_property
    def references(self) -> References:
        """References of the queries; read when they are first needed."""
        rules = self.benchmark.data
        with many_objects(), digests_of_reads(self.reads):
            return registry.loader(rules.loader).references(rules, self.root, self.benchmark.split)


def check_scoring(benchmark: Benchmark) -> None:
    """Raises UserError if the metric does not understand the benchmark's rules."""
    rules = getattr(registry.metric(benchmark.metric), "rules", dict)  # a plug-in may accept any rules
    for protocol, table in ((benchmark.protocol, benchmark.scoring), *benchmark.alternatives.items()):
        typed(dict(table), rules, f"{benchmark.file} under {protocol}: [scoring]")
    positive = benchmark.scoring.get("positive")
    if positive is not None and isinstance(benchmark.task, Ranking) and positive not in benchmark.task.names:
        raise UserError(f"{benchmark.file}: scoring.positive is {positive!r}, which is none of ranking.names")


def read_source(
    name: str,
    root: Path | Images,
    overrides: Mapping[str, Any] | None = None,
    *,
    protocol: str = DEFAULT_PROTOCOL,
    split: str | None = None,
    chat: bool = False,
    finished: bool = False,
) -> Source:
    """Reads a benchmark's definition and its data.

    Args:
        name: name of the benchmark.
        root: the data root; or the images under it, where benchmarks share them.
        overrides: ``[data]`` settings that differ from the benchmark's file.
        protocol: name of the protocol.
        split: which split to query; None for the protocol's own.
        chat: whether prompts are conversations.
        finished: whether answers are already extracted, and stay as they are.

    Raises:
        UserError: unknown benchmark, protocol or split; data folder missing.
        DataError: a file is missing or malformed.
    """
    benchmark = load_benchmark(name, overrides, protocol=protocol, split=split, chat=chat)
    check_scoring(benchmark)
    if finished:
        benchmark = replace(benchmark, answer=AnswerRules())
    images = root if isinstance(root, Images) else Images(root)
    root = images.root
    folder = root / benchmark.data.folder
    if not is_folder(folder):
        missing = root if not is_folder(root) else folder
        raise UserError(
            f"{missing} is not a folder; {benchmark.name} is read from {folder} "
            f"(layout: flamingo-eval data where {benchmark.name})"
        )
    reads: dict[Path, str] = {}
    with many_objects(), digests_of_reads(reads):
        data = registry.loader(benchmark.data.loader).examples(benchmark.data, root, benchmark.split)
    return Source(benchmark, images, _where_they_lie(data, root, benchmark.data), reads)


def _where_they_lie(data: DataSet, root: Path, rules: DataRules) -> DataSet:
    """The same examples, with the paths where their images are: a folder that is missing may have been renamed.

    COCO 2017 has the images of COCO 2014 in two other folders, named by their numbers.
    """
    paths = {PurePosixPath(example.image).parent for example in (*data.train, *data.test)} if rules.renamed else set()
    gone = {str(path) for path in paths if not is_folder(root / path)}
    places = [root / rules.folder / name for name in rules.renamed] if gone else []
    lying = [place for place in places if is_folder(place)]
    if not lying:
        return data
    by_number = {file.stem.lstrip("0"): f"{rules.folder}/{place.name}/{file.name}"
                 for place in lying for file in place.iterdir() if file.stem.isdecimal()}  # fmt: skip

    def moved(example: Example) -> Example:
        path = PurePosixPath(example.image)
        number = path.stem.rpartition("_")[2].lstrip("0")
        return replace(example, image=by_number.get(number, example.image)) if str(path.parent) in gone else example

    notes = (*data.notes, f"images from {' and '.join(place.name for place in lying)}, by number")
    return replace(data, train=[*map(moved, data.train)], test=[*map(moved, data.test)], notes=notes)
