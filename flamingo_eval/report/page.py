"""A table as an HTML page to send to others: one file, with the curve and notes that can be folded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from flamingo_eval.core.text import one_line
from flamingo_eval.report.caption import caption_of
from flamingo_eval.report.plot import curves_of, svg_plot
from flamingo_eval.report.shown import Shown, grid_of

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #d0d7de; }
th { color: #57606a; font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
p, li { color: #57606a; font-size: .9rem; overflow-wrap: anywhere; }
.warning { color: #1b1f24; }
svg { max-width: 100%; height: auto; }
"""


def as_page(shown: Sequence[Shown], *, notes: bool = True) -> str:
    """An HTML page; every text is escaped, and nothing is loaded from elsewhere.

    Args:
        shown: the runs, each with cells.
        notes: whether the notes are unfolded.
    """
    title = ", ".join(dict.fromkeys(part.name or part.run.checkpoint.name for part in shown))
    benchmarks = ", ".join(dict.fromkeys(cell.benchmark for part in shown for cell in part.cells))
    return "\n".join(
        [
            "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
            f"<title>{_text(title)}: {_text(benchmarks)}</title>", f"<style>{_STYLE}</style>", "</head>", "<body>",
            f"<h1>{_text(title)}: {_text(benchmarks)}</h1>", _table(shown), *_captions(shown, unfolded=notes),
            svg_plot(curves_of(shown, []), _bars(shown)), "</body>", "</html>", "",
        ]
    )  # fmt: skip


def _bars(shown: Sequence[Shown]) -> str:
    return "95% intervals" if any(part.intervals for part in shown) else "standard deviations over trials"


def _table(shown: Sequence[Shown]) -> str:
    grid = grid_of(shown)

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if i >= grid.left else "" for i in range(len(row)))
        return "".join(f"<{tag}{kind}>{_text(word)}</{tag}>" for kind, word in zip(kinds, row, strict=True))

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in grid.body)
    head = f"<thead>\n<tr>{cells(grid.head, 'th')}</tr>\n</thead>"
    return f'<div class="scroll">\n<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>\n</div>'


def _captions(shown: Sequence[Shown], *, unfolded: bool) -> list[str]:
    lines, notes = [], []
    for part in shown:
        caption, name = caption_of(part), f"{part.name}: " if len(shown) > 1 else ""
        lines.append(f"<p>{_text(name + caption.line)}</p>")
        lines += [f'<p class="warning">{_text(name + warning)}</p>' for warning in caption.warnings]
        notes += [f"<li>{_text(name + note)}</li>" for note in caption.notes]
    if notes:
        summary = f"{len(notes)} note{'s' if len(notes) > 1 else ''}"
        items = "\n".join(notes)
        lines.append(
            f"<details{' open' if unfolded else ''}>\n<summary>{summary}</summary>\n<ul>\n{items}\n</ul>\n</details>"
        )
    return lines


def _text(text: str) -> str:
    return escape(one_line(text))
