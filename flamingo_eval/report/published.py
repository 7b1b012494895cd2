"""The tables of published numbers, and of how each was made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence

from flamingo_eval.analysis.published import Published, command_for
from flamingo_eval.report.grid import markdown_grid, text_grid


def _grid(rows: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    shots = sorted({one.shots for one in rows})
    table: dict[tuple[str, ...], dict[int, str]] = {}
    for one in rows:
        table.setdefault((one.checkpoint, one.row, one.selector, one.source), {})[one.shots] = one.shown
    head = ["checkpoint", "benchmark", "demonstrations", "source", *(f"{k} shots" for k in shots)]
    return head, [[*key, *(values.get(k, "") for k in shots)] for key, values in table.items()]


def as_text(rows: Sequence[Published]) -> str:
    """A table for the terminal."""
    return text_grid(*_grid(rows), left=4)


def as_markdown(rows: Sequence[Published]) -> str:
    """A GitHub-flavoured Markdown table."""
    return markdown_grid(*_grid(rows), left=4)


def _rows(rows: Sequence[Published]) -> list[dict[str, str | int]]:
    """A row per number, with the digits that it was published with."""
    return [
        {"checkpoint": one.checkpoint, "benchmark": one.benchmark, "evaluated": one.row, "shots": one.shots,
         "mean": one.text, "std": one.std_text, "selector": one.selector, "source": one.source}
        for one in rows
    ]  # fmt: skip


def _how_rows(rows: Sequence[Published]) -> list[dict[str, str | int]]:
    """The same, with what is known about how each number was made, and the command that comes nearest."""
    table = []
    for base, one in zip(_rows(rows), rows, strict=True):
        on, source = one.evaluated, one.made_by
        table.append({
            **base,
            "split": "not known" if on is None else on.theirs or on.split,
            "queries": "" if on is None else on.queries,
            "trials": "" if source is None else source.trials,
            "protocol": one.protocols[0] if one.protocols else "",
            "other_protocols": ", ".join(one.protocols[1:]),
            "how": "" if on is None else on.how,
            "command": command_for(one) or "nothing is known of how it was made",
        })  # fmt: skip
    return table


def _as_csv(table: Sequence[Mapping[str, str | int]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*table[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _as_json(table: Sequence[Mapping[str, str | int]]) -> str:
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def _how_grid(rows: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    keys = ("evaluated", "selector", "split", "protocol", "command", "queries", "trials", "shots")
    body = [[*(str(row[key]) for key in keys), one.shown] for row, one in zip(_how_rows(rows), rows, strict=True)]
    return [*keys, "published"], body


def _evidence(rows: Sequence[Published]) -> list[str]:
    """What is known and inferred, by source."""
    lines = []
    for source in dict.fromkeys(one.source for one in rows):
        numbers = [one for one in rows if one.source == source]
        made = numbers[0].made_by
        lines.append(source)
        if made is None:
            lines.append("  nothing is known here of how these were made")
            continue
        ddof = "not known" if made.ddof is None else made.ddof
        lines.append(f"  {made.trials} trial{'s' * (made.trials > 1)}; ddof of deviations: {ddof}")
        lines += [f"  known: {line}" for line in made.known]
        lines += [f"  inferred: {line}" for line in made.inferred]
        evaluated = dict.fromkeys((one.row, one.evaluated.how) for one in numbers if one.evaluated)
        lines += [f"  {row}: {how}" for row, how in evaluated]
    return lines


def how_as_text(rows: Sequence[Published]) -> str:
    """For each number: what it was measured on, its protocol, the command that comes nearest; then the evidence."""
    return text_grid(*_how_grid(rows), left=5) + "\n" + "".join(f"{line}\n" for line in _evidence(rows))


def how_as_markdown(rows: Sequence[Published]) -> str:
    """The same in Markdown."""
    lines = (f"  - {line.strip()}\n" if line.startswith(" ") else f"- {line}\n" for line in _evidence(rows))
    return markdown_grid(*_how_grid(rows), left=5) + "\n" + "".join(lines)


Format = Callable[[Sequence[Published]], str]
FORMATS: Mapping[str, Format] = {
    "table": as_text,
    "markdown": as_markdown,
    "csv": lambda rows: _as_csv(_rows(rows)),
    "json": lambda rows: _as_json(_rows(rows)),
}
HOW: Mapping[str, Format] = {
    "table": how_as_text,
    "markdown": how_as_markdown,
    "csv": lambda rows: _as_csv(_how_rows(rows)),
    "json": lambda rows: _as_json(_how_rows(rows)),
}
