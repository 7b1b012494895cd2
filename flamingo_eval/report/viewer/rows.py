"""A run's answers as columns, in the order they were first seen; rows that are there already keep their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flamingo_eval.core.prompting import fields_in
from flamingo_eval.core.records import Annotation, Example
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.score import processed, text_of
from flamingo_eval.report.viewer.payload import Columns
from flamingo_eval.storage.journal import Journal, Slot
from flamingo_eval.storage.run_records import ItemRow
from flamingo_eval.storage.scores import ItemKey

CHUNK = 10_000
"""Rows that the page gets at once, at most."""


class Row(NamedTuple):
    """One answer, or a query that has none; see :class:`flamingo_eval.report.viewer.payload.Columns`."""

    trial: int
    position: int
    id: str
    occurrence: int
    text: str
    answer: str
    score: float | None
    failed: str | None
    kind: str
    group: str


@dataclass
class Rows:
    """The rows of a run.

    Attributes:
        trials: the plans.
        items: what was scored; see :func:`flamingo_eval.storage.scores.item_rows`.
        failures: the queries without an answer, and why.
        version: of the run's answers and scores; see ``RunPayload``.
        found: the rows so far.
    """

    trials: Sequence[TrialPlan]
    items: Mapping[ItemKey, ItemRow]
    failures: Mapping[Slot, str]
    version: int
    found: list[Row] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _chunks: dict[int, Columns] = field(default_factory=dict)
    _counts: Counter[tuple[int, bool]] = field(default_factory=Counter)
    _counted: int = 0

    def add_new(self, journal: Journal) -> int:
        """Appends rows for new answers and failures. Returns how many rows were added."""
        before = len(self.found)
        for number, trial in enumerate(self.trials):
            for position in range(len(trial)):
                if (number, position) not in self._seen:
                    row = self._row(number, position, journal)
                    if row is not None:
                        self._seen.add((number, position))
                        self.found.append(row)
        self._chunks.pop(before // CHUNK, None)
        return len(self.found) - before

    def _row(self, number: int, position: int, journal: Journal) -> Row | None:
        trial = self.trials[number]
        id, occurrence = trial.slots[position]
        slot = (*trial.key, id, occurrence)
        prediction, failed = journal.get(slot), self.failures.get(slot)
        if prediction is None and failed is None:
            return None
        example, item = trial.source.data.test[trial.queries[position]], self.items.get((*trial.key, id))
        answer, score = "", None
        if prediction is not None:
            failed, counts = None, trial.last_occurrence[id] == occurrence
            if item is not None and counts and not isinstance(prediction.answer, str):
                answer, score = item.answer, item.score
            else:
                answer = text_of(processed(trial.source.benchmark.answer, prediction.answer))
                if item is not None and counts and item.answer == answer:  # otherwise it was answered again since
                    score = item.score
        reference = trial.source.references.by_id.get(id)
        kind, group = _kinds(reference)
        text = _text(example, fields_in(trial.source.benchmark.prompt.answer), reference)
        return Row(number, position, str(id), occurrence, text, answer, score, failed, kind, group)

    def chunk(self, number: int) -> Columns:
        """A chunk of the rows, as the page gets them."""
        known = self._chunks.get(number)
        if known is None:
            part = self.found[number * CHUNK : (number + 1) * CHUNK]
            columns = [list(column) for column in zip(*part, strict=True)] if part else [[] for _ in Row._fields]
            known = Columns(self.version, *columns)
            if len(part) == CHUNK:
                self._chunks[number] = known
        return known

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Keeps only the wanted rows."""
        self.per_trial()  # counts all rows first: the run's progress does not depend on which are shown
        self.found = [row for row in self.found if wanted(row)]
        self._chunks.clear()
        self._counted = len(self.found)

    def has_chunk(self, number: int) -> bool:
        """Whether there is a chunk with this number."""
        return 0 <= number * CHUNK < len(self.found)

    def per_trial(self) -> Iterator[tuple[int, int]]:
        """For each trial how many queries are answered, and how many have failed."""
        for row in self.found[self._counted :]:
            self._counts[row.trial, row.failed is not None] += 1
        self._counted = len(self.found)
        return ((self._counts[number, False], self._counts[number, True]) for number in range(len(self.trials)))


def _text(example: Example, hidden: set[str], reference: object) -> str:
    """What a query asks; if it asks nothing, the first of its references."""
    asked = " · ".join(text for name, text in example.fields.items() if text and name not in hidden)
    first = reference[0] if isinstance(reference, list | tuple) and reference else ""
    return asked or str(first)


def _kinds(reference: object) -> tuple[str, str]:
    """What sort of query it is: answer type and question type, or the right class name."""
    if isinstance(reference, Annotation):
        return reference.answer_type, reference.question_type
    return (reference, "") if isinstance(reference, str) else ("", "")


def kinds_of(reference: object) -> list[str]:
    """The same, without empty texts."""
    return [kind for kind in _kinds(reference) if kind]
