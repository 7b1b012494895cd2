"""Answer: ask the model what the journal does not know yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flamingo_eval.engine.journal import Entry, Journal, slot_of
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.errors import DataError, QueryError
from flamingo_eval.files import digest, file_digest
from flamingo_eval.nouns import Decoding, Prediction, Query
from flamingo_eval.ports import Model


@dataclass(frozen=True)
class Pending:
    """A query that has to be answered, and the key its answer will have."""

    query: Query
    key: str


@dataclass(frozen=True)
class Failure:
    """A query that could not be answered."""

    query: Query
    reason: str


def image_digests(root: Path) -> Callable[[str], str]:
    """A function from a picture's relative path to a digest of its content; ``unreadable`` where there is none."""

    @cache
    def of(relative: str) -> str:
        try:
            return file_digest(root / relative)
        except OSError:
            return "unreadable"

    return of


def answer_key(query: Query, decoding: Decoding, model: str, image_digest: Callable[[str], str]) -> str:
    """Digest of everything that determines a query's answer.

    Args:
        model: digest of the model, its precision included.
        image_digest: from a picture's path to a digest of its content.
    """
    return digest(
        {
            "query": [query.benchmark, query.shots, query.seed, query.id],
            "demonstrations": list(query.demonstration_ids),
            "prompt": query.prompt.text,
            "images": [image_digest(path) for path in query.prompt.images],
            "decoding": [getattr(decoding, name) for name in Decoding.__slots__],
            "model": model,
        }
    )


def find_pending(trials: Iterable[TrialPlan], journal: Journal, model: str) -> Iterator[Pending]:
    """The queries whose answers the journal does not hold, in plan order."""
    digests: dict[Path, Callable[[str], str]] = {}
    for trial in trials:
        of = digests.setdefault(trial.source.root, image_digests(trial.source.root))
        for query in trial:
            key = answer_key(query, trial.source.benchmark.decoding, model, of)
            known = journal.get(slot_of(query))
            if known is None or known.key != key:
                yield Pending(query, key)


def answer(
    pending: Sequence[Pending],
    decodings: Mapping[str, Decoding],
    model: Model,
    journal: Journal,
    *,
    batch_size: int,
    extra: Mapping[str, Any],
) -> list[Failure]:
    """Answers queries batch by batch; every batch is journalled before the next begins.

    Args:
        pending: what to answer.
        decodings: benchmark -> how its text is generated.
        extra: fields added to every journal line.

    Returns:
        The queries that can't be answered (unreadable pictures, prompts too long); all others are.
    """
    failures: list[Failure] = []
    with tqdm(total=len(pending), unit="query", desc="answering", file=sys.stderr, mininterval=_interval()) as bar:
        for decoding, batch in _batches(pending, decodings, batch_size):
            ready, prepared = [], []
            for item in batch:
                try:
                    prepared.append(model.prepare(item.query.prompt, decoding))
                    ready.append(item)
                except QueryError as error:
                    failures.append(Failure(item.query, str(error)))
            if ready:
                texts = model.generate(prepared, decoding)
                entries = [
                    Entry(slot_of(item.query), Prediction(item.key, raw))
                    for item, raw in zip(ready, texts, strict=True)
                ]
                journal.append(entries, extra)
            bar.update(len(batch))
    return failures


def _interval() -> float:
    """Seconds between updates of the progress line: rarely where it ends up in a log file."""
    return 0.2 if sys.stderr.isatty() else 10.0


def _batches(
    pending: Sequence[Pending], decodings: Mapping[str, Decoding], size: int
) -> Iterator[tuple[Decoding, list[Pending]]]:
    """Batches of at most ``size`` queries of one benchmark and one number of shots (so of like length)."""
    batch: list[Pending] = []
    for item in pending:
        if batch and (len(batch) == size or _kind(item) != _kind(batch[0])):
            yield decodings[batch[0].query.benchmark], batch
            batch = []
        batch.append(item)
    if batch:
        yield decodings[batch[0].query.benchmark], batch


def _kind(item: Pending) -> tuple[str, int]:
    return (item.query.benchmark, item.query.shots)


def describe_failures(failures: Sequence[Failure], at_most: int = 10) -> DataError:
    """One error for all queries that could not be answered."""
    reasons = dict.fromkeys(failure.reason for failure in failures)
    listed = "\n  ".join(list(reasons)[:at_most])
    more = f"\n  and {len(reasons) - at_most} more" if len(reasons) > at_most else ""
    return DataError(
        f"{len(failures)} queries could not be answered; everything else is answered and saved. "
        f"The reasons:\n  {listed}{more}"
    )
