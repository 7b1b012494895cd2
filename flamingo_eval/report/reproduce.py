"""The table of our numbers beside published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flamingo_eval.analysis.reproduce import Ours, Reproduced, known_differences
from flamingo_eval.report.grid import markdown_grid, text_grid

_HEAD = ["benchmark", "demonstrations", "protocol", "source", "ours on", "shots", "ours", "theirs", "difference",
         "would see", "verdict"]  # fmt: skip


def _body(rows: Sequence[Reproduced], sources: Sequence[str]) -> list[list[str]]:
    body = []
    for row in rows:
        one, setup = row.number, row.setup
        marks = " ".join(f"[{sources.index(number.source) + 1}]" for number in row.numbers)
        protocol = "" if setup is None else setup.protocol + (" (nearest)" if row.nearest else "")
        judged = row.judgement
        difference = "-" if judged.difference is None else f"{judged.difference:+.1f}"
        seen = "-" if judged.seen is None else f"{judged.seen:.1f}"
        body.append([one.row, one.selector, protocol, marks, _on(row), str(one.shots), _shown(row.ours), one.shown,
                     difference, seen, judged.verdict])  # fmt: skip
    return body


def _shown(ours: Ours | None) -> str:
    if ours is None:
        return "-"
    return f"{ours.mean:.1f}" + ("" if ours.std is None else f" ({ours.std:.1f})")


def _on(row: Reproduced) -> str:
    """What our number was measured on."""
    if row.setup is None or row.ours is None:
        return "-"
    orders = f", {row.setup.ensemble} orders" if row.setup.ensemble > 1 else ""
    seeds = ", ".join(map(str, row.ours.seeds))
    return f"{row.setup.split}, {row.ours.count} queries, seed{'s' * (len(row.ours.seeds) > 1)} {seeds}{orders}"


def _sources(rows: Sequence[Reproduced]) -> list[str]:
    return list(dict.fromkeys(number.source for row in rows for number in row.numbers))


def _legend(rows: Sequence[Reproduced]) -> list[str]:
    demo = list(dict.fromkeys(row.ours.demo for row in rows if row.ours and row.ours.demo))
    return [
        *demo,
        "mean (standard deviation over trials); would see: the gap that is called different with 80% probability",
        *(f"[{number}] {source}" for number, source in enumerate(_sources(rows), start=1)),
    ]


def as_text(rows: Sequence[Reproduced]) -> str:
    """A table for the terminal."""
    lines = [*_legend(rows), *(f"note: {line}" for line in known_differences(rows))]
    return text_grid(_HEAD, _body(rows, _sources(rows)), left=5) + "\n" + "".join(f"{line}\n" for line in lines)


def as_markdown(rows: Sequence[Reproduced]) -> str:
    """A GitHub-flavoured Markdown table."""
    lines = [*_legend(rows), *known_differences(rows)]
    table = markdown_grid(_HEAD, _body(rows, _sources(rows)), left=5)
    return table + "\n" + "".join(f"- {line}\n" for line in lines)


def as_json(rows: Sequence[Reproduced]) -> str:
    """Full precision."""
    table = []
    for row in rows:
        one, setup, ours = row.number, row.setup, row.ours
        about = {"benchmark": one.benchmark, "evaluated": one.row, "shots": one.shots, "selector": one.selector}
        run = {} if setup is None else {"protocol": setup.protocol, "split": setup.split, "ensemble": setup.ensemble}
        theirs = {"sources": [number.source for number in row.numbers], "theirs": one.text, "theirs_std": one.std_text}
        own = {"ours": ours and ours.mean, "ours_std": ours and ours.std, "trials": ours and list(ours.values),
               "seeds": ours and list(ours.seeds), "queries": ours and ours.count, "demo": ours.demo if ours else "",
               "error_queries": ours and ours.queries}  # fmt: skip
        judged = {"difference": row.judgement.difference, "would_see": row.judgement.seen,
                  "verdict": row.judgement.verdict, "nearest": row.nearest}  # fmt: skip
        table.append({**about, **run, **theirs, **own, **judged})
    return json.dumps({"rows": table, "known_differences": known_differences(rows)}, indent=1) + "\n"


FORMATS = {"table": as_text, "markdown": as_markdown, "json": as_json}
