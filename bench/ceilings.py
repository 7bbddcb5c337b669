"""What this machine can do at best: rates of matrix products and of copying, as a library reaches them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from . import device as devices
from . import environment
from .names import PRECISIONS
from .part import parser_of
from .records import FORMAT, write

# Large enough to keep a device busy; bytes beyond any cache.
SIZES = {"cpu": 1536, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
EMULATED_SIZE = 256  # of bfloat16 on a CPU, which may have no such products: 25 ms where float32 takes 0.7
REPEATS = {"cpu": 8, "cuda": 20}
WARM_UP_CALLS = 2


def measure(device: str, *, precisions: tuple[str, ...] = ("float32",)) -> dict[str, float]:
    """GFLOP/s of square matrix products by precision, and under "copy" GB/s read plus written; each the best of a few.

    "tf32" is float32 with TensorFloat-32 allowed, so on a CPU the same figure.
    """
    found = {precision: round(product_rate(device, precision) / 1e9, 1) for precision in precisions}
    return {**found, "copy": round(copy_rate(device) / 1e9, 1)}


def product_rate(device: str, precision: str) -> float:
    """Operations a second."""
    size = EMULATED_SIZE if (device, precision) == ("cpu", "bfloat16") else SIZES[device]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with devices.products(device, "float32" if precision == "bfloat16" else precision):
        return 2 * size**3 / best_seconds(lambda: torch.mm(a, b), device)


def copy_rate(device: str) -> float:
    """Bytes a second, those read and those written."""
    source = torch.zeros(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device] / best_seconds(lambda: target.copy_(source), device)


def best_seconds(call: Callable[[], object], device: str) -> float:
    """The shortest of a few calls."""
    best = float("inf")
    for index in range(WARM_UP_CALLS + REPEATS[device]):
        devices.wait(device)
        start = time.perf_counter()
        call()
        devices.wait(device)
        if index >= WARM_UP_CALLS:
            best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Measure a device at every precision, and write the file."""
    options = parser_of("Rates of matrix products and of copying.", device="cpu").parse_args()
    devices.check_device(options.device)
    found = measure(options.device, precisions=PRECISIONS)
    write({"format": FORMAT, "environment": environment.describe(options.device), "ceilings": found}, options.out)


if __name__ == "__main__":
    main()
