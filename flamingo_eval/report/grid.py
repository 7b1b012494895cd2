"""Rows and columns of texts, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_eval.core.text import one_line


def text_grid(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 3) -> str:
    """Columns for the terminal: words in the first ``left`` of them, numbers in the others."""
    head, body = [*map(one_line, head)], [[*map(one_line, row)] for row in body]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        words = [f"{cell:<{width}}" for cell, width in zip(row[:left], widths[:left], strict=True)]
        numbers = [f"{cell:>{width}}" for cell, width in zip(row[left:], widths[left:], strict=True)]
        return "  ".join([*words, *numbers]).rstrip()

    return "\n".join([line(head), "-" * len(line(head)), *map(line, body)]) + "\n"


def markdown_grid(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 3) -> str:
    """A GitHub-flavoured Markdown table: words in the first ``left`` columns, numbers in the others."""
    head, body = [*map(one_line, head)], [[*map(one_line, row)] for row in body]
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ruler, *body))
