"""The caption of a table: one line, warnings without which its numbers can't be read, and notes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from flamingo_eval.analysis.evidence import kept_defects
from flamingo_eval.core.prompting import ELSEWHERE, Chat
from flamingo_eval.core.records import Cell, Notes
from flamingo_eval.core.run_settings import SHOWN_TO_MODEL
from flamingo_eval.core.text import one_line
from flamingo_eval.report.shown import Shown
from flamingo_eval.storage.run_records import FIRST_RENDERING, RunRecord


@dataclass(frozen=True)
class Caption:
    """The lines under a table.

    Attributes:
        line: trials, queries, protocol, demonstrations, checkpoint.
        warnings: what the numbers can't be read without: the demo, missing answers, what the reference gets wrong.
        notes: everything else that is known about them.
    """

    line: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """All lines of the caption."""
        return [self.line, *self.warnings, *self.notes]


def legend(shown: Sequence[Shown], *, notes: bool = True) -> list[str]:
    """The lines under a table of these runs; without notes, the last line states how many there are."""
    lines, left = [], 0
    for part in shown:
        caption = caption_of(part)
        own = caption.lines if notes else [caption.line, *caption.warnings]
        left += 0 if notes else len(caption.notes)
        lines += [one_line(line if len(shown) == 1 else f"{part.name}: {line}") for line in own]
    return [*lines, *([f"{left} note{'s' if left > 1 else ''} more: --notes"] if left else [])]


def caption_of(part: Shown) -> Caption:
    """The caption of a run's numbers."""
    cells, run = part.cells, part.run
    if not part.intervals:
        return _caption(cells, run, part.notes, "mean (standard deviation, ddof 0)")
    made = _caption(cells, run, part.notes, "mean [95% interval]")
    interval = "[95% interval]: queries, clustered by image, and, where there are several trials, demonstrations"
    one = "an interval of one trial does not cover demonstrations: others may give another number"
    rare = [f"{name} at {shots} shots" for (name, shots), found in part.intervals.items() if found.rare]
    few = f"{', '.join(rare)}: fewer than ten of the rarer kind, too few for an interval of a ROC AUC"
    warnings = [*([one] if any(len(cell.trials) == 1 for cell in cells) else []), *([few] if rare else [])]
    return Caption(made.line, (*warnings, *made.warnings), (interval, *made.notes))


def caption_lines(cells: Sequence[Cell], run: RunRecord, notes: Notes) -> list[str]:
    """All lines under a table of these cells."""
    return caption_of(Shown("", cells, run, notes)).lines


def _caption(cells: Sequence[Cell], run: RunRecord, notes: Notes, what: str) -> Caption:
    trials = sorted({tuple(t.seed for t in cell.trials) for cell in cells})
    queries = sorted({t.queries for cell in cells for t in cell.trials})
    words = [
        f"{what} over {len(seeds)} trials, seeds {', '.join(map(str, seeds))}"
        if len(seeds) > 1
        else f"one trial, seed {seeds[0]}"
        for seeds in trials
    ]
    parts = [
        *words,
        f"{' or '.join(map(str, queries))} queries per trial",
        f"protocol {_join(cell.protocol for cell in cells)}",
        *_shown(cells, run),
        *_rendering(cells, run),
        f"checkpoint {run.checkpoint.name} ({run.checkpoint.digest[:10]})",
    ]
    about = run.checkpoint.notes or ()
    # the model is not here, so we can't know how it answers
    given = run.identity.rendering == ELSEWHERE.name or run.checkpoint.server is not UNSET
    partial = "* answers are missing: a partial number, not comparable with others"
    warnings = [
        *([] if all(cell.complete for cell in cells) else [partial]),
        *notes.warnings,
        *(about if given else ()),
        *([run.demo] if run.demo else []),
        *kept_defects(cells, run.identity.rendering),
    ]
    more = [*_retrieval(cells, run), *(() if given else about), *notes.others]
    return Caption("; ".join(parts), tuple(warnings), (*more, *_alternative_scores(cells)))


def _shown(cells: Sequence[Cell], run: RunRecord) -> list[str]:
    """Which demonstrations a model was shown; empty for answers given elsewhere, where this is not known."""
    if run.identity.rendering == ELSEWHERE.name:
        return []
    return [f"{_join(cell.selector for cell in cells)} demonstrations{_pools(run)}{_orders(run)}"]


def _alternative_scores(cells: Sequence[Cell]) -> list[str]:
    """A line for each cell and protocol by whose rules the same answers score differently."""
    lines = []
    for cell in cells:
        for protocol in cell.trials[0].alternatives:
            mean = sum(trial.alternatives[protocol] for trial in cell.trials) / len(cell.trials)
            if f"{mean:.2f}" != f"{cell.mean:.2f}":
                lines.append(f"{cell.benchmark}, {cell.shots} shots: {mean:.1f} by the rules of protocol {protocol}")
    return lines


def _join(words: Any) -> str:
    return ", ".join(sorted(set(words)))


def _pools(run: RunRecord) -> str:
    sizes = sorted({part.pool for part in run.settings.benchmarks.values()})
    return f" from a pool of {' or '.join(map(str, sizes))}" if run.identity.retrieval is None else ""


def _rendering(cells: Sequence[Cell], run: RunRecord) -> list[str]:
    """How prompts were rendered; empty for the first rendering, and for answers given elsewhere."""
    identity = run.identity
    if identity.rendering in (FIRST_RENDERING, ELSEWHERE.name):
        return []
    words = [f"rendering {identity.rendering}"]
    if any(cell.shots == 0 for cell in cells):
        zero = "no demonstrations" if identity.rendering == Chat.name else "text-only demonstrations"
        words.append(f"{zero} at 0 shots")
    for name in SHOWN_TO_MODEL:
        if name in identity.named:
            value = identity.named[name]
            words.append(f"{name.replace('_', ' ')} {value if isinstance(value, str | int) else json.dumps(value)}")
    return words


def _retrieval(cells: Sequence[Cell], run: RunRecord) -> list[str]:
    """How demonstrations were retrieved, and why such a table has no standard deviation."""
    identity = run.identity
    selector, part = identity.selector, identity.retrieval
    if part is None:
        return []
    variants = [name.replace("_", " ") for name in ("unique_images", "exclude_same_image") if getattr(part, name)]
    lines = [
        f"{selector}: the most similar of all training examples by {part.encoder} ({part.encoder_digest[:10]})"
        + "".join(f", {variant}" for variant in variants)
    ]
    lines += [f"{selector}: {note}" for note in (run.encoder.notes or () if run.encoder else ())]
    if identity.num_samples is None and identity.ensemble == 1 and all(len(c.trials) == 1 for c in cells):
        lines.append(f"{selector} over all queries picks the same with every seed: one trial, so no standard deviation")
    return lines


def _orders(run: RunRecord) -> str:
    orders = run.identity.ensemble
    return f" in up to {orders} orders" if orders > 1 else ""
