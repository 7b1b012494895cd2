"""The table of a comparison."""

from __future__ import annotations

import json
import math

from flamingo_eval.analysis.compare import Comparison
from flamingo_eval.report.grid import markdown_grid, text_grid

_HEAD = ["benchmark", "metric", "shots", "trials", "run", "baseline", "difference", "95% interval", "p", "p (Holm)"]


def _body(comparison: Comparison) -> list[list[str]]:
    return [
        [row.benchmark, row.metric, str(row.shots), str(len(row.seeds)), f"{row.run:.2f}", f"{row.baseline:.2f}",
         f"{row.difference.value:+.2f}", f"{row.difference.low:+.2f} to {row.difference.high:+.2f}",
         _p(row.difference.p), _p(row.p)]
        for row in comparison.rows
    ]  # fmt: skip


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _caption(comparison: Comparison) -> list[str]:
    tests = {len(row.seeds) > 1 for row in comparison.rows}
    kinds = [*(["sign-flip permutation for one trial"] if False in tests else []),
             *(["t over trials and queries for several"] if True in tests else [])]  # fmt: skip
    least = max(row.difference.detectable(len(comparison.rows)) for row in comparison.rows)
    return [
        *(f"{name}: checkpoint {checkpoint}" for name, checkpoint in comparison.checkpoints),
        f"{comparison.run} minus {comparison.baseline}: same queries and trials, paired by query, clustered by image",
        f"p: two-sided, {', '.join(kinds)}; Holm: corrected for the number of rows",
        f"a drop of {least:.2f} would be found in any row with 80% probability (5%, one-sided, corrected)",
        *comparison.demo,
        *(f"note: {warning}" for warning in comparison.warnings),
    ]


def as_text(comparison: Comparison) -> str:
    """A table for the terminal."""
    return text_grid(_HEAD, _body(comparison), left=2) + "\n" + "\n".join(_caption(comparison)) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """A GitHub-flavoured Markdown table."""
    return markdown_grid(_HEAD, _body(comparison), left=2) + "\n" + "  \n".join(_caption(comparison)) + "\n"


def as_json(comparison: Comparison) -> str:
    """Full precision; null where a number can't be estimated, since there is one image or none."""
    rows = [
        {"benchmark": row.benchmark, "shots": row.shots, "metric": row.metric, "seeds": list(row.seeds), "run": row.run,
         "baseline": row.baseline, "difference": row.difference.value, "low": _number(row.difference.low),
         "high": _number(row.difference.high), "standard_error": _number(row.difference.error), "p": row.difference.p,
         "p_drop": row.difference.p_drop, "p_corrected": row.p, "p_drop_corrected": row.p_drop,
         "queries": row.difference.queries, "clusters": row.difference.clusters,
         "detectable_drop": _number(row.difference.detectable(len(comparison.rows)))}
        for row in comparison.rows
    ]  # fmt: skip
    names = {"run": comparison.run, "baseline": comparison.baseline}
    checkpoints = [checkpoint for _, checkpoint in comparison.checkpoints]
    return (
        json.dumps(
            {
                **names,
                "checkpoints": checkpoints,
                "demo": list(comparison.demo),
                "warnings": list(comparison.warnings),
                "cells": rows,
            },
            indent=1,
        )
        + "\n"
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


FORMATS = {"table": as_text, "markdown": as_markdown, "json": as_json}
