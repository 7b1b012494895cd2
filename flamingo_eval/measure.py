"""Measures a model's time by section, its floating-point operations, and the peak speed of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from flamingo_eval.devices import synchronize

PEAK_SIZE, PEAK_ROUNDS = 3072, 5


class Clock:
    """Seconds by section. On CUDA, events measure the device's own time, so that nothing waits for it; the clock waits
    for other devices."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Adds the time within this context to a section."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            yield
            synchronize(self._device)
            self._add(name, time.perf_counter() - began)

    def settle(self) -> None:
        """Reads the device's events; to be called when it has no work left anyway."""
        for name, start, end in self._events:
            end.synchronize()
            self._add(name, start.elapsed_time(end) / 1000)
        self._events.clear()

    def seconds(self) -> dict[str, float]:
        """Section -> seconds so far."""
        self.settle()
        return dict(self._seconds)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


@contextmanager
def counted(into: dict[str, float], name: str) -> Iterator[None]:
    """Adds the floating-point operations in this context to ``into[name]``: two per multiply-add of matrix products."""
    counter = FlopCounterMode(display=False)
    with counter:
        yield
    into[name] = into.get(name, 0.0) + counter.get_total_flops()


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of ``PEAK_ROUNDS``."""
    own = torch.Generator(device).manual_seed(0)  # the program's random state stays as it is
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, generator=own).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(PEAK_ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / best
