"""Compiles kernels for a GPU that is not there, as the library would launch them, and reads what came of it.

Within `compiling(target)` every launch is compiled with its real arguments and does not run; what it would have
written stays as it was. The kernels must have been imported without Triton's interpreter.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from . import launch, sass

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}

# Shared memory a program may use, and a multiprocessor's; threads a multiprocessor holds (CUDA C++ Programming Guide,
# table "Technical Specifications per Compute Capability"). Registers are 65,536 on all three.
SHARED_BYTES = {"sm_80": (166_912, 167_936), "sm_90": (232_448, 233_472), "sm_100": (232_448, 233_472)}
THREADS, REGISTERS, RESERVED_SHARED = 2048, 65_536, 1024


@dataclass(frozen=True)
class Compiled:
    """Figures of one compiled launch."""

    kernel: str
    label: str  # which of the kernel's launches
    launches: int  # of this code in a meta-step
    programs: int
    warps: int
    registers: int
    stack: int
    shared: int
    occupancy: int
    matrix: dict[str, int]
    wide: int  # loads and stores of 16 bytes a thread
    narrow: int
    loop: int  # instructions of the longest loop that multiplies
    loop_wide: int  # loads in such loops, as above
    loop_narrow: int
    precisions: tuple[str, ...]
    spilled: int  # bytes of the stack that registers were stored to; sin and cos of huge arguments have others there


class _NoDevice:
    """As much of a driver as the compiler asks for."""

    def __init__(self, target: str) -> None:
        self._target = GPUTarget("cuda", TARGETS[target], 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


Seen = Callable[[str, str, tuple[int, ...], dict[str, Any], Any], None]
"""Takes a launch's kernel, label, grid and options, and what the compiler made of it."""


@contextmanager
def compiled_for(target: str, seen: Seen) -> Iterator[None]:
    """Every launch is compiled for `target`, a key of TARGETS, and handed to `seen`; Triton's cache keeps the code."""

    def compile_only(
        kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        seen(kernel.__name__, label, grid, options, kernel.warmup(*args, grid=grid, **options))

    before = driver._active
    no_device: Any = _NoDevice(target)
    driver.set_active(no_device)
    launch.run, runs = compile_only, launch.run
    try:
        yield
    finally:
        launch.run = runs
        driver._active = before


def keep_launcher(binary: Any) -> None:
    """Leaves what calls a compiled kernel from Python in Triton's cache, too, where it takes a C compiler (3.6).

    Otherwise the first launch of every kernel waits for one. It is linked with the driver's library: where there is
    none, nothing is left, and whatever else is wrong the launch itself will say.
    """
    from triton.backends.nvidia import driver as nvidia

    if hasattr(nvidia, "make_launcher"):
        with suppress(Exception):
            nvidia.CudaLauncher(binary.src, binary.metadata)


_spilled: dict[str, int] = {}  # of code by its hash, which Triton keeps in memory as well


@contextmanager
def compiling(target: str) -> Iterator[list[Compiled]]:
    """The list fills with the figures of what is compiled for `target`, past Triton's cache, which keeps no log."""
    found: list[Compiled] = []
    places: dict[tuple[str, int], int] = {}  # (hash of the compiled code, programs) → place in `found`
    log = StringIO()

    def seen(name: str, label: str, grid: tuple[int, ...], options: dict[str, Any], binary: Any) -> None:
        if binary.hash not in _spilled:  # this launch compiled it
            stores = re.findall(r"(\d+) bytes spill stores", log.getvalue())
            assert len(stores) == 1, "the assembler reports on every kernel it makes"
            _spilled[binary.hash] = int(stores[0])
        log.seek(0)
        log.truncate()
        key = binary.hash, grid[0]
        if key in places:
            known = found[places[key]]
            found[places[key]] = replace(known, launches=known.launches + 1)
        else:
            places[key] = len(found)
            found.append(_figures(name, label, grid, options, binary, target, _spilled[binary.hash]))

    with compiled_for(target, seen), redirect_stdout(log), knobs.nvidia.scope(), knobs.compilation.scope():
        knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
        yield found


def _precision(product: str) -> str:
    """Of a line of Triton's own representation; one that says nothing is IEEE."""
    if "bf16" in product:
        return "bf16"
    named = re.search(r"inputPrecision = (\w+)", product)
    return named[1] if named else "ieee"


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _figures(
    name: str, label: str, grid: tuple[int, ...], options: dict[str, Any], binary: Any, target: str, spilled: int
) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        code = subprocess.run([_tool("nvdisasm"), file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage.stdout)[1]) for word in ("REG", "STACK"))  # pyright: ignore[reportOptionalSubscript]
    warps, shared = options["num_warps"], binary.metadata.shared
    _, of_processor = SHARED_BYTES[target]
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = of_processor // (shared + RESERVED_SHARED)
    operations, loops = sass.instructions(code), sass.product_loops(code)
    matrix = {kind: sass.of_kind(operations, kind) for kind in sass.MATRIX}
    memory = {op: n for op, n in operations.items() if op.split(".")[0] in ("LDG", "STG", "LDGSTS")}
    wide = sum(n for op, n in memory.items() if "128" in op)
    return Compiled(
        kernel=name,
        label=label,
        launches=1,
        programs=grid[0],
        warps=warps,
        registers=registers,
        stack=stack,
        shared=shared,
        occupancy=min(by_registers, by_shared, THREADS // (32 * warps)),
        matrix={kind: n for kind, n in matrix.items() if n},
        wide=wide,
        narrow=sum(memory.values()) - wide,
        loop=loops.instructions,
        loop_wide=loops.wide,
        loop_narrow=loops.narrow,
        precisions=tuple(sorted({_precision(line) for line in binary.asm["ttir"].splitlines() if " tt.dot " in line})),
        spilled=spilled,
    )
