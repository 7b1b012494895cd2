"""The gate's verdicts, for the terminal, a pull request and JUnit."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from flamingo_eval.analysis.compare import Comparison
from flamingo_eval.analysis.gate import Verdict, failed
from flamingo_eval.core.text import one_line, printable
from flamingo_eval.report.grid import markdown_grid, text_grid

_HEAD = ["benchmark", "metric", "shots", "run", "baseline", "difference", "p of a drop (Holm)", "would find", "verdict"]


def as_text(verdicts: Sequence[Verdict]) -> str:
    """A table for the terminal."""
    return text_grid(_HEAD, _body(verdicts), left=2) + "\n" + "".join(f"{line}\n" for line in _legend(verdicts))


def _legend(verdicts: Sequence[Verdict]) -> list[str]:
    """What the ``would find`` column means, and which cells pass that could not have found a drop of ``--max-drop``."""
    lines = [
        f"would find: the drop that is found with {100 * verdicts[0].power:g}% probability (5%, one-sided, corrected)"
    ]
    blind = [f"{v.row.benchmark} at {v.row.shots} shots" for v in verdicts if v.blind and v.reason is None]
    if blind:
        lines.append(
            f"blind: {', '.join(blind)}: a drop of --max-drop could not have been seen with these queries and trials; "
            "--require-power makes that a failure"
        )
    return lines


def as_markdown(comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """For a pull request: verdict, table, what was compared."""
    bad = failed(verdicts)
    title = f"**{len(bad)} of {len(verdicts)} cells failed**" if bad else f"**All {len(verdicts)} cells pass**"
    lines = [*_legend(verdicts), *comparison.demo, *(f"note: {warning}" for warning in comparison.warnings)]
    notes = "".join(f"\n{line}  " for line in lines)
    table = markdown_grid(_HEAD, _body(verdicts), left=2)
    return f"{title}: {one_line(f'{comparison.run} against {comparison.baseline}')}\n\n{table}{printable(notes)}\n"


def _body(verdicts: Sequence[Verdict]) -> list[list[str]]:
    return [
        [v.row.benchmark, v.row.metric, str(v.row.shots), f"{v.row.run:.2f}", f"{v.row.baseline:.2f}",
         f"{v.row.difference.value:+.2f}", f"{v.row.p_drop:.4f}", f"{v.finds:.2f}", _outcome(v)]
        for v in verdicts
    ]  # fmt: skip


def _outcome(verdict: Verdict) -> str:
    return verdict.reason or ("passes; blind" if verdict.blind else "passes")


def as_junit(comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """JUnit XML: a test case per cell."""
    counts = {"tests": str(len(verdicts)), "failures": str(len(failed(verdicts)))}
    suite = ElementTree.Element("testsuite", {"name": "flamingo-eval check", **counts})
    for verdict in verdicts:
        row = verdict.row
        case = ElementTree.SubElement(
            suite, "testcase", classname=one_line(row.benchmark), name=one_line(f"{row.shots} shots, {row.metric}")
        )
        output = [verdict.seen, *comparison.demo, *comparison.warnings]
        if verdict.reason is not None:
            detail = f"{row.run:.4f} against {row.baseline:.4f} ({comparison.run} against {comparison.baseline})"
            ElementTree.SubElement(case, "failure", message=one_line(verdict.reason)).text = one_line(detail)
        ElementTree.SubElement(case, "system-out").text = one_line("; ".join(output))
    suites = ElementTree.Element("testsuites", counts)
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
