"""Explanations of a query's score, which a metric may give for people who read answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from flamingo_eval.core.records import Id

Rules = Mapping[str, Any]
"""A benchmark's ``[scoring]``, as its metric reads it."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """How the score of one answer came about.

    Attributes:
        lines: sentences, the most informative first.
        agrees: for each reference, in order, whether the answer is correct by it; empty where a single reference
            does not decide that.
        parts: name -> what it adds to the score, in the score's unit; empty where there are no parts.
    """

    lines: tuple[str, ...] = ()
    agrees: tuple[bool, ...] = ()
    parts: Mapping[str, float] = {}


@runtime_checkable
class ExplainingMetric(Protocol):
    """A metric that can explain a query's score. This is optional for metrics."""

    def explain(self, id: Id, answers: Mapping[Id, Any], references: Mapping[Id, Any], rules: Rules) -> Explanation:
        """How the score of one query came about.

        Args:
            id: id of the query.
            answers: all answers of its trial, after post-processing: a score may depend on the other answers.
            references: as for ``compute``.
            rules: the benchmark's scoring rules.

        Raises:
            DataError, UserError: as ``compute``.
        """
