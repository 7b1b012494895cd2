"""Checks a benchmark's data before a day-long run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tqdm import tqdm

from flamingo_eval.core.errors import DataError, UserError, first_few
from flamingo_eval.core.paths import exists, is_file
from flamingo_eval.core.records import Example
from flamingo_eval.core.source import Source


def count_lines(source: Source, *, compare: bool) -> Iterator[tuple[str, bool]]:
    """(what was found, whether it is as it should be), a line for each split and for the references.

    Args:
        source: benchmark and data.
        compare: hold the counts against the published ones.
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
    """What is wrong with the images: missing files, or, opened, unreadable ones."""
    examples: list[Example] = [*source.data.train, *source.data.test]
    images = dict.fromkeys(example.image for example in examples)
    problems = []
    for image in tqdm(images, unit="image", desc="images", disable=not open_them):
        try:
            if open_them:
                source.images.decode(image, lambda _: None)
            elif not is_file(source.root / image):
                there = exists(source.root / image)
                problems.append(f"{source.root / image} {'is not a regular file' if there else 'does not exist'}")
        except UserError as error:  # it can't be decoded, or nobody may look
            problems.append(str(error))
    return problems


def raise_problems(lines: list[tuple[str, bool]], problems: list[str]) -> None:
    """Raises DataError if anything is not as it should be."""
    wrong = [text for text, right in lines if not right]
    if problems:
        wrong.append(f"{len(problems)} images are missing or unreadable:{first_few(problems)}")
    if wrong:
        raise DataError("the data is not as it should be: " + "; ".join(wrong))
