"""The journal: raw model output, one JSON line per answer, append-only.

A line is on the disk before the next batch starts, so a run that is ended loses at most the batch in flight. Every
process of a run appends to a file of its own (``journal.jsonl``, ``journal-1.jsonl``, ...) and reads all of them. The
log-likelihoods of many names are kept beside it (:mod:`flamingo_eval.storage.numbers`).
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from flamingo_eval.core.digests import changed_fields
from flamingo_eval.core.errors import DataError, StorageError, UserError
from flamingo_eval.core.paths import is_file, open_regular
from flamingo_eval.core.reading import parse_json
from flamingo_eval.core.records import Answer, Id, Prediction, Query, Reply
from flamingo_eval.core.schema import typed
from flamingo_eval.storage.files import open_own, storage_errors
from flamingo_eval.storage.numbers import MANY, Held, Names, Numbers, Ranked, place_from

Slot = tuple[str, int, int, Id, int]
"""(benchmark, shots, seed, query id, occurrence): what an answer belongs to."""


@dataclass(frozen=True)
class Failure:
    """A query that could not be answered."""

    slot: Slot
    reason: str


_PATIENCE = 20
"""How often a line that can't be read is read again, while its process may still be writing it."""


class Entry(NamedTuple):
    """An answer in the journal.

    Attributes:
        slot: the query that it answers.
        prediction: the answer.
        again: how many earlier answers the slot had that are no longer valid (an image has changed, say).
    """

    slot: Slot
    prediction: Prediction
    again: int = 0


def slot_of(query: Query) -> Slot:
    """The slot of a query."""
    return (query.benchmark, query.shots, query.seed, query.id, query.occurrence)


@dataclass
class _File:
    """How far a file has been read: bytes and lines up to its last line break, and whether something follows that.

    ``attempts``: how often in a row its next line could not be read. ``inode``: device and inode number of the file,
    once it has been opened.
    """

    inode: tuple[int, int] | None = None
    complete_bytes: int = 0
    lines: int = 0
    torn: bool = False
    attempts: int = 0


class Journal:
    """Answers by slot; the latest answer of a slot counts.

    Args:
        path: the file of the first process; it need not exist yet.
        rank: which process of a run this is; others append to files beside it.
        reading: whether this process only reads; then others may append to the file of this rank too.

    Raises:
        DataError: a line that is not the last one of its file can't be read. A torn last line is dropped: the
            process that wrote it was killed, and its query is answered again.
    """

    def __init__(self, path: Path, rank: int = 0, *, reading: bool = False) -> None:
        self.path, self._reading = _file_of(path, rank), reading
        self.written = 0
        """How many answers this process has added."""
        self._first = path
        self._files: dict[Path, _File] = {}
        self._answers: dict[Slot, Prediction] = {}
        self._withdrawn: set[Slot] = set()
        self._asked: Mapping[Slot, str] | None = None
        self._again: dict[Slot, int] = {}
        self._places: dict[tuple[str, ...], dict[str, int]] = {}
        self._names = Names(path.parent)
        self._numbers: dict[Path, Numbers] = {}
        self.refresh()
        self.torn = [file for file, state in self._files.items() if state.torn]
        """Files that ended in the middle of a line."""

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, slot: Slot) -> Prediction | None:
        """The answer of a slot; None if there is none."""
        return None if slot in self._withdrawn else self._answers.get(slot)

    def answers_of(self, slot: Slot) -> int:
        """How many answers a slot has had."""
        return self._again.get(slot, 0) + 1 if slot in self._answers else 0

    def expect(self, asked: Mapping[Slot, str]) -> None:
        """From now on accepts only answers to these requests: slot -> key."""
        self._asked = asked

    def withdraw(self, slots: Iterable[Slot]) -> None:
        """Ignores the answers of slots until there are new ones: they are to other prompts, or other images."""
        self._withdrawn |= self._answers.keys() & set(slots)

    def refresh(self) -> int:
        """Reads the answers that other processes have added, and returns their number."""
        count = 0
        for file in [self._first, *sorted(_others(self._first))]:
            first = file not in self._files
            state = self._files.setdefault(file, _File())
            if file == self.path and state.complete_bytes and not self._reading:
                continue  # it is this process's own
            try:
                for entry in self._read(file, state):
                    self._add(entry)
                    count += 1
                state.attempts = 0
            except DataError:
                # a line of another process may still be on its way over a network: it is read again later
                state.attempts += 1
                if first or state.attempts > _PATIENCE:
                    raise
        return count

    def _read(self, path: Path, state: _File) -> Iterator[Entry]:
        """The answers in the complete lines after those that were read before."""
        state.torn = False
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError as error:
                raise DataError(f"{path} can't be read: {error.strerror}") from error
            status = os.fstat(file.fileno())
            if state.inode not in (None, (status.st_dev, status.st_ino)) or status.st_size < state.complete_bytes:
                raise DataError(f"{path} has been replaced or cut while it was in use")
            state.inode = (status.st_dev, status.st_ino)
            for line in _lines(file, state.complete_bytes, path):
                if not line.endswith(b"\n"):
                    state.torn = True
                    return
                if line.strip():
                    yield self._entry(line, path, f"{path}, line {state.lines + 1}")
                state.complete_bytes += len(line)
                state.lines += 1

    def _entry(self, line: bytes, path: Path, where: str) -> Entry:
        """The answer in a line. Raises DataError."""
        row = _row(line, where)
        if row.raw is not None:
            answer: Answer = row.raw
        elif row.class_logprobs is not UNSET:
            answer = row.class_logprobs
        else:
            place, numbers = place_from(row.numbers), self._numbers_of(path)
            if place is None or row.names is UNSET:
                raise _no_line(where, "it holds no answer")
            if not numbers.reaches(place):
                raise _no_line(where, f"its log-likelihoods are not in {numbers.path}")
            answer = Ranked(sys.intern(row.names), self._names, numbers, place)
        slot = (row.benchmark, row.shots, row.seed, row.query_id, row.occurrence)
        return Entry(slot, Prediction(row.key, answer, row.images_digest, row.reply), row.again)

    def keep_names(self, names: Sequence[str]) -> None:
        """Writes the file of these names if it is missing, and answers may refer to it. Raises StorageError."""
        if len(names) > MANY and any(isinstance(one.answer, Ranked) for one in self._answers.values()):
            self._names.keep(names)

    def begin(self) -> None:
        """Makes this process's file, empty, if it does not exist. Raises StorageError."""
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            state = self._files.setdefault(self.path, _File())
            os.close(_open_for_writing(self.path, state))

    def _add(self, entry: Entry) -> None:
        if entry.again >= self._again.get(entry.slot, 0):
            self._answers[entry.slot] = self._compact(entry.prediction)
            self._withdrawn.discard(entry.slot)
            if entry.again:
                self._again[entry.slot] = entry.again

    def _compact(self, prediction: Prediction) -> Prediction:
        answer = prediction.answer
        if isinstance(answer, str | Ranked):
            return prediction
        names = tuple(answer)
        places = self._places.setdefault(names, {name: i for i, name in enumerate(names)})
        return replace(prediction, answer=Held(places, array("d", answer.values())))

    def append(self, entries: Sequence[Entry], extra: Mapping[str, str] | None = None) -> None:
        """Adds answers and waits until they are on the disk.

        Args:
            entries: the answers of one batch; which of them replace earlier ones is found out here.
            extra: fields added to every line.

        Raises:
            StorageError: disk full, read-only, not allowed; answers already there stay.
            UserError: one answers a request that was not asked (:meth:`expect`); none of them is added.
        """
        for slot, prediction, _ in entries if self._asked is not None else ():
            if self._asked is not None and self._asked.get(slot) != prediction.key:
                raise UserError(
                    f"an answer to {slot} was brought that is to another request than was asked; none is kept"
                )
        known = self._answers
        entries = [e._replace(again=self._again.get(e.slot, 0) + 1) if e.slot in known else e for e in entries]
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = self._with_numbers_beside(entries)
        data = "".join(_line(entry, extra or {}) for entry in entries).encode("utf-8", "surrogatepass")
        state = self._files.setdefault(self.path, _File())
        with storage_errors(self.path), os.fdopen(_open_for_writing(self.path, state), "r+b") as file:
            if state.torn:
                file.truncate(state.complete_bytes)
            file.seek(state.complete_bytes)
            state.torn = True  # should this fail half-way
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        state.torn = False
        state.complete_bytes += len(data)
        self.written += len(entries)
        for entry in entries:
            self._add(entry)

    def _with_numbers_beside(self, entries: Sequence[Entry]) -> list[Entry]:
        """The same entries, with log-likelihoods of many names moved to the file beside. Raises StorageError."""
        answers = [entry.prediction.answer for entry in entries]
        many = {i: answer for i, answer in enumerate(answers) if not isinstance(answer, str) and len(answer) > MANY}
        if not many:
            return [*entries]
        numbers, beside = self._numbers_of(self.path), [*entries]
        places = numbers.append([[*answer.values()] for answer in many.values()])
        for (i, answer), place in zip(many.items(), places, strict=True):
            ranked = Ranked(self._names.keep([*answer]), self._names, numbers, place)
            beside[i] = entries[i]._replace(prediction=replace(entries[i].prediction, answer=ranked))
        return beside

    def _numbers_of(self, file: Path) -> Numbers:
        return self._numbers.setdefault(file, Numbers(file.with_suffix(".numbers")))

    def check(self) -> None:
        """Raises StorageError if a file that answers were read from or written to is deleted, replaced or cut."""
        for path, state in self._files.items():
            if state.inode is not None:
                with storage_errors(path):
                    os.close(_open_for_writing(path, state))


def _open_for_writing(path: Path, state: _File) -> int:
    """Opens a journal that must still be the same file, or makes it if it is new. Returns a descriptor.

    Raises:
        StorageError: it has been deleted, replaced or cut.
        OSError: it can't be opened, or is a link.
    """
    lost = StorageError(
        f"{path} has been deleted, replaced or cut while this run was answering. Answers that were in it are lost with "
        "it; give the same command again, and what is missing is answered"
    )
    try:
        handle = open_own(path, os.O_RDWR if state.inode else os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        raise lost from None
    status = os.fstat(handle)
    if state.inode not in (None, (status.st_dev, status.st_ino)) or status.st_size < state.complete_bytes:
        os.close(handle)
        raise lost
    state.inode = (status.st_dev, status.st_ino)
    return handle


def journal_files(first: Path) -> list[Path]:
    """The journal files of all processes, as far as they exist."""
    return [file for file in (first, *sorted(_others(first))) if is_file(file)]


def _file_of(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}-{rank}{path.suffix}") if rank else path


def _others(first: Path) -> Iterator[Path]:
    name = re.compile(re.escape(first.stem) + r"-[1-9]\d*" + re.escape(first.suffix))
    return (file for file in first.parent.glob(f"{first.stem}-*{first.suffix}") if name.fullmatch(file.name))


def _lines(file: BufferedReader, start: int, path: Path) -> Iterator[bytes]:
    """The lines from a byte on. Raises DataError if they can't be read."""
    try:
        file.seek(start)
        yield from file
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def _line(entry: Entry, extra: Mapping[str, str]) -> str:
    benchmark, shots, seed, query_id, occurrence = entry.slot
    answer = entry.prediction.answer
    if isinstance(answer, str):
        fields: dict[str, Any] = {"raw": answer}
    elif isinstance(answer, Ranked):
        fields = {"raw": None, "names": answer.names, "numbers": [*answer.place]}
    else:
        fields = {"raw": None, "class_logprobs": dict(answer)}
    counts = {name: n for name, n in (("occurrence", occurrence), ("again", entry.again)) if n}
    if entry.prediction.reply is not None:
        fields["reply"] = changed_fields(entry.prediction.reply)
    row = {"benchmark": benchmark, "shots": shots, "seed": seed, "query_id": query_id, **counts,
           "key": entry.prediction.key, "pictures": entry.prediction.images_digest, **fields, **extra}  # fmt: skip
    return json.dumps(row) + "\n"


class _Row(msgspec.Struct, frozen=True, kw_only=True, rename={"images_digest": "pictures"}):
    """A line: its query, the answer's key, and the answer: a text, numbers by name, or where these numbers are kept."""

    benchmark: str
    shots: int
    seed: int
    query_id: int | str
    occurrence: int = 0
    again: int = 0
    key: str
    images_digest: str
    raw: str | None
    class_logprobs: Annotated[dict[str, float], Meta(min_length=1)] | UnsetType = UNSET
    names: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")] | UnsetType = UNSET
    numbers: list[Any] | UnsetType = UNSET
    reply: Reply | None = None


def _row(line: bytes, where: str) -> _Row:
    try:
        row = typed(parse_json(line, "it"), _Row, "it")
    except (DataError, UserError) as error:
        raise _no_line(where, str(error)) from error
    if row.class_logprobs and not all(map(math.isfinite, row.class_logprobs.values())):
        raise _no_line(where, "a log-likelihood is no number")
    return row


def _no_line(where: str, why: str) -> DataError:
    return DataError(f"{where}: not a line of a journal ({why}); move the file away to start anew")
