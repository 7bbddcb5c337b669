"""Convolutions of all tasks as implicit matrix products: each task's images [N, H, W, C] with filters of its own.

A filter's values are [KERNEL, KERNEL, C], so a weight [OUT, KERNEL² C] is read as a linear layer's is, and its inputs
are `patches` of the image, which are never stored. φ, its `row` and v are as in `linear.py`; the weight lies W_AT
values into a row. Padding is by zeros, the geometry G as in `pixels.py`. A program makes tiles of one task.
"""

import triton
import triton.language as tl

from .linear import accumulate, matrix, rows_of, store_matrix
from .pixels import patches, share_of


@triton.jit
def convolved(
    z, p_x, p_w, o_r, o_o, N: tl.constexpr, G: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """z [BR, BO] plus x ∗ W at output pixels o_r, filters o_o."""
    VALUES: tl.constexpr = G[6] * G[6] * G[2]
    for at in range(0, VALUES, BK):
        x = patches(p_x, o_r, at, N, G, BK)
        z = accumulate(z, x, tl.trans(matrix(p_w, o_o, at + tl.arange(0, BK), G[5], VALUES)), PRECISION)
    return z


@triton.jit
def joined(count, mean, squares, z, at, ROWS: tl.constexpr, BR: tl.constexpr):
    """Number, mean [BO] and centred sum of squares [BO] of what was counted, with a block z of rows at … joined to it.

    Chan, Golub, LeVeque 1983: without the cancellation of E[z²] − mean². Rows beyond ROWS do not count.
    """
    more = tl.minimum(tl.maximum(ROWS - at, 0), BR).to(tl.float32)
    mask = (at + tl.arange(0, BR) < ROWS)[:, None]
    own = tl.sum(tl.where(mask, z, 0.0), 0) / tl.maximum(more, 1.0)
    off = tl.where(mask, z - own[None, :], 0.0)
    total = count + more
    part = more / tl.maximum(total, 1.0)  # of nothing, nothing
    delta = own - mean
    squares += tl.sum(off * off, 0) + delta * delta * (count * part)
    return total, mean + delta * part, squares


@triton.jit(do_not_specialize=["row"])
def conv_forward_kernel(
    p_phi, p_v, p_x, p_x_dot, p_z, p_z_dot, p_stats, p_parts, row, N: tl.constexpr, SEEN: tl.constexpr,
    G: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr, STORE: tl.constexpr,
    SHARES: tl.constexpr, EACH: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
    TANGENTS: tl.constexpr, X_MOVES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z = x ∗ W + b [T, N, HO, WO, OUT], or with TANGENTS ż along v and x_dot, with z and `stats` [T, 2, OUT] known.

    A program takes EACH tiles one below the other. With NORM it leaves what a batch norm asks of its pixels, in `parts`
    [T, SHARES, 2, OUT]: mean and centred sum of squares of z over the first SEEN images, or Σ ż and Σ x̂ ż. Without
    STORE that is all it leaves, and z is not known either. A norm takes biases away: they are not even added. BIAS is
    how far the bias lies behind the weight (0: none).
    """
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[3] * G[4]
    i_task, i_share, o_o = share_of(SHARES, OUT, BO)
    p_w = p_phi + i_task * (row * 4) + W_AT
    p_w_dot = p_v + i_task * P + W_AT
    p_x += i_task * (N * G[0] * G[1] * G[2])
    p_x_dot += i_task * (N * G[0] * G[1] * G[2])
    p_z += i_task * (ROWS * OUT)
    p_z_dot += i_task * (ROWS * OUT)
    count, first, second = 0.0, tl.zeros([BO], tl.float32), tl.zeros([BO], tl.float32)
    if NORM and TANGENTS:
        mean = tl.load(p_stats + i_task * (2 * OUT) + o_o, mask=o_o < OUT, other=0.0)
        r = tl.load(p_stats + i_task * (2 * OUT) + OUT + o_o, mask=o_o < OUT, other=0.0)
    for i in range(EACH):
        at_r = (i_share * EACH + i) * BR
        o_r = at_r + tl.arange(0, BR)
        z = tl.zeros([BR, BO], tl.float32)
        if TANGENTS:
            z_dot = convolved(z, p_x, p_w_dot, o_r, o_o, N, G, BK, PRECISION)
            if X_MOVES:
                z_dot = convolved(z_dot, p_x_dot, p_w, o_r, o_o, N, G, BK, PRECISION)
            if BIAS != 0:
                z_dot += tl.load(p_w_dot + BIAS + o_o, mask=o_o < OUT, other=0.0)[None, :]
            if STORE:
                store_matrix(p_z_dot, z_dot, o_r, o_o, ROWS, OUT)
            if NORM:  # rows beyond ROWS have inputs of zero
                if STORE:
                    z = rows_of(p_z, o_r, o_o, (o_r < ROWS)[:, None] & (o_o < OUT)[None, :], OUT)
                else:
                    z = convolved(z, p_x, p_w, o_r, o_o, N, G, BK, PRECISION)
                first += tl.sum(z_dot, 0)
                second += tl.sum((z - mean[None, :]) * r[None, :] * z_dot, 0)
        else:
            z = convolved(z, p_x, p_w, o_r, o_o, N, G, BK, PRECISION)
            if BIAS != 0:
                z += tl.load(p_w + BIAS + o_o, mask=o_o < OUT, other=0.0)[None, :]
            if STORE:
                store_matrix(p_z, z, o_r, o_o, ROWS, OUT)
            if NORM:
                count, first, second = joined(count, first, second, z, at_r, SEEN * G[3] * G[4], BR)
    if NORM:
        p_parts += (i_task * SHARES + i_share) * (2 * OUT)
        tl.store(p_parts + o_o, first, mask=o_o < OUT)
        tl.store(p_parts + OUT + o_o, second, mask=o_o < OUT)
