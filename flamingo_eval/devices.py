"""Device, precision, numerics and memory: the only module that chooses or sets them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from flamingo_eval.core.errors import DeviceMemoryError, UserError

DEVICES = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = ("fp32", "bf16", "fp16", "amp_bf16")
"""The type of weights and arithmetic. With ``amp_bf16`` products are bfloat16 and the rest is float32, as under
autocast; the published runs were made this way."""

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)

_ONE_AT_A_TIME = threading.RLock()


def pick_device(device: str) -> str:
    """Resolves a device; ``auto`` is CUDA if there is any, ``local:N`` is CUDA device N modulo their number.

    Without CUDA both are the CPU.

    Raises:
        UserError: a device this machine doesn't have.
    """
    kind, _, number = device.partition(":")
    if kind == "local":  # each of several processes on a machine has one device, or sees only its own
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


def pick_precision(device: str, precision: str) -> str:
    """Resolves ``auto`` to ``amp_bf16`` on a CUDA card that computes in bfloat16, else to ``fp32``.

    (V100 and T4 do not compute in bfloat16; float16 would overflow where the published runs did not.)

    Raises:
        UserError: unknown precision.
    """
    if precision == "auto":
        if torch.device(device).type != "cuda":
            return "fp32"
        with current(device):
            return "amp_bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return precision


def current(device: torch.device | str) -> AbstractContextManager[object]:
    """Within this context a CUDA device is the current one. Events and pinned memory use the current device, and would
    otherwise open a context on the first card."""
    device = torch.device(device)
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextmanager
def numerics(device: torch.device | str) -> Iterator[None]:
    """All computation happens within this context. The torch settings of the calling program have no effect in it, and
    are restored afterwards.

    - Autocast is off; code that needs it switches it on within the context.
    - Float32 is float32: no library uses TensorFloat-32. (cuDNN's convolutions use it by default.)
    - Attention may use any kernel but cuDNN's, which plan again for every shape; our shapes change at every step.
    - cuBLAS sums as it does by default, and cuDNN does not benchmark kernels.
    - New tensors are float32 and on the CPU by default.
    - The device is the current one.

    Most of these switches belong to the process, so one thread at a time computes. Meanwhile no code can read torch's
    older switches (``cudnn.flags()``, ``allow_tf32``): torch refuses to mix them with the newer ones.
    """
    device = torch.device(device)
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(current(device))
        stack.enter_context(_full_float32())
        stack.enter_context(_kernels())
        stack.enter_context(_default_type_and_device())
        for kind in sorted({"cpu", device.type}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Within this context products are computed in bfloat16 if the precision is ``amp_bf16``."""
    if precision == "amp_bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextmanager
def _full_float32() -> Iterator[None]:
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
            switch.fp32_precision = "none"  # follows the global setting, in case its value came from there
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


@contextmanager
def _kernels() -> Iterator[None]:
    cuda: Any = torch.backends.cuda
    attention = [(getattr(cuda, f"enable_{kind}_sdp"), getattr(cuda, f"{kind}_sdp_enabled")(), kind != "cudnn")
                 for kind in ("flash", "mem_efficient", "math", "cudnn")]  # fmt: skip
    wanted = {
        (cuda.matmul, "allow_fp16_accumulation"): False,
        (cuda.matmul, "allow_fp16_reduced_precision_reduction"): True,
        (cuda.matmul, "allow_bf16_reduced_precision_reduction"): True,
        (torch.backends.cudnn, "benchmark"): False,
    }
    before = {(owner, name): getattr(owner, name) for owner, name in wanted if hasattr(owner, name)}
    for switch, _, value in attention:
        switch(value)
    for owner, name in before:
        setattr(owner, name, wanted[owner, name])
    try:
        yield
    finally:
        for switch, was, _ in attention:
            switch(was)
        for (owner, name), was in before.items():
            setattr(owner, name, was)


@contextmanager
def _default_type_and_device() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with on_the_cpu():
            yield
    finally:
        torch.set_default_dtype(before)


def on_the_cpu() -> AbstractContextManager[object]:
    """Within this context new tensors are on the CPU by default, even if the calling program has chosen another device
    for this thread."""
    elsewhere = torch.get_default_device().type != "cpu"
    return torch.device("cpu") if elsewhere else contextlib.nullcontext()


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor in pinned memory, for asynchronous copies to a CUDA device; for other devices, as it is."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor
    with current(device):
        return tensor.pin_memory()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. For CUDA the copy is asynchronous, from pinned memory, in the order of the stream.

    (From other memory, or to other devices, an asynchronous copy may read values that are written later.)
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return pinned(tensor, device).to(device, non_blocking=True)
    return tensor.to(device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory() -> None:
    """Gives unused memory back: the device's, and what the C library keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # without glibc there is no such call, and no need for it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    for module, available in ((torch.cuda, torch.cuda.is_available()), (torch.xpu, torch.xpu.is_available()),
                              (torch.mps, torch.backends.mps.is_available())):  # fmt: skip
        if available:
            module.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's, or this machine's, memory was too small. (``torch.OutOfMemoryError`` is CUDA's; for other
    devices only the message shows it.)"""
    return isinstance(error, torch.OutOfMemoryError) or bool(
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    )


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turns out-of-memory errors into DeviceMemoryError, whose message starts with ``what``."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(f"{what}: {str(error).splitlines()[0]}") from error


def exact_type(device: torch.device) -> torch.dtype:
    """Float64 if every device of the kind supports it, else float32. (MPS and some Intel devices do not.)"""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def room(device: torch.device) -> int | None:
    """Bytes of the device's own memory that are free, or reserved by this process and unused. None for a device without
    its own memory, or if the driver does not report it."""
    if device.type not in ("cuda", "xpu"):
        return None
    module: Any = getattr(torch, device.type)
    try:
        free, _ = module.mem_get_info(device)
    except RuntimeError:  # integrated Intel cards don't report it
        return None
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def peak_memory(device: torch.device) -> int:
    """Peak memory use so far, in bytes: of the device if it has its own memory, else of this process."""
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
