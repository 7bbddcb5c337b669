"""Convolutions of all tasks as implicit matrix products: each task's images [N, H, W, C] with filters of its own.

A filter's values are [KERNEL, KERNEL, C], so a weight [OUT, KERNEL² C] is read as a linear layer's is, and its inputs
are `patches` of the image, which are never stored. φ, its `row` and v are as in `linear.py`; the weight lies W_AT
values into a row. Padding is by zeros. A program makes tiles of one task.
"""

import triton
import triton.language as tl

from .linear import accumulate, matrix, store_matrix, tile_of
from .pixels import covering, filters, patches, share_of
from .sink import deliver


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
    delta = own - mean
    squares += tl.sum(off * off, 0) + delta * delta * (count * more / total)
    return total, mean + delta * (more / total), squares


@triton.jit(do_not_specialize=["row"])
def conv_forward_kernel(
    p_phi, p_v, p_x, p_x_dot, p_z, p_z_dot, p_stats, p_parts, row, N: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr,
    SHARES: tl.constexpr, EACH: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
    TANGENTS: tl.constexpr, X_MOVES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z = x ∗ W + b [T, N, HO, WO, OUT], or with TANGENTS ż along v and x_dot, with z and `stats` [T, 2, OUT] known.

    A program takes EACH tiles one below the other. With NORM it leaves what a batch norm asks of its pixels, in `parts`
    [T, SHARES, 2, OUT]: mean and centred sum of squares of z, or Σ ż and Σ x̂ ż. A norm takes biases away: they are not
    even added. BIAS is how far the bias lies behind the weight (0: none).
    """
    ROWS: tl.constexpr = N * HO * WO
    VALUES: tl.constexpr = KERNEL * KERNEL * C
    i_task, i_share, o_o = share_of(SHARES, OUT, BO)
    p_w = p_phi + i_task * tl.multiple_of(row, 4) + W_AT
    p_w_dot = p_v + i_task * P + W_AT
    p_x += i_task * (N * H * W * C)
    p_x_dot += i_task * (N * H * W * C)
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
        for at in range(0, VALUES, BK):
            o_k = at + tl.arange(0, BK)
            x = patches(p_x, o_r, at, N, H, W, C, HO, WO, KERNEL, STRIDE, PAD, BK)
            if TANGENTS:
                z = accumulate(z, x, tl.trans(matrix(p_w_dot, o_o, o_k, OUT, VALUES)), PRECISION)
                if X_MOVES:
                    x = patches(p_x_dot, o_r, at, N, H, W, C, HO, WO, KERNEL, STRIDE, PAD, BK)
                    z = accumulate(z, x, tl.trans(matrix(p_w, o_o, o_k, OUT, VALUES)), PRECISION)
            else:
                z = accumulate(z, x, tl.trans(matrix(p_w, o_o, o_k, OUT, VALUES)), PRECISION)
        if BIAS != 0:  # noqa: SIM102  both conditions are the compiler's
            if not NORM:
                z += tl.load((p_w_dot if TANGENTS else p_w) + BIAS + o_o, mask=o_o < OUT, other=0.0)[None, :]
        store_matrix(p_z_dot if TANGENTS else p_z, z, o_r, o_o, ROWS, OUT)
        if NORM:
            if TANGENTS:  # rows beyond ROWS have inputs of zero
                first += tl.sum(z, 0)
                second += tl.sum((matrix(p_z, o_r, o_o, ROWS, OUT) - mean[None, :]) * r[None, :] * z, 0)
            else:
                count, first, second = joined(count, first, second, z, at_r, ROWS, BR)
    if NORM:
        p_parts += (i_task * SHARES + i_share) * (2 * OUT)
        tl.store(p_parts + o_o, first, mask=o_o < OUT)
        tl.store(p_parts + OUT + o_o, second, mask=o_o < OUT)


@triton.jit(do_not_specialize=["row"])
def conv_backward_kernel(
    p_phi, p_v, p_dz, p_dz_dot, p_dx, p_dx_dot, row, N: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, W_AT: tl.constexpr, P: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    DUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangent dx [T, N, H, W, C] of the images; DUAL its tangent too."""
    i_task, o_r, o_c = tile_of(N * H * W, C, BR, BC)
    p_w = p_phi + i_task * tl.multiple_of(row, 4) + W_AT
    p_w_dot = p_v + i_task * P + W_AT
    p_dz += i_task * (N * HO * WO * OUT)
    p_dz_dot += i_task * (N * HO * WO * OUT)
    dx, dx_dot = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for at in range(0, KERNEL * KERNEL * OUT, BK):
        dz = covering(p_dz, o_r, at, N, H, W, OUT, HO, WO, KERNEL, STRIDE, PAD, BK)
        w = filters(p_w, at, o_c, C, OUT, KERNEL, BK)
        dx = accumulate(dx, dz, w, PRECISION)
        if DUAL:
            dx_dot = accumulate(dx_dot, dz, filters(p_w_dot, at, o_c, C, OUT, KERNEL, BK), PRECISION)
            dz = covering(p_dz_dot, o_r, at, N, H, W, OUT, HO, WO, KERNEL, STRIDE, PAD, BK)
            dx_dot = accumulate(dx_dot, dz, w, PRECISION)
    at_task = i_task * (N * H * W * C)
    store_matrix(p_dx + at_task, dx, o_r, o_c, N * H * W, C)
    if DUAL:
        store_matrix(p_dx_dot + at_task, dx_dot, o_r, o_c, N * H * W, C)


@triton.jit(do_not_specialize=["row", "first", "last"])
def conv_weight_kernel(
    p_phi, p_dz, p_dz_dot, p_x, p_x_dot, p_to, p_with, p_state, p_next, p_lr, p_steps, row, first, last,
    N: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, W_AT: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, DUAL: tl.constexpr,
    X_MOVES: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, STATES: tl.constexpr,
    LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW = Σ dz x and, where BIAS is not 0, db = Σ dz; with DUAL their tangents. They go where `sink.py` says."""
    ROWS: tl.constexpr = N * HO * WO
    VALUES: tl.constexpr = KERNEL * KERNEL * C
    ACROSS: tl.constexpr = (VALUES + BK - 1) // BK
    i_task, o_o, o_k = tile_of(OUT, VALUES, BO, BK)
    at_k = tl.program_id(0) % ACROSS * BK
    p_dz += i_task * (ROWS * OUT)
    p_dz_dot += i_task * (ROWS * OUT)
    p_x += i_task * (N * H * W * C)
    p_x_dot += i_task * (N * H * W * C)
    g, g_bias = tl.zeros([BO, BK], tl.float32), tl.zeros([BO], tl.float32)
    for at in range(0, ROWS, BR):
        o_r = at + tl.arange(0, BR)
        dz = matrix(p_dz, o_r, o_o, ROWS, OUT)
        x = patches(p_x, o_r, at_k, N, H, W, C, HO, WO, KERNEL, STRIDE, PAD, BK)
        if DUAL:
            dz_dot = matrix(p_dz_dot, o_r, o_o, ROWS, OUT)
            g = accumulate(g, tl.trans(dz_dot), x, PRECISION)
        else:
            dz_dot = dz
            g = accumulate(g, tl.trans(dz), x, PRECISION)
        if BIAS != 0:
            g_bias += tl.sum(dz_dot.to(tl.float32), 0)
        if X_MOVES:
            x = patches(p_x_dot, o_r, at_k, N, H, W, C, HO, WO, KERNEL, STRIDE, PAD, BK)
            g = accumulate(g, tl.trans(dz), x, PRECISION)
    p_phi += i_task * tl.multiple_of(row, 4) + W_AT
    p_to += i_task * P + W_AT
    p_with += i_task * P + W_AT
    p_state += i_task * STATES * P + W_AT
    p_next += i_task * STATES * P + W_AT
    p_lr += W_AT
    GAP: tl.constexpr = (4 - (OUT * VALUES) % 4) % 4  # as in `linear_weight_kernel`
    m_load = (o_o < OUT)[:, None] & (o_k < VALUES)[None, :]
    m_store = m_load | ((o_o == OUT)[:, None] & (o_k < GAP)[None, :])
    deliver(g, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, o_o[:, None] * VALUES + o_k[None, :], m_load,
            m_store, first, last, P, SINK, RULE, HYPER, LR_EACH)  # fmt: skip
    if BIAS != 0:  # noqa: SIM102  the outer condition is the compiler's
        if tl.program_id(0) % ACROSS == 0:  # one tile of each row of tiles
            deliver(g_bias, p_phi + BIAS, p_to + BIAS, p_with + BIAS, p_state + BIAS, p_next + BIAS, p_lr + BIAS,
                    p_steps, o_o, o_o < OUT, o_o < (OUT + 3) // 4 * 4, first, last, P, SINK, RULE, HYPER,
                    LR_EACH)  # fmt: skip
