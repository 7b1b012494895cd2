"""How a query's score came about: what a metric may say of it, for people who read answers."""

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
        lines: sentences, the most telling first.
        agrees: for each reference, in their order, whether the answer is right by it; empty where a reference alone
            does not decide that.
        parts: name -> what it adds to the score, in the score's unit; empty where there are no parts.
    """

    lines: tuple[str, ...] = ()
    agrees: tuple[bool, ...] = ()
    parts: Mapping[str, float] = {}


@runtime_checkable
class ExplainingMetric(Protocol):
    """A metric that can say how a query's score came about; the others need not."""

    def explain(self, id: Id, answers: Mapping[Id, Any], references: Mapping[Id, Any], rules: Rules) -> Explanation:
        """How the score of one query came about.

        Args:
            id: the query's.
            answers: all of its trial, after post-processing: a score may depend on which others there are.
            references: as for ``compute``.
            rules: the benchmark's scoring rules.

        Raises:
            DataError, UserError: as ``compute``.
        """
