"""What differs between a CPU and a GPU: waiting for results, the precision of products, the memory that a step takes.

Memory on a CPU is the resident size's highest value during a call less its value before. Linux keeps the former as
VmHWM in /proc/self/status; writing 5 to /proc/self/clear_refs resets it. Meanwhile glibc maps every tensor by itself,
so that one that is freed leaves the resident size at once.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

# Parameters of glibc's mallopt, from malloc.h: sizes from which an allocation is mapped, and from which the heap's end
# goes back to the system. By itself glibc raises both with use, to these values at most.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED, GROWN = 2**16, 2**25


def check_device(device: str) -> None:
    """Raises ValueError where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")


def wait(device: str) -> None:
    """Until all that was launched on the device is done, by whichever library: they share one context."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def products(device: str, precision: str) -> Iterator[None]:
    """PyTorch's matrix products and convolutions at a precision, and cuDNN free to choose its algorithms.

    "tf32" allows it where a GPU has it and changes nothing on a CPU; "bfloat16" is autocast, as peers' users have it.
    fastmeta has its own option, which takes precedence over both.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before: tuple[Any, ...] = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    _set_products(precision == "tf32", precision == "tf32", True)
    cast: AbstractContextManager[Any] = (
        torch.autocast(device, torch.bfloat16, cache_enabled=False) if precision == "bfloat16" else nullcontext()
    )
    try:
        with cast:
            yield
    finally:
        _set_products(*before)


def _set_products(matmul: bool, convolution: bool, benchmark: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    setattr(torch.backends.cudnn, "allow_tf32", convolution)  # noqa: B010  typed as a plain module
    torch.backends.cudnn.benchmark = benchmark


def peak_mib(call: Callable[[], object], device: str) -> float:
    """MiB that a call needs beyond what is there before it, its result included. Call it once before.

    On a GPU it is what PyTorch's allocator gave out, so other libraries' memory does not count.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with _everything_mapped() as libc:
        call()  # what is freed from now on leaves
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        resident = resident_kib("VmRSS")
        call()
        return max(0, resident_kib("VmHWM") - resident) / 1024


def resident_kib(field: str) -> int:
    """VmRSS (now), VmHWM (highest since the reset) or VmData (private memory mapped) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
    return int(match.group(1))


@contextmanager
def _everything_mapped() -> Iterator[Any]:
    libc: Any = ctypes.CDLL(None)
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        libc.mallopt(parameter, MAPPED)
    try:
        yield libc
    finally:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, GROWN)


def launches(call: Callable[[], object], device: str) -> int | None:
    """Kernels that a call runs on a GPU, of whichever library; None on a CPU, where nothing counts them.

    A captured graph's kernels count one by one, though the graph is launched whole.
    """
    if device != "cuda":
        return None
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    return sum(1 for event in kernels if not event.name.startswith(("Memcpy", "Memset"))) or None
