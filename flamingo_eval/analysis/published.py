"""Numbers that others have published (``results/published.csv``), each with its source, and what is known about how it
was made (``results/published.toml``)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from msgspec import Meta

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import resource_folder
from flamingo_eval.core.reading import read_toml
from flamingo_eval.core.schema import Record, typed


class Source(Record, frozen=True, kw_only=True):
    """How the numbers of a source were made.

    Attributes:
        begins: the beginning of the source's text.
        protocols: protocols that it may have used, the likeliest first; empty if unknown.
        trials: number of trials.
        ddof: ddof of the deviations; None if unknown.
        known: what is known, and from where.
        inferred: what is not known but likely, and why.
    """

    begins: str
    protocols: tuple[str, ...]
    trials: Annotated[int, Meta(ge=1)] = 1
    ddof: int | None = None
    known: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()


class Evaluated(Record, frozen=True, kw_only=True):
    """What a number was measured on.

    Attributes:
        source: the beginning of its source's text; empty for all other sources.
        benchmark: as the source calls it.
        split: the split that we run.
        theirs: their split, if it is another one or not certain.
        queries: how many queries they asked.
        num_samples: how many we ask; None for all.
        ensemble: number of orders of the demonstrations.
        seeds: seeds of their trials, if these are known; empty for the protocol's.
        same: whether both sides ask the same queries.
        how: how all this is known.
    """

    source: str
    benchmark: str
    split: str
    theirs: str = ""
    queries: int
    num_samples: int | None = None
    ensemble: int = 1
    seeds: tuple[int, ...] = ()
    same: bool = True
    how: str


class KnownDifference(Record, frozen=True, kw_only=True):
    """A known difference that remains; without ``benchmark``, in all benchmarks of the protocol."""

    protocol: str
    benchmark: str = ""
    text: str


class _Knowledge(Record, frozen=True, kw_only=True):
    rows: dict[str, str]
    source: tuple[Source, ...]
    evaluated: tuple[Evaluated, ...]
    difference: tuple[KnownDifference, ...]


@cache
def knowledge() -> _Knowledge:
    """The content of ``results/published.toml``."""
    path = resource_folder("results") / "published.toml"
    return typed(read_toml(path), _Knowledge, str(path))


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        checkpoint: its name as released, without its owner.
        benchmark: our benchmark; ``row`` is what the source evaluated, if that is less or something else.
        row: the benchmark as the file has it.
        shots: number of demonstrations.
        text: the mean as it was published, in our unit (CIDEr x 100, percent).
        std_text: the deviation over trials as it was published; empty where the source gives none.
        selector: how demonstrations were picked.
        source: paper and table, or model card.
    """

    checkpoint: str
    benchmark: str
    row: str
    shots: int
    text: str
    std_text: str
    selector: str
    source: str

    @property
    def mean(self) -> float:
        """The mean."""
        return float(self.text)

    @property
    def std(self) -> float | None:
        """The deviation over trials; None where the source gives none."""
        return float(self.std_text) if self.std_text else None

    @property
    def shown(self) -> str:
        """Mean and deviation with their own digits."""
        return self.text + (f" ({self.std_text})" if self.std_text else "")

    @property
    def digits(self) -> int:
        """Number of digits after the decimal point."""
        return len(self.text.partition(".")[2])

    @property
    def made_by(self) -> Source | None:
        """How it was made; None if nothing is known, as for models that are not released."""
        if "quoting" in self.source:
            return None
        return next((one for one in knowledge().source if self.source.startswith(one.begins)), None)

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that it may have used, the likeliest first."""
        return self.made_by.protocols if self.made_by else ()

    @property
    def evaluated(self) -> Evaluated | None:
        """What it was measured on; None if nothing is known."""
        if self.made_by is None:
            return None
        rows = [one for one in knowledge().evaluated if one.benchmark == self.row]
        fitting = (one for one in rows if self.source.startswith(one.source))
        return max(fitting, key=lambda one: len(one.source), default=None)


@cache
def published() -> tuple[Published, ...]:
    """All published numbers, in the file's order."""
    names = knowledge().rows
    with (resource_folder("results") / "published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                row["checkpoint"], names.get(row["benchmark"], row["benchmark"]), row["benchmark"], int(row["shots"]),
                row["mean"], row["std"], row["selection"], row["source"],
            )
            for row in csv.DictReader(file)
        )  # fmt: skip


def chosen(
    checkpoint: str | None = None, benchmarks: Sequence[str] = (), selector: str | None = None
) -> list[Published]:
    """The published numbers of a checkpoint, of some benchmarks, by a way of picking demonstrations.

    Args:
        checkpoint: its name, with or without its owner, or a short name; None for all.
        benchmarks: their names; none for all.
        selector: its name; None for all.

    Raises:
        UserError: there are none; the message lists the checkpoints that have numbers.
    """
    name = None if checkpoint is None else registry.checkpoint_name(checkpoint).rpartition("/")[2]
    found = [
        one
        for one in published()
        if name in (None, one.checkpoint)
        and (not benchmarks or one.benchmark in benchmarks)
        and selector in (None, one.selector)
    ]
    if not found:
        names = ", ".join(dict.fromkeys(one.checkpoint for one in published()))
        wanted = " and ".join([*["these benchmarks"] * bool(benchmarks), *["this --select"] * (selector is not None)])
        raise UserError(
            f"no published numbers{f' for {checkpoint}' if checkpoint else ''}{f' with {wanted}' if wanted else ''}; "
            f"checkpoints with numbers: {names}"
        )
    return found


def command_for(one: Published) -> str:
    """The command that comes nearest to how a number was made; empty if there is none."""
    on = one.evaluated
    if on is None or not one.protocols:
        return ""
    options = [
        f"--protocol {one.protocols[0]}", f"--split {on.split}", f"--shots {one.shots}",
        *([f"--num-samples {on.num_samples}"] if on.num_samples else []),
        *([f"--ensemble {on.ensemble}"] if on.ensemble > 1 else []),
        *([f"--seeds {','.join(map(str, on.seeds))}"] if on.seeds else []),
        *([f"--select {one.selector}"] if one.selector != "random" else []),
    ]  # fmt: skip
    name = one.benchmark.replace("_", "-")
    return f"flamingo-eval {name} --checkpoint openflamingo/{one.checkpoint} --data-root DIR {' '.join(options)}"


def curves(rows: Sequence[Published]) -> Iterator[tuple[str, list[Published]]]:
    """For a plot: a label, and the points of one checkpoint, source and way of picking demonstrations."""
    groups: dict[tuple[str, ...], list[Published]] = {}
    for one in rows:
        groups.setdefault((one.checkpoint, one.selector, one.source), []).append(one)
    for (checkpoint, selector, source), points in groups.items():
        yield f"{checkpoint}, {selector}, {source}", sorted(points, key=lambda one: one.shots)
