"""The end of a meta-step: which tasks stayed finite, the mean of their losses and of their adjoints λ_0.

No floating-point number is added atomically, and what is added is so in one order: two runs give the same bits.
"""

import triton
import triton.language as tl

from .total import arrived_last


@triton.jit
def drift_of(p_x, begin, SIZE: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """Zero where EACH blocks of a row [SIZE] of finite numbers are read from `begin` on, NaN otherwise."""
    offsets = begin + tl.arange(0, BLOCK)
    drift = tl.zeros([BLOCK], tl.float32)
    for i in range(EACH):
        x = tl.load(p_x + i * BLOCK + offsets, mask=i * BLOCK + offsets < SIZE, other=0.0)
        drift += x - x
    return tl.sum(drift, 0)


@triton.jit
def zero_row(p_x, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros in a row."""
    offsets = tl.arange(0, BLOCK)
    for at in range(0, SIZE, BLOCK):
        tl.store(p_x + at + offsets, tl.zeros([BLOCK], tl.float32), mask=at + offsets < SIZE)


@triton.jit
def drop_unless_finite(p_lam, p_bad, p_finite, P: tl.constexpr, BLOCK: tl.constexpr):
    """Writes whether a task stayed finite (uint8); the λ_0 [P] of one that did not becomes zero.

    λ_0 was written by the calling program, with a barrier behind it.
    """
    bad = tl.load(p_bad) + drift_of(p_lam, 0, P, (P + BLOCK - 1) // BLOCK, BLOCK)
    tl.store(p_finite, tl.where(bad == 0.0, 1, 0).to(tl.uint8))
    if bad != 0.0:
        zero_row(p_lam, P, BLOCK)


@triton.jit
def drift_of_shares(p_x, p_parts, p_arrived, SIZE: tl.constexpr, SHARES: tl.constexpr, EACH: tl.constexpr,
                    BS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`drift_of` a task's whole row, of which each of SHARES programs reads EACH blocks, and whether this program is
    the last of them, which alone knows it. `parts` are [T, SHARES]."""
    i_task, i_share = (tl.program_id(0) // SHARES).to(tl.int64), tl.program_id(0) % SHARES
    drift = drift_of(p_x + i_task * SIZE, i_share * (EACH * BLOCK), SIZE, EACH, BLOCK)
    last = True
    if SHARES > 1:
        tl.store(p_parts + i_task * SHARES + i_share, drift)
        last = arrived_last(p_arrived + i_task, SHARES)
        if last:
            o_s = tl.arange(0, BS)
            parts = tl.load(p_parts + i_task * SHARES + o_s, mask=o_s < SHARES, other=0.0, cache_modifier=".cg")
            drift = tl.sum(parts, 0)
    return i_task, drift, last


@triton.jit
def inputs_kernel(p_x, p_bad, p_parts, p_arrived, SIZE: tl.constexpr, SHARES: tl.constexpr, EACH: tl.constexpr,
                  BS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Zero in `p_bad` for a task whose SIZE inputs are all finite, NaN for any other."""
    i_task, drift, last = drift_of_shares(p_x, p_parts, p_arrived, SIZE, SHARES, EACH, BS, BLOCK)
    if last:
        tl.store(p_bad + i_task, drift)


@triton.jit(do_not_specialize=["tiles"])
def losses_kernel(p_parts, p_losses, p_bad, tiles, BLOCK: tl.constexpr):
    """Every task's loss from its tiles' parts [T, tiles]."""
    i_task = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    loss = tl.sum(tl.load(p_parts + i_task * tiles + offsets, mask=offsets < tiles, other=0.0), 0)
    tl.store(p_losses + i_task, loss)
    tl.store(p_bad + i_task, tl.load(p_bad + i_task) + (loss - loss))


@triton.jit
def finite_kernel(p_lam, p_bad, p_finite, p_parts, p_arrived, SIZE: tl.constexpr, SHARES: tl.constexpr,
                  EACH: tl.constexpr, BS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`drop_unless_finite` for rows [SIZE] of λ_0 that are whole; SIZE = 0 where there are none."""
    i_task, drift, last = drift_of_shares(p_lam, p_parts, p_arrived, SIZE, SHARES, EACH, BS, BLOCK)
    if last:
        bad = tl.load(p_bad + i_task) + drift
        tl.store(p_finite + i_task, tl.where(bad == 0.0, 1, 0).to(tl.uint8))
        if bad != 0.0:
            zero_row(p_lam + i_task * SIZE, SIZE, BLOCK)


@triton.jit(do_not_specialize=["T"])
def mean_kernel(
    p_lam, p_losses, p_counts, p_gradient, p_loss, p_count, T, P: tl.constexpr, EACH: tl.constexpr, BT: tl.constexpr,
    BLOCK: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Sums of λ_0 [T, P], of losses [T] and of counts [T] over shares of EACH blocks of BT rows; a row counts 1, or 0
    where its task did not stay finite, whose λ_0 is zero. Where it is the LAST launch there is one share, and what it
    leaves are means; zero where nothing counts. A row may be the sums of a share that another launch left.
    """
    ACROSS: tl.constexpr = (P + BLOCK - 1) // BLOCK
    i_share, i_block = tl.program_id(0) // ACROSS, tl.program_id(0) % ACROSS
    o_p = i_block * BLOCK + tl.arange(0, BLOCK)
    total, losses = tl.zeros([BT, BLOCK], tl.float32), tl.zeros([BT], tl.float32)
    counts = tl.zeros([BT], tl.float32)
    for i in range(EACH):
        o_t = (i_share * EACH + i) * BT + tl.arange(0, BT)
        mask = o_t < T
        at = o_t.to(tl.int64)[:, None] * P + o_p[None, :]
        total += tl.load(p_lam + at, mask=mask[:, None] & (o_p < P)[None, :], other=0.0)
        count = tl.load(p_counts + o_t, mask=mask, other=0).to(tl.float32)
        losses += tl.where(count > 0.0, tl.load(p_losses + o_t, mask=mask, other=0.0), 0.0)
        counts += count
    gradient, loss, count = tl.sum(total, 0), tl.sum(losses, 0), tl.sum(counts, 0)
    if LAST:
        gradient, loss = tl.where(count == 0.0, 0.0, gradient / count), tl.where(count == 0.0, 0.0, loss / count)
    tl.store(p_gradient + i_share.to(tl.int64) * P + o_p, gradient, mask=o_p < P)
    if i_block == 0:
        tl.store(p_loss + i_share, loss)
        if not LAST:
            tl.store(p_count + i_share, count)
