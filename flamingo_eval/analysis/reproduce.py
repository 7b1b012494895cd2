"""Compares our numbers with published ones: what to run under which protocol, and whether the two agree.

If both sides ask the same queries, only the demonstrations differ by chance. The yardstick is then the spread over
trials, theirs and ours together (Student's t: three trials on each side give four degrees of freedom). The effect of
the choice of queries counts only if the two sides ask different ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from flamingo_eval.analysis.evidence import Evidence, kept_defects
from flamingo_eval.analysis.published import Evaluated, Published, knowledge
from flamingo_eval.analysis.statistics import t_quantile
from flamingo_eval.analysis.uncertainty import Part, Parts
from flamingo_eval.core.records import Cell
from flamingo_eval.storage.run_records import FIRST_RENDERING

LARGE = 2.0
"""Two numbers are called consistent only if the comparison could have seen a gap of this many points ..."""

DEVIATIONS = 4.5
"""... or a gap of this many of their deviations over trials (ddof 0), if that is more. Three trials on each side with
equal spread can see a gap of 3.7 deviations."""


class Setup(NamedTuple):
    """How one benchmark is run to reproduce some numbers."""

    protocol: str
    selector: str
    benchmark: str
    split: str
    num_samples: int | None
    ensemble: int
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Whether a published number and ours agree.

    Attributes:
        verdict: consistent, differs, too imprecise to tell; or why there is no verdict.
        difference: ours minus theirs.
        seen: the gap that would have been called different with 80% probability.
    """

    verdict: str
    difference: float | None = None
    seen: float | None = None


@dataclass(frozen=True)
class Ours:
    """Our number.

    Attributes:
        values: the value of each trial.
        queries: standard error that comes from which queries were asked.
        count: how many queries a trial has.
        seeds: seeds of the trials.
        rendering: how prompts were rendered.
        demo: the note about the demo's data; empty for real data.
        subset: whether we asked other queries than they did, or fewer.
        own_queries: whether trials ask different queries, so that the spread over trials includes their effect.
        missing: whether answers are missing.
    """

    values: tuple[float, ...]
    queries: float
    count: int
    seeds: tuple[int, ...]
    rendering: str = FIRST_RENDERING
    demo: str = ""
    subset: bool = False
    own_queries: bool = False
    missing: bool = False

    @property
    def mean(self) -> float:
        """The mean over trials."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """The deviation over trials, ddof 0 as in every table; None for one trial."""
        return float(np.std(self.values)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Reproduced:
    """A published number, from all its sources, and ours.

    Attributes:
        numbers: the same number, as each of its sources has it.
        setup: how it was run, or would have been; None if that is unknown.
        ours: our number; None if it could not be run.
        judgement: whether the two agree.
        nearest: among several protocols, whether this one came nearest.
    """

    numbers: tuple[Published, ...]
    setup: Setup | None
    ours: Ours | None
    judgement: Judgement
    nearest: bool = False

    @property
    def number(self) -> Published:
        """The first of them."""
        return self.numbers[0]


def distinct(numbers: Sequence[Published]) -> list[tuple[Published, ...]]:
    """Groups equal numbers from several sources; in a group, those with a deviation come first.

    Numbers are equal if they have the same checkpoint, row, shots, selector and value. Deviations are not compared: a
    source may give none.
    """
    groups: dict[tuple[str, str, int, str, str], list[Published]] = {}
    for one in numbers:
        groups.setdefault((one.checkpoint, one.row, one.shots, one.selector, one.text), []).append(one)
    return [tuple(sorted(group, key=lambda one: not one.std_text)) for group in groups.values()]


def setups_of(group: Sequence[Published], *, every: bool = False) -> list[Setup]:
    """How a number is run: by the likeliest protocol of its first source or, with ``every``, by all possible ones."""
    found: dict[Setup, None] = {}
    for one in group:
        on = one.evaluated
        for protocol in one.protocols if on is not None else ():
            assert on is not None
            seeds = on.seeds if one.selector == "random" else ()
            found[Setup(protocol, one.selector, one.benchmark, on.split, on.num_samples, on.ensemble, seeds)] = None
    return [*found] if every else [*found][:1]


def judge(number: Published, ours: Ours) -> Judgement:
    """Whether a published number and ours agree, as far as these trials and queries tell."""
    difference = ours.mean - number.mean
    if ours.demo:
        return Judgement("not comparable: ours is the demo's", difference)
    if ours.missing:
        return Judgement("not comparable: answers are missing", difference)
    parts = _parts(number, ours)
    if parts is None:
        return Judgement("too imprecise to tell: neither side has several trials", difference)
    seen = parts.reach() + t_quantile(min(part.degrees for part in parts.parts), 0.6) * parts.error
    if not math.isfinite(seen):
        return Judgement("too imprecise to tell: too few queries", difference)
    if abs(difference) > parts.reach():
        return Judgement("differs", difference, seen)
    wanted = max(LARGE, DEVIATIONS * (number.std or 0.0))
    if seen > wanted:
        return Judgement(f"too imprecise to tell: only a gap of {seen:.1f} would have been seen", difference, seen)
    return Judgement("consistent", difference, seen)


def _parts(number: Published, ours: Ours) -> Parts | None:
    """The variance of the difference, in parts; None if neither side shows how far trials lie apart."""
    source, on = number.made_by, number.evaluated
    trials = [(len(ours.values), float(np.var(ours.values, ddof=1)))] if len(ours.values) > 1 else []
    theirs = source.trials if source else 1
    rounding = (10.0**-number.digits) ** 2 / 12
    if number.std is not None and theirs > 1:  # for an unknown ddof, the larger deviation is taken
        trials.append(
            (theirs, (number.std**2 + rounding) * theirs / (theirs - (0 if source and source.ddof == 1 else 1)))
        )
    if not trials:
        return None
    degrees = sum(count - 1 for count, _ in trials)
    of_one = sum((count - 1) * variance for count, variance in trials) / degrees
    among = of_one * (1 / len(ours.values) + 1 / theirs)
    parts = [Part(among, degrees), Part(rounding, math.inf)]
    if (ours.subset or on is None or not on.same) and not ours.own_queries:
        asked = ours.queries**2
        parts.append(Part(asked * (1 + ours.count / (on.queries if on else ours.count)), ours.count - 1))
    return Parts(tuple(parts), math.sqrt(among), None, ours.count)


def ours_of(evidence: Evidence, cell: Cell, on: Evaluated | None, setup: Setup) -> Ours:
    """Our number, from a cell of a run."""
    uncertainty = evidence.uncertainty(cell)
    count = cell.trials[0].queries
    as_theirs = (
        on is not None and (setup.split, setup.num_samples) == (on.split, on.num_samples) and count == on.queries
    )
    asked = [evidence.trials[cell.benchmark, cell.shots, trial.seed].influence.keys() for trial in cell.trials]
    # if all answers are right, or all wrong, the queries' own error is not zero: their number says how far it may be
    unseen = 100 * (1 - 0.05 ** (1 / count)) / 1.96 if cell.metric.endswith("%") else 0.0
    return Ours(
        tuple(trial.value for trial in cell.trials),
        max(uncertainty.queries, unseen) if math.isfinite(uncertainty.queries) else math.inf,
        count,
        tuple(trial.seed for trial in cell.trials),
        evidence.about.identity.rendering,
        evidence.about.demo or "",
        not as_theirs,
        any(queries != asked[0] for queries in asked),
        not cell.complete,
    )


def beside(
    wanted: Sequence[tuple[tuple[Published, ...], Sequence[Setup]]],
    found: Mapping[Setup, Evidence],
    problems: Mapping[Setup, str],
) -> list[Reproduced]:
    """Every published number with ours, if there is one.

    Args:
        wanted: published numbers, each with all its sources, and how it was to be run.
        found: setup -> what was run.
        problems: setup -> why it could not be run.
    """
    rows = []
    for group, setups in wanted:
        if not setups:
            rows.append(Reproduced(group, None, None, Judgement("not run: nothing is known of how it was made")))
        own = [_row(group, setup, found, problems) for setup in setups]
        gaps = [math.inf if row.judgement.difference is None else abs(row.judgement.difference) for row in own]
        for row, gap in zip(own, gaps, strict=True):
            several = sum(math.isfinite(one) for one in gaps) > 1 and not any(one.ours and one.ours.demo for one in own)
            rows.append(replace(row, nearest=several and gap == min(gaps)))
    return rows


def _row(
    group: tuple[Published, ...], setup: Setup, found: Mapping[Setup, Evidence], problems: Mapping[Setup, str]
) -> Reproduced:
    number = group[0]
    cell = found[setup].cells.get((number.benchmark, number.shots)) if setup in found else None
    if cell is None:
        return Reproduced(group, setup, None, Judgement(f"not run: {problems.get(setup, 'no such trial')}"))
    ours = ours_of(found[setup], cell, number.evaluated, setup)
    return Reproduced(group, setup, ours, judge(number, ours))


def known_differences(rows: Sequence[Reproduced]) -> list[str]:
    """What is known to differ between ours and theirs, and what is only inferred, for the numbers shown."""
    setups = [row.setup for row in rows if row.setup is not None]
    protocols = {setup.protocol for setup in setups}
    shown = {(setup.protocol, setup.benchmark) for setup in setups}
    lines = [
        f"{known.benchmark or 'all'} ({known.protocol}): {known.text}"
        for known in knowledge().difference
        if ((known.protocol, known.benchmark) in shown if known.benchmark else known.protocol in protocols)
    ]
    for row in rows:
        on, setup = row.number.evaluated, row.setup
        if on is None or setup is None:
            continue
        if (setup.split, setup.num_samples) != (on.split, on.num_samples):
            asked = f"{setup.num_samples} queries of {setup.split}" if setup.num_samples else f"all of {setup.split}"
            lines.append(f"{row.number.row}: ours on {asked}, as asked for; theirs on {on.theirs or on.split}")
        elif on.theirs or not on.same:
            theirs = f"theirs on {on.theirs}, ours on {setup.split}" if on.theirs else "different queries"
            lines.append(f"{row.number.row}: {theirs} ({on.how})")
    for row in rows:
        if row.ours is not None and row.setup is not None:
            protocol, benchmark = row.setup.protocol, row.number.benchmark
            cell = Cell(benchmark, row.setup.split, row.number.shots, row.setup.selector, protocol, "", ())
            lines += kept_defects([cell], row.ours.rendering)
    for name in sorted({row.ours.rendering for row in rows if row.ours} - {FIRST_RENDERING}):
        lines.append(f"ours: rendering {name}; theirs: OpenFlamingo's prompts, where the source names no other")
    lines.append("which rules made a number is an inference: `flamingo-eval published NAME --how` gives the evidence")
    return list(dict.fromkeys(lines))
