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
def mean_kernel(p_lam, p_losses, p_finite, p_gradient, p_loss, T: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr):
    """Means over the finite tasks of λ_0 [T, P] and of the losses [T]; NaN where there is none."""
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
    tl.store(p_gradient + offsets, total / count, mask=mask)
    if tl.program_id(0) == 0:
        tl.store(p_loss, loss / count)
