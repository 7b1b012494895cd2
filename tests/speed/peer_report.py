"""What peer.py measured, as Markdown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

NEAR = 1e-4
"""Beams whose scores lie this close may change places."""

GIB = 2**30
Result = dict[str, Any]


def report(found: Result, *, trials: int, memory_batch: int) -> tuple[str, bool]:
    """The report, and whether all texts are the same, near ties apart."""
    texts, equal = _texts(found["texts"])
    parts = [_machine(found), _table(found), _sweep(found, trials), _memory(found, memory_batch), texts]
    return "\n\n".join(part for part in parts if part) + "\n", equal


def best(known: dict[int, Result]) -> tuple[int, Result]:
    """(batch size, result) of the reference's fastest batch size."""
    return min(known.items(), key=lambda item: float(item[1]["seconds"]))


def cpu_name() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def _machine(found: Result) -> str:
    ours = next(iter(found["ours"].values()))
    theirs = best(next(iter(found["reference"].values())))[1]
    return "\n".join(
        [
            f"- machine: {cpu_name()}, {os.cpu_count()} cores, {ours['threads']} threads; float32",
            f"- ours: {_versions(ours)}",
            f"- reference: {_versions(theirs)}",
        ]
    )


def _versions(result: Result) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def _table(found: Result) -> str:
    head = "| shots | reference, s per query (batch; all) | ours, s per query (images) | times as fast |"
    rows = []
    for shots, ours in found["ours"].items():
        batch, theirs = best(found["reference"][shots])
        tried = ", ".join(f"{size}: {result['seconds']:.2f}" for size, result in found["reference"][shots].items())
        rows.append(
            f"| {shots} | {theirs['seconds']:.2f} ({batch}; {tried}) | {ours['seconds']:.3f} "
            f"({ours['images'] / ours['queries']:.3f}) | {theirs['seconds'] / ours['seconds']:.1f} |"
        )
    first = next(iter(found["ours"].values()))
    besides = max(ours["besides"] for ours in found["ours"].values())
    note = (
        f"Ours: one trial of {first['queries']} queries per row; besides, at most {besides:.0f} s for planning, loading "
        "and scoring."
    )
    return "\n".join([head, "|---|---|---|---|", *rows, "", note])


def _sweep(found: Result, trials: int) -> str:
    """Seconds of the whole sweep, and their ratio."""
    runs = found["ours"].values()
    theirs = sum(
        best(found["reference"][shots])[1]["seconds"] * ours["queries"] * trials
        for shots, ours in found["ours"].items()
    )
    per_image = sum(ours["images"] for ours in runs) / sum(ours["distinct"] for ours in runs)
    images = per_image * found["distinct"]
    answering = trials * sum(ours["seconds"] * ours["queries"] - ours["images"] for ours in runs)
    return (
        f"The sweep, {trials} trials: reference {theirs:,.0f} s (extrapolated), ours {answering + images:,.0f} s, of "
        f"which {images:,.0f} s for {found['distinct']} distinct images: **{theirs / (answering + images):.1f} "
        "times as fast**."
    )


def _memory(found: Result, batch: int) -> str:
    lines = []
    for shots, ours in found["memory"].items():
        theirs, known = found["reference"][shots].get(batch), ours["memory"]
        message = f"reference {theirs['peak'] / GIB:.2f} GiB, " if theirs else ""
        share = f", {ours['peak'] / theirs['peak']:.2f} of it" if theirs else ""
        lines.append(
            f"- {shots} shots: {message}ours {ours['peak'] / GIB:.2f} GiB{share} (loading {known['loading'] / GIB:.2f}, "
            f"loaded {known['loaded'] / GIB:.2f}, answering {known['answering'] / GIB:.2f})"
        )
    above = {
        shots: max(1, ours["memory"]["answering"] - ours["memory"]["loaded"]) for shots, ours in found["memory"].items()
    }
    if {4, 32} <= above.keys():
        lines.append(f"- ours above the loaded model: at 32 shots {above[32] / above[4]:.1f} times that at 4")
    return "\n".join([f"Peak memory at batch {batch}:", "", *lines]) if lines else ""


def _texts(texts: Result) -> tuple[str, bool]:
    lines, equal = [], True
    for case, (theirs, ours) in zip(texts["cases"], texts["scores"], strict=True):
        near = abs(theirs - ours) < NEAR
        equal &= near
        lines.append(
            f"- {'near tie' if near else 'DIFFERENT'}: {case['shots']} shots, query {case['query']}, reference's batch "
            f"{case['batch']}: {case['texts'][0]!r} ({theirs:.5f}), ours {case['texts'][1]!r} ({ours:.5f})"
        )
    same = texts["compared"] - len(lines)
    return "\n".join([f"Texts: {texts['compared']} compared, {same} the same.", "", *lines]).strip(), equal
