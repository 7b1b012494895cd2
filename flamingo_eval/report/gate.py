"""The gate for CI: fails when a run is significantly worse than its baseline, or, with a margin, not surely as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from flamingo_eval.report.compare import CellDifference, Comparison
from flamingo_eval.report.table import markdown_grid, text_grid
from flamingo_eval.text import one_line, printable

SIGNIFICANCE = 0.05
_HEAD = ["benchmark", "metric", "shots", "run", "baseline", "difference", "p of a drop (Holm)", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """One cell's.

    Attributes:
        row: what was compared.
        reason: why it fails; None where it passes.
    """

    row: CellDifference
    reason: str | None


def judge(comparison: Comparison, *, max_drop: float, margin: float | None) -> list[Verdict]:
    """Whether each cell passes.

    Args:
        comparison: the run beside its baseline.
        max_drop: a cell fails if its paired drop is larger and significant at 5%, corrected for the number of cells.
        margin: if given, a cell also fails unless it is no worse than this with 95% confidence.
    """
    return [Verdict(row, _reason(row, max_drop, margin)) for row in comparison.rows]


def _reason(row: CellDifference, max_drop: float, margin: float | None) -> str | None:
    drop = -row.difference.value
    if drop > max_drop and row.p_drop < SIGNIFICANCE:
        return f"dropped by {drop:.2f}, more than {max_drop:g} (p {row.p_drop:.4f})"
    if margin is not None and not (bound := row.difference.lower_bound(row.clusters)) >= -margin:
        return f"may be worse by {-bound:.2f}, more than the margin {margin:g}, with these queries"
    return None


def failed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that don't pass."""
    return [verdict for verdict in verdicts if verdict.reason is not None]


def as_text(verdicts: Sequence[Verdict]) -> str:
    """A table for the terminal."""
    return text_grid(_HEAD, _body(verdicts), left=2)


def as_markdown(comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """For a pull request: verdict, table, what was compared."""
    bad = failed(verdicts)
    title = f"**{len(bad)} of {len(verdicts)} cells failed**" if bad else f"**All {len(verdicts)} cells pass**"
    notes = "".join(f"\nnote: {warning}  " for warning in comparison.warnings)
    table = markdown_grid(_HEAD, _body(verdicts), left=2)
    return f"{title}: {one_line(f'{comparison.run} against {comparison.baseline}')}\n\n{table}{printable(notes)}"


def _body(verdicts: Sequence[Verdict]) -> list[list[str]]:
    return [
        [v.row.benchmark, v.row.metric, str(v.row.shots), f"{v.row.run:.2f}", f"{v.row.baseline:.2f}",
         f"{v.row.difference.value:+.2f}", f"{v.row.p_drop:.4f}", v.reason or "passes"]
        for v in verdicts
    ]  # fmt: skip


def as_junit(comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """JUnit XML: a test case per cell."""
    counts = {"tests": str(len(verdicts)), "failures": str(len(failed(verdicts)))}
    suite = ElementTree.Element("testsuite", {"name": "flamingo-eval check", **counts})
    for verdict in verdicts:
        row = verdict.row
        case = ElementTree.SubElement(
            suite, "testcase", classname=one_line(row.benchmark), name=one_line(f"{row.shots} shots, {row.metric}")
        )
        if verdict.reason is not None:
            told = f"{row.run:.4f} against {row.baseline:.4f} ({comparison.run} against {comparison.baseline})"
            ElementTree.SubElement(case, "failure", message=one_line(verdict.reason)).text = one_line(told)
    suites = ElementTree.Element("testsuites", counts)
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
