"""Reads users' files of predictions: JSON, JSON lines or CSV, keyed by id or by image, such as ``samples`` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flamingo_eval.core.errors import DataError
from flamingo_eval.core.reading import parse_json, read_text, refuse_half_characters
from flamingo_eval.core.records import Id

ID_KEYS = ("question_id", "image_id", "query_id", "id")
IMAGE_KEYS = ("image", "image_name", "file_name", "filename", "path", "img")
"""Keys under which a row names its query: by its id, or by the name or path of its image."""

SCORE_KEYS = ("score", "proba", "value", "class_logprobs")
"""Keys of a score: ours, the competition's, that of ``scores.jsonl``, and the log-likelihoods of ``samples``."""

OWN_KEYS = ("answer",)
"""Key of a post-processed answer in ``samples`` and ``scores.jsonl``."""

TRIAL_KEYS = ("shots", "seed")
"""Keys that identify a row's trial."""

Row = Mapping[str, object]


@dataclass(frozen=True)
class Stated:
    """One row of a predictions file.

    Attributes:
        where: file and row, for messages.
        key: key under which the row names its query.
        query: value of that key.
        value_key: key of the answer.
        value: the answer.
        finished: whether the answer needs no more post-processing, because it is from our own files.
        trial: (shots, seed), if the row has them.
    """

    where: str
    key: str
    query: Any
    value_key: str
    value: Any
    finished: bool
    trial: tuple[int, int] | None = None


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The rows of a file, each with its location for messages.

    The file has a list of objects, an object that maps ids to answers, one object per line, or CSV with a header line.

    Raises:
        DataError: the file has none of these forms, or is empty.
    """
    text = read_text(path, any_kind=True)
    begin = text.lstrip()[:1]
    if begin not in ("[", "{"):
        return [*_csv_rows(text, path)]
    try:
        value = parse_json(text, path)
    except DataError:
        lines = [line for line in text.splitlines() if line.strip()]
        if begin != "{" or len(lines) < 2 or not _is_object(lines[0]):
            raise
        return [*_line_rows(text, path)]
    refuse_half_characters(value, path)
    if isinstance(value, dict):
        single = any(key in value for key in (*ID_KEYS, *IMAGE_KEYS))
        value = [value] if single else [{"id": key, **_as_row(one)} for key, one in value.items()]
    if not isinstance(value, list) or not value:
        raise DataError(f"{path} is not a list of predictions")
    rows = [(f"{path}: [{number}]", row) for number, row in enumerate(value)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} is no object, but {repr(row)[:60]}")
    return rows


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line, ""), dict)
    except DataError:
        return False


def _as_row(value: Any) -> Row:
    """Turns a value of an object keyed by id into a row: the value is already a row, or only the answer."""
    return value if isinstance(value, dict) else {"": value}


def _line_rows(text: str, path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where)
            refuse_half_characters(row, where)
            if not isinstance(row, dict):
                raise DataError(f"{where} is no object, but {repr(row)[:60]}")
            yield where, row


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is neither JSON nor CSV: {error}") from error
    if len(rows) < 2 or not {*rows[0]} & {*ID_KEYS, *IMAGE_KEYS}:
        raise DataError(
            f"{path} is neither JSON (a list of objects, or an object a line) nor CSV whose first line names columns, "
            f"one of {', '.join((*ID_KEYS, *IMAGE_KEYS))} among them"
        )
    for number, cells in enumerate(rows[1:], 2):
        if not cells:
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(rows[0]):
            raise DataError(f"{where} has {len(cells)} columns, the first line {len(rows[0])}")
        yield where, dict(zip(rows[0], cells, strict=True))


def stated_in(path: Path, value_key: str, kinds: Sequence[type], known: Sequence[Id]) -> Iterator[Stated]:
    """Reads the rows of a file.

    Args:
        path: the file.
        value_key: key of an answer, by the benchmark's metric.
        kinds: types that an answer may have.
        known: ids of queries, for messages.

    Raises:
        DataError: a row has no query or no answer (the message names the keys that it has, and those that it may
            have), or an answer of another type.
    """
    numeric = str not in kinds
    for where, row in read_rows(path):
        own = "query_id" in row
        wanted = (value_key, *(SCORE_KEYS if numeric else ()), *(OWN_KEYS if own and not numeric else ()), "")
        key = next((name for name in (*ID_KEYS, *IMAGE_KEYS) if name in row), None)
        named = next(
            (name for name in wanted if row.get(name) is not None), next((n for n in wanted if n in row), None)
        )
        if key is None or named is None:
            id_key = ID_KEYS[0] if value_key == "answer" else ID_KEYS[1]
            example = {id_key: next(iter(known)), value_key: ...}
            raise DataError(
                f"{where} has {', '.join(map(repr, row)) or 'no keys'}; a prediction has one of "
                f"{', '.join((*ID_KEYS, 'image'))}, and {value_key}: {str(example).replace('Ellipsis', '...')}"
            )
        given = row[named]
        value = _number(given) if numeric and isinstance(given, str) else given
        good = isinstance(value, (*kinds, dict) if named == "class_logprobs" else tuple(kinds))
        if not good or isinstance(value, bool):
            kind = "a number" if numeric else "a text"
            raise DataError(f"{where}: {named or 'the answer'} is {repr(value)[:60]}; it has to be {kind}")
        yield Stated(where, key, row[key], named or value_key, value, own, _trial(row, where))


def _trial(row: Row, where: str) -> tuple[int, int] | None:
    """(shots, seed) of a row, None without them. Raises DataError if one is missing or is no integer from 0 on."""
    numbers = [_integer(row[key]) for key in TRIAL_KEYS if key in row]
    if not numbers:
        return None
    if len(numbers) == 1 or any(number is None or not 0 <= number < 2**32 for number in numbers):
        raise DataError(f"{where}: {' and '.join(TRIAL_KEYS)} must be integers from 0 on, and both present")
    return numbers[0] or 0, numbers[1] or 0


def _number(text: str) -> Any:
    """The number in a CSV cell; the text itself if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return text


class Queries:
    """Finds the queries of a split by id or image.

    Args:
        known: ids of the queries.
        images: returns id -> path of its image; called when a row first names an image.
    """

    def __init__(self, known: Sequence[Id], images: Callable[[], Mapping[Id, str]]) -> None:
        self._by_text = {str(id): id for id in known}
        self._known, self._images = frozenset(known), images
        self._by_number: dict[int, Id | None] = {}
        for id in known:
            number = _integer(id)
            if number is not None:  # a number that two ids could mean finds neither
                self._by_number[number] = None if number in self._by_number else id
        self._by_image: dict[str, Id | None] | None = None

    def find(self, stated: Stated) -> Id:
        """The query that a row names. Raises DataError if there is none, or more than one."""
        found = self._image(stated) if stated.key in IMAGE_KEYS else self._id(stated.query)
        if found is None and stated.key in (*ID_KEYS, *IMAGE_KEYS) and isinstance(stated.query, str):
            found = self._image(stated)
        if found is None:
            example = next(iter(self._by_text.values()), None)
            raise DataError(
                f"{stated.where}: {stated.key} {repr(stated.query)[:80]} is not in the annotations; one that is: "
                f"{example!r}"
            )
        return found

    def _id(self, query: Any) -> Id | None:
        """Finds a query by its id: as it is, as a text, or as a number in another notation (00042, 42.0)."""
        if isinstance(query, int | str) and not isinstance(query, bool) and query in self._known:
            return query
        exact = self._by_text.get(str(query))
        number = _integer(query)
        return exact if exact is not None else None if number is None else self._by_number.get(number)

    def _image(self, stated: Stated) -> Id | None:
        """Finds a query by the path of its image, or by the image's name if no other query has it."""
        if self._by_image is None:
            self._by_image = {}
            for id, path in self._images().items():
                pure = PurePosixPath(path)
                names = {"/".join(pure.parts[-count:]) for count in range(1, len(pure.parts) + 1)} | {pure.stem}
                for name in names:
                    self._by_image[name] = id if self._by_image.get(name, id) == id else None
        text = str(stated.query)
        if text not in self._by_image:
            return None
        found = self._by_image[text]
        if found is None:
            raise DataError(f"{stated.where}: {stated.key} {text!r} is the image of several queries: name their ids")
        return found


def _integer(value: Any) -> int | None:
    """An integer in any notation; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value
    try:
        number = float(value)
    except ValueError:
        return None
    if not number.is_integer() or abs(number) >= 2**53:
        return int(value) if isinstance(value, str) and value.strip().isdecimal() and len(value) < 40 else None
    return int(number)
