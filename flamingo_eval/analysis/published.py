"""Numbers that others have published (``results/published.csv``), each with its source."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import resource_folder


@cache
def knowledge() -> dict[str, Any]:
    """``results/published.toml``: which harness made which number, and what is known to differ."""
    return tomllib.loads((resource_folder("results") / "published.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        checkpoint: as released, without its owner.
        benchmark: ours; ``row`` is what the source evaluated, where that is less or other.
        row: the benchmark as the file has it.
        shots: number of demonstrations.
        mean: in our unit (CIDEr x 100, percent).
        std: over trials; None where the source gives none.
        selector: how demonstrations were picked.
        source: paper and table, or model card.
    """

    checkpoint: str
    benchmark: str
    row: str
    shots: int
    mean: float
    std: float | None
    selector: str
    source: str

    @property
    def protocol(self) -> str | None:
        """Of the harness that made it; None for models that are not released."""
        if "quoting" in self.source:
            return None
        fitting = (one["protocol"] for one in knowledge()["harness"] if self.source.startswith(one["source"]))
        return next(fitting, None)


@cache
def published() -> tuple[Published, ...]:
    """All of them, in the file's order."""
    names: dict[str, str] = knowledge()["rows"]
    with (resource_folder("results") / "published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                row["checkpoint"], names.get(row["benchmark"], row["benchmark"]), row["benchmark"], int(row["shots"]),
                float(row["mean"]), float(row["std"]) if row["std"] else None, row["selection"], row["source"],
            )
            for row in csv.DictReader(file)
        )  # fmt: skip


def chosen(
    checkpoint: str | None = None, benchmarks: Sequence[str] = (), selector: str | None = None
) -> list[Published]:
    """Those of a checkpoint, of some benchmarks, by a way of picking demonstrations.

    Args:
        checkpoint: its name, with or without its owner, or a short name; None for all.
        benchmarks: their names; none for all.
        selector: its name; None for all.

    Raises:
        UserError: there are none; the message lists the checkpoints that there are.
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


def curves(rows: Sequence[Published]) -> Iterator[tuple[str, list[Published]]]:
    """For a plot: a label, and the points of one checkpoint, source and way of picking demonstrations."""
    groups: dict[tuple[str, ...], list[Published]] = {}
    for one in rows:
        groups.setdefault((one.checkpoint, one.selector, one.source), []).append(one)
    for (checkpoint, selector, source), points in groups.items():
        yield f"{checkpoint}, {selector}, {source}", sorted(points, key=lambda one: one.shots)
