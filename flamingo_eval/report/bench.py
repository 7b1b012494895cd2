"""What ``bench`` prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from flamingo_eval.analysis.bench import Bench, Measured, Stability
from flamingo_eval.report.grid import markdown_grid, text_grid

PARTS = ("vision", "prefill", "decode")
WORKERS = (1, 2, 4, 8, 16, 32)
"""Numbers of workers for which the time of the run is estimated."""


def shares(parts: dict[str, float], wall: float) -> str:
    """``vision 8%, prefill 52%, ...``: shares of the wall time; both are given in seconds."""
    return ", ".join(f"{name} {100 * seconds / wall:.0f}%" for name, seconds in parts.items() if wall > 0)


def duration(seconds: float) -> str:
    """Seconds in the units people use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _grid(bench: Bench) -> tuple[list[str], list[list[str]]]:
    head = ["shots", "queries/s", "batch", *PARTS, "idle", "GFLOP per query", "prefill of peak", "decode of peak"]
    return head, [_row(bench, row) for row in bench.rows]


def _row(bench: Bench, row: Measured) -> list[str]:
    parts = [f"{100 * row.parts.get(name, 0.0) / row.wall:.0f}%" for name in PARTS]
    flops = sum(value for key, value in row.flops.items() if key != "vision")
    used = [_utilisation(bench, row, name) for name in ("prefill", "decode")]
    return [str(row.shots), f"{row.queries / row.wall:.2f}", str(row.batch), *parts,
            f"{100 * row.idle / row.wall:.0f}%", f"{flops / 1e9:.1f}", *used]  # fmt: skip


def _utilisation(bench: Bench, row: Measured, part: str) -> str:
    """Share of the machine's matrix-product peak that prefill or decoding reaches."""
    seconds = row.parts.get(part, 0.0) / row.queries
    if bench.work is None or not seconds:
        return "-"
    return f"{100 * row.flops.get(part, 0.0) / seconds / bench.work.peak:.0f}%"


def _lines(bench: Bench) -> list[str]:
    asked = ", ".join(str(row.queries) for row in bench.rows)
    lines = [
        f"measured on {asked} queries; {bench.device}, {bench.precision}; shares of time, and of matrix-product peak"
    ]
    if bench.image is not None and bench.work is not None:
        vision = bench.rows[-1].flops.get("vision", 0.0) / bench.image / bench.work.peak
        lines.append(f"per image: {1000 * bench.image:.1f} ms to encode ({100 * vision:.0f}% of peak), once; "
                     f"{1000 * bench.read:.1f} ms to read, in parallel")  # fmt: skip
    if bench.work is not None:
        lines.append(f"peak of this machine's matrix product: {bench.work.peak / 1e9:.0f} GFLOP/s; "
                     f"memory: {bench.work.memory / 2**30:.2f} GiB at most")  # fmt: skip
    lines.append(f"scoring: {1000 * bench.metric:.2f} ms per query")
    lines.append(f"complete run: {sum(bench.all_queries.values()):,} queries, {bench.images:,} distinct images, "
                 f"about {duration(bench.estimate)}")  # fmt: skip
    lines.append(_on_workers(bench))
    lines += [_stability(row) for row in bench.stability]
    return [*lines, *([bench.demo] if bench.demo else [])]


def _on_workers(bench: Bench) -> str:
    """How long the run would take on more machines like this one."""
    times = ", ".join(f"{duration(bench.on(count))} on {count}" for count in WORKERS)
    return (
        f"with --executor ray, workers like this machine: about {times}; {duration(bench.load)} of it to load "
        "the model, and one process scores"
    )


def _stability(row: Stability) -> str:
    counts = ", ".join(f"{moved} of {row.queries} in batches of {size}" for size, moved in row.moved.items())
    off = "" if row.largest is None else f"; log-likelihoods differ by at most {row.largest:.1e}"
    compared = f"answers other than in batches of {row.batch}: {counts or 'none to compare'}"
    return f"stability, {row.shots} shots: {compared}{off}"


def as_text(bench: Bench) -> str:
    """For the terminal."""
    return text_grid(*_grid(bench), left=0) + "\n" + "\n".join(_lines(bench)) + "\n"


def as_markdown(bench: Bench) -> str:
    """A table with a list under it."""
    return markdown_grid(*_grid(bench), left=0) + "\n" + "".join(f"- {line}\n" for line in _lines(bench))


def as_json(bench: Bench) -> str:
    """Everything, unrounded."""
    on_workers = {str(count): bench.on(count) for count in WORKERS}
    return json.dumps({**asdict(bench), "estimate": bench.estimate, "on_workers": on_workers}, indent=1) + "\n"


FORMATS: dict[str, Callable[[Bench], str]] = {"table": as_text, "markdown": as_markdown, "json": as_json}
