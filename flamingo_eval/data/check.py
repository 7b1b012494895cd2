"""Checks a benchmark's data before a day-long run, and reports every problem instead of only the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import Benchmark, load_benchmark
from flamingo_eval.core.errors import DataError, UserError, first_few
from flamingo_eval.core.images import Images
from flamingo_eval.core.paths import exists, is_file, is_folder
from flamingo_eval.core.reading import all_problems, read_json
from flamingo_eval.core.records import Example
from flamingo_eval.core.source import Source, read_source
from flamingo_eval.data.finding import Places, there
from flamingo_eval.data.where import how, missing, pieces_of, states


@dataclass
class Report:
    """The results of a check.

    Attributes:
        right: a line for each thing that is correct.
        remarks: a line for each thing that the user may want to know.
        wrong: a line for each problem.
    """

    right: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def once(self) -> Report:
        """The same report, without repeated lines."""
        return Report(*(list(dict.fromkeys(lines)) for lines in (self.right, self.remarks, self.wrong)))


def check(
    name: str,
    images: Images,
    overrides: Mapping[str, object] | None,
    *,
    protocol: str,
    split: str | None,
    open_images: bool,
    compare: bool,
) -> Report:
    """Reads all of a benchmark's files, and checks its images.

    Args:
        name: the benchmark's name.
        images: the data root.
        overrides: ``[data]`` settings that differ from the benchmark's own.
        protocol: name of the protocol.
        split: the split to check; None for the default split and every other split that is there.
        open_images: decode every image, instead of only checking that its file exists.
        compare: compare counts with the published ones.

    Raises:
        UserError: unknown benchmark, protocol or split.
    """
    report = Report()
    usual = load_benchmark(name, overrides, protocol=protocol, split=split)
    for wanted in [split] if split else usual.splits:
        benchmark = load_benchmark(name, overrides, protocol=protocol, split=wanted)
        if wanted != usual.split and not _begun(benchmark, images):
            report.remarks.append(f"{wanted}: not there, and needed only for --split {wanted}")
            continue
        _check_split(benchmark, images, overrides, report, open_images=open_images, compare=compare)
    return report.once()


def _begun(benchmark: Benchmark, images: Images) -> bool:
    """Whether any data of a split is there.

    True if any piece that the layout lists for this split is there. If it lists none, true if the split can be read.
    """
    folder = images.root / benchmark.data.folder
    own = [piece for piece in pieces_of(benchmark) if piece.splits]
    if own:
        return any(there(folder, [piece.path]) for piece in own)
    with suppress(DataError):
        registry.loader(benchmark.data.loader).examples(benchmark.data, images.root, benchmark.split)
        return True
    return False


def _check_split(
    benchmark: Benchmark,
    images: Images,
    overrides: Mapping[str, object] | None,
    report: Report,
    *,
    open_images: bool,
    compare: bool,
) -> None:
    lacking = missing(states(benchmark, images.root, Places(())))
    report.wrong += [f"{state.target} is missing" for state in lacking if state.at is None]
    report.remarks += [how(state) for state in lacking if state.at is not None]
    folder = images.root / benchmark.data.folder
    if not is_folder(folder):
        report.wrong.append(f"{folder} {'is not a folder' if exists(folder) else 'does not exist'}")
        return
    with all_problems(report.wrong):
        try:
            source = read_source(benchmark.name, images, overrides, protocol=benchmark.protocol, split=benchmark.split)
            counts = list(count_lines(source, compare=compare))
        except DataError as error:
            report.wrong += [str(error), *_of_each_part(benchmark, images, known=str(error), open_images=open_images)]
            return
    report.remarks += source.data.notes
    report.right += [text for text, right in counts if right]
    report.wrong += [text for text, right in counts if not right]
    problems = image_problems(source, open_them=open_images)
    if problems:
        report.wrong.append(f"{len(problems)} images are missing or unreadable:{first_few(problems)}")
    else:
        report.right.append("images opened" if open_images else "image files exist")


def _of_each_part(benchmark: Benchmark, images: Images, known: str, *, open_images: bool) -> list[str]:
    """Further problems, after a first one: each split and file is read by itself. How they fit is not checked."""
    found = []
    for part in dict.fromkeys((benchmark.data.train, benchmark.split)):
        try:
            data = registry.loader(benchmark.data.loader).examples(
                replace(benchmark.data, train=part), images.root, part
            )
        except UserError as error:
            found.append(str(error))
            continue
        problems = _image_problems(images, (example.image for example in data.test), open_them=open_images)
        if problems:
            found.append(f"{part}: {len(problems)} images are missing or unreadable:{first_few(problems)}")
    for piece in pieces_of(benchmark):
        file = images.root / benchmark.data.folder / piece.path
        if file.suffix == ".json" and exists(file):
            try:
                read_json(file)
            except UserError as error:
                found.append(str(error))
    return [problem for problem in dict.fromkeys(found) if problem != known]


def count_lines(source: Source, *, compare: bool) -> Iterator[tuple[str, bool]]:
    """(what was found, whether it is correct): a line for each split, and one for the references.

    Args:
        source: benchmark and data.
        compare: compare the counts with the published ones.
    """
    expected: Mapping[str, int] = source.benchmark.data.options.get("counts", {}) if compare else {}
    parts = {source.benchmark.data.train: source.data.train, source.benchmark.split: source.data.test}
    for split, examples in parts.items():
        wanted = expected.get(split)
        comparison = (
            "" if wanted is None else " as published" if wanted == len(examples) else f", published are {wanted}"
        )
        images = len({example.image for example in examples})
        yield f"{split}: {len(examples)} examples of {images} images{comparison}", wanted in (None, len(examples))
    answered = sum(example.id in source.references.by_id for example in source.data.test)
    if not source.references.by_id:
        yield f"{source.benchmark.split}: no public answers; predictions only, no score", True
    else:
        yield f"{source.benchmark.split}: {answered} with references", answered == len(source.data.test)


def image_problems(source: Source, open_them: bool) -> list[str]:
    """A line for each image that is missing or, with ``open_them``, can't be read."""
    examples: list[Example] = [*source.data.train, *source.data.test]
    return _image_problems(source.images, (example.image for example in examples), open_them=open_them)


def _image_problems(images: Images, names: Iterable[str], *, open_them: bool) -> list[str]:
    problems, wanted = [], dict.fromkeys(names)
    for image in tqdm(wanted, unit="image", desc="images", disable=not open_them):
        path = images.root / image
        try:
            if open_them:
                images.decode(image, lambda _: None)
            elif not is_file(path):
                problems.append(f"{path} {'is not a regular file' if exists(path) else 'does not exist'}")
        except UserError as error:  # it can't be decoded, or access is denied
            problems.append(str(error))
    return problems
