"""Device, numerics and memory: the only place that chooses or sets them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flamingo_eval.core.errors import UserError

DEVICES = ("cpu", "cuda", "mps", "xpu")


def pick_device(device: str) -> str:
    """The device that ``auto`` stands for: CUDA if there is one; for ``local:N`` the N-th, as far as they reach.

    Raises:
        UserError: a device this machine doesn't have.
    """
    kind, _, number = device.partition(":")
    if kind == "local":  # of several processes on a machine each has one, or sees only its own
        return f"cuda:{int(number) % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in DEVICES:
        raise UserError(f"device {device!r} can't be used; known devices: auto, {', '.join(DEVICES)}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    return device


def free_memory() -> None:
    """Gives memory back that nothing uses any more: the device's, and what the C library holds on to."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a system without glibc has no such call, and no such habit
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def full_float32() -> Iterator[None]:
    """TensorFloat-32 and the like, where someone has switched them on, would round more than the margin allows.

    Afterwards every switch is as its owner left it.
    """
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn,
                backends.mkldnn.conv, backends.mkldnn.rnn)  # fmt: skip
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
