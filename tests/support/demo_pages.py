"""The tables of the demos' pages."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def table_of(page: str, marker: str) -> list[list[str]]:
    """The rows of a page's table between two markers, header first, cells stripped."""
    text = (CHECKOUT / page).read_text().split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def scores_of(page: str) -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """(benchmark, who) -> shots -> (mean, standard deviation), as a demo's page shows them."""
    (_, _, *heads), *rows = table_of(page, "benchmarks")
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    benchmark = ""
    for first, who, *cells in rows:
        benchmark = first.split(",")[0] or benchmark
        found[benchmark, who.strip("*")] = {
            int(head.split()[0]): (float(cell.split()[0]), float(cell.partition("(")[2].rstrip(")") or 0))
            for head, cell in zip(heads, cells, strict=True)
            if cell
        }
    return found
