"""Tile sizes and warps, from one deterministic rule; no tuning at run time, so two runs launch the same code."""

from __future__ import annotations

MOST = 128
"""Widest layer and most samples of `mlp_loop`: a weight block of 128 × 128 in float32 fills 64 kB of shared memory, and
a product stages two."""

DEEPEST = 8
"""Layers of `mlp_loop`: activations of all layers live in registers and, beyond those, in local memory."""


def block(size: int) -> int:
    """`size` padded to a power of two; `tl.dot` takes none below 16 (Triton 3.6)."""
    return max(16, 1 << (size - 1).bit_length())


def warps(blocks: tuple[int, ...]) -> int:
    """Warps of a program whose widest block is the largest of `blocks`.

    Up to 32 × 32 four warps are one 16 × 16 matrix instruction each; at 64 wide the adjoint spills with four (stack 192
    bytes on sm_90) and not with eight; at 128 wide eight leave 255 registers a thread, sixteen 128, so eight.
    """
    return 4 if max(blocks) <= 32 else 8
