"""The journal: raw model output, one JSON line an answer, append-only.

A line is on the disk before the next batch starts, so whatever ends a run costs at most the batch in flight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flamingo_eval.errors import DataError
from flamingo_eval.files import storage_errors
from flamingo_eval.nouns import Id, Prediction, Query

Slot = tuple[str, int, int, Id, int]
"""(benchmark, shots, seed, query id, occurrence): what an answer belongs to."""


class Entry(NamedTuple):
    """An answer in the journal."""

    slot: Slot
    prediction: Prediction


def slot_of(query: Query) -> Slot:
    """The slot of a query."""
    return (query.benchmark, query.shots, query.seed, query.id, query.occurrence)


class Journal:
    """Answers by slot; the last line of a slot counts.

    Args:
        path: the file; it need not exist yet.

    Raises:
        DataError: a line that is not the last one can't be read. A torn last line is dropped: the process that
            wrote it was killed, and its query is answered again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = False
        self._answers: dict[Slot, Prediction] = {}
        self._whole_bytes = 0
        for entry in self._read():
            self._answers[entry.slot] = entry.prediction

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, slot: Slot) -> Prediction | None:
        """The answer of a slot, if there is one."""
        return self._answers.get(slot)

    def _read(self) -> Iterator[Entry]:
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise DataError(f"{self.path} is not a file")
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self.torn = True
                    return
                self._whole_bytes += len(line)
                if line.strip():
                    yield _parse(line, f"{self.path}, line {number}")

    def append(self, entries: Sequence[Entry], extra: Mapping[str, Any] | None = None) -> None:
        """Adds answers and waits until they are on the disk.

        Args:
            entries: the answers of one batch.
            extra: fields added to every line.

        Raises:
            StorageError: disk full, read-only, not allowed; answers already there stay.
        """
        text = "".join(_line(entry, extra or {}) for entry in entries)
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "xb") as file:
                if self.torn:
                    file.truncate(self._whole_bytes)
                file.seek(self._whole_bytes)
                data = text.encode("utf-8", "surrogatepass")
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self.torn = False
        self._whole_bytes += len(data)
        self._answers.update({entry.slot: entry.prediction for entry in entries})


def _line(entry: Entry, extra: Mapping[str, Any]) -> str:
    benchmark, shots, seed, query_id, occurrence = entry.slot
    answer = entry.prediction.answer
    said = {"raw": answer} if isinstance(answer, str) else {"raw": None, "class_logprobs": dict(answer)}
    again = {"occurrence": occurrence} if occurrence else {}
    row = {"benchmark": benchmark, "shots": shots, "seed": seed, "query_id": query_id, **again,
           "key": entry.prediction.key, "pictures": entry.prediction.pictures, **said, **extra}  # fmt: skip
    return json.dumps(row) + "\n"


def _parse(line: bytes, where: str) -> Entry:
    try:
        row = json.loads(line)
        benchmark, shots, seed, query_id = (row[key] for key in ("benchmark", "shots", "seed", "query_id"))
        occurrence, key, pictures = row.get("occurrence", 0), row["key"], row["pictures"]
        answer = row["raw"] if row["raw"] is not None else row["class_logprobs"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: not a line of a journal ({error!r}); move the file away to start anew") from error
    kinds = (
        (benchmark, str),
        (shots, int),
        (seed, int),
        (query_id, (int, str)),
        (occurrence, int),
        (key, str),
        (pictures, str),
    )
    numbers = answer.values() if isinstance(answer, dict) else ()
    if (
        not all(isinstance(value, kind) for value, kind in kinds)
        or not isinstance(answer, str | dict)
        or not all(isinstance(number, int | float) for number in numbers)
    ):
        raise DataError(f"{where}: not a line of a journal (a field is of the wrong type); move it away to start anew")
    return Entry((benchmark, shots, seed, query_id, occurrence), Prediction(key, answer, pictures))
