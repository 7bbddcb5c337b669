"""The end of a meta-step: which tasks stayed finite, the mean of their losses and of their adjoints λ_0.

No atomics: a program adds the tasks of its block of parameters in their order, so two runs give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def drop_unless_finite(p_lam, p_bad, p_finite, P: tl.constexpr, BLOCK: tl.constexpr):
    """Writes whether a task stayed finite (uint8); the λ_0 [P] of one that did not becomes zero.

    λ_0 was written by the calling program, with a barrier behind it.
    """
    offsets = tl.arange(0, BLOCK)
    drift = tl.zeros([BLOCK], tl.float32)
    for at in range(0, P, BLOCK):
        lam = tl.load(p_lam + at + offsets, mask=at + offsets < P, other=0.0)
        drift += lam - lam  # zero of a finite number, NaN of any other
    bad = tl.load(p_bad) + tl.sum(drift, 0)
    tl.store(p_finite, tl.where(bad == 0.0, 1, 0).to(tl.uint8))
    if bad != 0.0:
        for at in range(0, P, BLOCK):
            tl.store(p_lam + at + offsets, tl.zeros([BLOCK], tl.float32), mask=at + offsets < P)


@triton.jit
def inputs_kernel(p_x, p_bad, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Zero in `p_bad` for a task whose SIZE inputs are all finite, NaN for any other."""
    i_task = tl.program_id(0).to(tl.int64)
    p_x += i_task * SIZE
    offsets = tl.arange(0, BLOCK)
    drift = tl.zeros([BLOCK], tl.float32)
    for at in range(0, SIZE, BLOCK):
        x = tl.load(p_x + at + offsets, mask=at + offsets < SIZE, other=0.0)
        drift += x - x
    tl.store(p_bad + i_task, tl.sum(drift, 0))


@triton.jit
def losses_kernel(p_parts, p_losses, p_bad, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """Every task's loss from its tiles' parts [T, TILES]."""
    i_task = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    loss = tl.sum(tl.load(p_parts + i_task * TILES + offsets, mask=offsets < TILES, other=0.0), 0)
    tl.store(p_losses + i_task, loss)
    tl.store(p_bad + i_task, tl.load(p_bad + i_task) + (loss - loss))


@triton.jit
def finite_kernel(p_lam, p_bad, p_finite, P: tl.constexpr, BLOCK: tl.constexpr):
    """`drop_unless_finite` for rows of λ_0 that are whole; P = 0 where there are none."""
    i_task = tl.program_id(0).to(tl.int64)
    drop_unless_finite(p_lam + i_task * P, p_bad + i_task, p_finite + i_task, P, BLOCK)


@triton.jit
def mean_kernel(p_lam, p_losses, p_finite, p_gradient, p_loss, T: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr):
    """Means over the finite tasks of λ_0 [T, P] and of the losses [T]; zero where there is none."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < P
    total = tl.zeros([BLOCK], tl.float32)
    loss = 0.0
    count = 0.0
    for i_task in range(T):
        total += tl.load(p_lam + offsets, mask=mask, other=0.0)
        finite = tl.load(p_finite + i_task) != 0
        loss += tl.where(finite, tl.load(p_losses + i_task), 0.0)
        count += tl.where(finite, 1.0, 0.0)
        p_lam += P
    tl.store(p_gradient + offsets, tl.where(count == 0.0, 0.0, total / count), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(p_loss, tl.where(count == 0.0, 0.0, loss / count))
