"""Counts requests, tokens and cost, and stops a run that reaches its limits."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from flamingo_eval.core.errors import UserError
from flamingo_eval.models.openai_server.replies import Usage

MILLION = 1_000_000
"""The number of tokens that a price is for."""


@dataclass(frozen=True)
class Budget:
    """What a user allows, and what tokens cost.

    Attributes:
        requests: the most requests; None for any number.
        cost: the highest cost, in the currency of the prices; None for no limit.
        price_in: price of a million prompt tokens.
        price_out: price of a million answer tokens.
    """

    requests: int | None = None
    cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def check(self) -> None:
        """Raises UserError if a price is missing: only one is given, or a limit on the cost needs them."""
        given = [one is not None for one in (self.price_in, self.price_out)]
        if any(given) != all(given):
            raise UserError("--price-in and --price-out are needed both, per million tokens")
        if self.cost is not None and not all(given):
            raise UserError("--max-cost needs --price-in and --price-out, per million tokens")

    def price(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """The cost of these tokens; None if the prices are not known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / MILLION


class Spending:
    """Counts what is spent. Can be called from several threads at once.

    Args:
        budget: what is allowed.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._requests = self._retries = self._prompt = self._completion = 0
        self._lock = threading.Lock()

    def begin(self, *, again: bool) -> None:
        """Counts one more request. Raises UserError if it may not be sent."""
        with self._lock:
            if self.budget.requests is not None and self._requests >= self.budget.requests:
                raise UserError(f"{self._requests} requests were sent, as many as --max-requests allows; {_SAVED}")
            cost = self.budget.price(self._prompt, self._completion)
            if self.budget.cost is not None and cost is not None and cost >= self.budget.cost:
                raise UserError(f"{cost:.4g} was spent, as much as --max-cost allows; {_SAVED}")
            self._requests += 1
            self._retries += again

    def end(self, usage: Usage | None) -> None:
        """Counts the tokens of a reply."""
        with self._lock:
            if usage is not None:
                self._prompt += usage.prompt_tokens
                self._completion += usage.completion_tokens

    def total(self) -> Mapping[str, float]:
        """Everything spent so far."""
        with self._lock:
            cost = self.budget.price(self._prompt, self._completion)
            counts = {"requests": self._requests, "retries": self._retries, "prompt tokens": self._prompt,
                      "completion tokens": self._completion}  # fmt: skip
        return {**counts, **({} if cost is None else {"cost": round(cost, 6)})}


_SAVED = "what is answered is saved, and the same command with more goes on"
