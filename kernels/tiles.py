"""Tile sizes and warps, from one deterministic rule; no tuning at run time, so two runs launch the same code."""

from __future__ import annotations

from typing import Any

from triton import knobs
from triton.runtime.driver import driver

MOST = 128
"""Widest layer and most samples of `mlp_loop`: a weight block of 128 × 128 in float32 fills 64 kB of shared memory, and
a product stages two."""

DEEPEST = 8
"""Layers of `mlp_loop`: kernels are unrolled over them, and eight take the compiler a minute."""


def block(size: int) -> int:
    """`size` padded to a power of two; `tl.dot` takes none below 16 (Triton 3.6)."""
    return max(16, 1 << (size - 1).bit_length())


STAGES = 1
"""Loads ahead of their products. A loop here reads what its last round wrote, so there is nothing to load ahead."""


MOST_REGISTERS = 255
"""Of a thread. Said aloud where activations live in scratch, as otherwise the assembler may spill a little to fit two
programs on a multiprocessor (1-40-40-1 on sm_90, plain multiply-adds: 128 registers and 32 bytes of stack)."""


def _arch() -> int:
    """Of the GPU that kernels are compiled for: 80, 90, 100."""
    target: Any = driver.active.get_current_target()
    return target.arch


def dot_precision(precision: str, blocks: tuple[int, ...]) -> str:
    """How a kernel multiplies blocks of float32: `input_precision` of `tl.dot`, or "bf16" for rounded operands.

    "float32" is plain multiply-adds up to 64 wide: exact, and without a spill where three tf32 products (21 bits of
    mantissa) leave 64 bytes on the stack and bf16x6 40 (1-40-40-1, sm_90); bf16x3 keeps 16 bits only. At 128 wide
    unrolled multiply-adds take the compiler minutes, so there it is tf32x3. Before sm_90, where operands of matrix
    instructions are registers, the others are multiply-adds too: tf32 leaves 728 bytes, bfloat16 208.
    """
    if knobs.runtime.interpret:
        return "ieee"  # the interpreter multiplies in float32 whatever it is told, and bfloat16's bit patterns
    narrow = max(blocks) <= 64
    if narrow and (precision == "float32" or _arch() < 90):
        return "ieee"
    return {"float32": "tf32x3", "tf32": "tf32", "bfloat16": "bf16"}[precision]


def warps(blocks: tuple[int, ...]) -> int:
    """Warps of a program whose widest block is the largest of `blocks`.

    At 64 wide the adjoint leaves 832 bytes on the stack with four (1-40-40-1, sm_90, Triton 3.6), 752 with sixteen,
    which have 128 registers each, and none with eight; at 32 wide 256 bytes with four (2-32-5 on 25 samples).
    """
    return 4 if max(blocks) <= 16 else 8


def streams(blocks: tuple[int, ...], states: int) -> bool:
    """Whether activations live in scratch: of layers and samples padded to `blocks`, an optimiser with `states`.

    Otherwise they live in registers, which spares a meta-step their way through the cache. Of 128-128-128-5 with 128
    samples that leaves 4.9 kB on the stack (adjoint, sm_90, float32); at 64 wide, with SGD none, with momentum 96 to
    504 bytes and with Adam up to 48 (1-40-40-1). From the fifth layer on there are too many of them.
    """
    return max(blocks) > 64 or len(blocks) > 6 or (max(blocks) > 32 and states > 0)
