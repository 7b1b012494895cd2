"""Limits how many requests are in progress: fewer while the server pushes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets a limited number of requests through at a time.

    The limit is halved when the server pushes back, only once for all requests that were in progress then. It grows by
    one after as many good replies as the limit allows requests.

    Args:
        most: requests at once, at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit, self._under_way = float(most), 0
        self._closed_until = self._lowered = float("-inf")
        self._stopped: Exception | None = None
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """The current limit of requests at once."""
        return int(self._limit)

    @contextmanager
    def passed(self) -> Iterator[float]:
        """Waits until one more request may be in progress, and counts it in this context; yields its start time.

        Raises the error that the gate was stopped with.
        """
        with self._changed:
            while True:
                if self._stopped is not None:
                    raise self._stopped
                wait = self._closed_until - time.monotonic()
                if wait <= 0 and self._under_way < self.limit:
                    break
                self._changed.wait(wait if wait > 0 else None)
            self._under_way += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def pushed_back(self, began: float, wait: float | None) -> bool:
        """Handles a server that wants fewer requests, or none for some seconds; returns whether to warn the user.

        Args:
            began: start time of the request that the server pushed back.
            wait: how many seconds to wait, if the server stated it.
        """
        with self._changed:
            longer = wait is not None and wait > 1 and time.monotonic() + wait > self._closed_until + 1
            if wait is not None:
                self._closed_until = max(self._closed_until, time.monotonic() + wait)
            if began <= self._lowered or self.limit == 1:
                return longer
            self._limit, self._lowered = max(1.0, self._limit / 2), time.monotonic()
            return True

    def stop(self, error: Exception) -> None:
        """Lets nothing more through; requests that wait raise this error."""
        with self._changed:
            self._stopped = self._stopped or error
            self._changed.notify_all()

    def rest(self, seconds: float) -> None:
        """Waits for some seconds, or until the gate is stopped."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._stopped is None and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def went_well(self) -> None:
        """Records a good reply: the limit may grow."""
        with self._changed:
            self._limit = min(float(self.most), self._limit + 1 / self._limit)
            self._changed.notify_all()
