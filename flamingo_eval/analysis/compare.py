"""Comparison of a run with a baseline: whether they can be compared, and by how much they differ."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from flamingo_eval.analysis.differences import Difference, paired_difference
from flamingo_eval.analysis.evidence import Evidence, kept_defects, scale_of
from flamingo_eval.analysis.statistics import holm
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.protocols import UNPINNED
from flamingo_eval.core.run_settings import SETTINGS

_MUST_AGREE = {
    "protocol": "protocol", "split": "split", "rules": "prompt, decoding or way of drawing",
    "reading": "way of reading the data", "data": "annotation files",
}  # fmt: skip


_MAY_DIFFER = {
    "precision": "precision", "selector": "way of picking demonstrations", "query_set_size": "pool of demonstrations",
    "ensemble": "number of orders", "rendering": "rendering of prompts",
}  # fmt: skip


@dataclass(frozen=True)
class CellDifference:
    """One benchmark at one number of shots.

    Attributes:
        benchmark: its name.
        shots: number of demonstrations.
        metric: title of the metric, whose unit all values have.
        seeds: seeds of the trials that both have.
        run: the run's mean over these trials.
        baseline: the baseline's mean over these trials.
        difference: the paired difference.
        p: two-sided p-value, corrected for the number of cells compared.
        p_drop: one-sided p-value of a drop, corrected likewise.
    """

    benchmark: str
    shots: int
    metric: str
    seeds: tuple[int, ...]
    run: float
    baseline: float
    difference: Difference
    p: float
    p_drop: float


@dataclass(frozen=True)
class Comparison:
    """A run beside a baseline.

    Attributes:
        run: the run's name.
        baseline: the baseline's name.
        rows: the cells that both have.
        warnings: differences besides the checkpoint that do not forbid a comparison, and limits of the result.
        checkpoints: each side's name, and its checkpoint.
        demo: which sides use the demo, and what that means.
        unpinned: names of the sides whose answers come from a server.
    """

    run: str
    baseline: str
    rows: tuple[CellDifference, ...]
    warnings: tuple[str, ...]
    checkpoints: tuple[tuple[str, str], ...] = ()
    demo: tuple[str, ...] = ()
    unpinned: tuple[str, ...] = ()


def compare(run: Evidence, baseline: Evidence, *, all_of_baseline: bool = False) -> Comparison:
    """Compares every cell that both have, over the trials that both have.

    Args:
        run: the run or baseline that is judged.
        baseline: what it is compared with.
        all_of_baseline: require every cell and trial of the baseline.

    Raises:
        UserError: they can't be compared; the message names what differs.
    """
    common = sorted(run.cells.keys() & baseline.cells.keys())
    if not common:
        raise UserError(f"{run.name} and {baseline.name} have no benchmark at the same number of shots in common")
    problems = [*_problems(run, baseline, common)]
    if problems:
        raise UserError(f"{run.name} and {baseline.name} can't be compared: {'; '.join(problems)}")
    missing = [f"{b}, {k} shots, seed {s}" for b, k, s in baseline.trials.keys() - run.trials.keys()]
    if all_of_baseline and missing:
        raise UserError(f"{run.name} lacks what {baseline.name} holds: {'; '.join(sorted(missing)[:5])}"
                        f"{'' if len(missing) <= 5 else f' and {len(missing) - 5} more'}")  # fmt: skip
    found = [_difference(run, baseline, name, shots) for name, shots in common]
    p, p_drop = holm([row[1].p for row in found]), holm([row[1].p_drop for row in found])
    rows = tuple(
        CellDifference(name, shots, run.cells[name, shots].metric, seeds, *means, difference, p[i], p_drop[i])
        for i, ((name, shots), (seeds, difference, means)) in enumerate(zip(common, found, strict=True))
    )
    unpinned = tuple(side.name for side in (run, baseline) if side.about.checkpoint.server is not UNSET)
    warnings = (
        *_warnings(run, baseline),
        *(f"{name}: {UNPINNED}" for name in unpinned),
        *_limits(rows),
        *_defects(run, baseline, common),
    )
    demo = tuple(dict.fromkeys(f"{side.name}: {side.about.demo}" for side in (run, baseline) if side.about.demo))
    return Comparison(run.name, baseline.name, rows, warnings, _checkpoints(run, baseline), demo, unpinned)


def _defects(run: Evidence, baseline: Evidence, common: Sequence[tuple[str, int]]) -> list[str]:
    cells = [(side.cells[key], side.about.identity.rendering) for side in (run, baseline) for key in common]
    return list(dict.fromkeys(line for cell, rendering in cells for line in kept_defects([cell], rendering)))


def _limits(rows: Sequence[CellDifference]) -> Iterator[str]:
    """Warnings about what some of these differences do not show."""
    one = [f"{row.benchmark} at {row.shots} shots" for row in rows if row.difference.of_these_demonstrations]
    if one:
        which = "" if len(one) == len(rows) else f" ({', '.join(one)})"
        yield f"one trial{which}: interval and p hold for these demonstrations only; others may give another difference"
    for row in rows:
        if row.difference.fragile:
            unseen = 100 * row.difference.unseen / row.difference.span
            yield (
                f"{row.benchmark}, {row.shots} shots: {row.difference.clusters} images do not show a large change in "
                f"up to {unseen:.1f}% of all, which could outweigh this difference"
            )


def _checkpoints(run: Evidence, baseline: Evidence) -> tuple[tuple[str, str], ...]:
    """Each side's name, and its checkpoint with the beginning of its digest."""
    found = [(side.name, side.about.checkpoint) for side in (run, baseline)]
    return tuple((name, f"{one.name} ({one.digest[:10]})") for name, one in found)


def _problems(run: Evidence, baseline: Evidence, common: Sequence[tuple[str, int]]) -> Iterator[str]:
    """What makes two runs' numbers incomparable."""
    ours, theirs = run.about.identity, baseline.about.identity
    if ours.num_samples != theirs.num_samples:
        numbers = ["all" if (n := side.num_samples) is None else str(n) for side in (ours, theirs)]
        yield f"the subset differs: --num-samples {' and '.join(numbers)}"
    for name in dict.fromkeys(name for name, _ in common):
        for key, title in _MUST_AGREE.items():
            if key == "rules" and ours.rendering != theirs.rendering:  # a warning names it
                continue
            a, b = (getattr(side.benchmarks.get(name), key, None) or None for side in (ours, theirs))
            if a != b:
                yield f"{name}: the {title} differs ({_as_text(a)} and {_as_text(b)})"
        for title, a_of, b_of in (
            ("references", run.about.references, baseline.about.references),
            ("scoring rules", run.about.scoring, baseline.about.scoring),
        ):
            if title == "scoring rules" and ours.rendering != theirs.rendering:  # answers are cut at other words
                continue
            if a_of.get(name) != b_of.get(name):
                yield f"{name}: the {title} differ"
    for part in (run, baseline):
        cells = [part.cells[key] for key in common]
        partial = [f"{cell.benchmark} at {cell.shots} shots" for cell in cells if not cell.complete]
        if partial:
            yield f"{part.name} is partial: {', '.join(partial)}"


def _as_text(value: object) -> str:
    """A setting as text for a message; only the beginning of a digest."""
    text = "none" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{32}", text) else text


def _ranking(side: Evidence) -> str:
    """What class names were ranked by. Local models give the same quantity as ``prompt_logprobs``."""
    server = side.about.checkpoint.server
    return "prompt_logprobs" if server is UNSET else server.get("ranking", "prompt_logprobs")


def _warnings(run: Evidence, baseline: Evidence) -> Iterator[str]:
    ours, theirs = run.about.identity, baseline.about.identity
    for key, title in _MAY_DIFFER.items():
        a, b = getattr(ours, key), getattr(theirs, key)
        if a != b:
            more = ", and with it decoding and what is shown at 0 shots" if key == "rendering" else ""
            yield f"the {title} differs: {_as_text(a)} in the run, {_as_text(b)} in the baseline{more}"
    rankings = [_ranking(side) for side in (run, baseline)]
    if rankings[0] != rankings[1]:
        yield f"class names were ranked by {rankings[0]} in the run, by {rankings[1]} in the baseline"
    if ours.selector == theirs.selector and ours.retrieval != theirs.retrieval:
        yield f"what decides which demonstrations {ours.selector} picks differs"
    for name in sorted(key for key in ours.named | theirs.named if ours.named.get(key) != theirs.named.get(key)):
        a, b = (side.named.get(name, SETTINGS[name].default) for side in (ours, theirs))
        yield f"{name} differs: {_as_text(a)} in the run, {_as_text(b)} in the baseline"
    for side, other in ((run, baseline), (baseline, run)):
        alone = [f"{b}, {k} shots, seed {s}" for b, k, s in sorted(side.trials.keys() - other.trials.keys())]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            yield f"only in {side.name}, so not compared: {'; '.join(alone[:3])}{more}"


def _difference(
    run: Evidence, baseline: Evidence, name: str, shots: int
) -> tuple[tuple[int, ...], Difference, tuple[float, float]]:
    seeds = tuple(trial.seed for trial in run.cells[name, shots].trials if (name, shots, trial.seed) in baseline.trials)
    if not seeds:
        raise UserError(f"{name} at {shots} shots: {run.name} and {baseline.name} have no trial of the same seed")
    ours, theirs = ([side.trials[name, shots, seed] for seed in seeds] for side in (run, baseline))
    for seed, a, b in zip(seeds, ours, theirs, strict=True):
        if a.influence.keys() != b.influence.keys():
            raise UserError(
                f"{run.name} and {baseline.name} can't be compared: the queries differ ({name}, {shots} shots, "
                f"seed {seed}: {len(a.influence)} and {len(b.influence)}, "
                f"{len(a.influence.keys() & b.influence.keys())} in common)"
            )
    images = {query: image for trial in ours for query, image in trial.images.items()}
    scale = scale_of(run.cells[name, shots], ours[0])
    span = scale.high if math.isfinite(scale.high) else max(100.0, *(trial.highest for trial in (*ours, *theirs)))
    difference = paired_difference([t.moves for t in ours], [t.moves for t in theirs], images, span)
    means = (sum(t.value for t in ours) / len(seeds), sum(t.value for t in theirs) / len(seeds))
    return seeds, difference, means
