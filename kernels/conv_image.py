"""Backwards through the convolutions of `conv2d.py`: gradients of images.

A program makes tiles of a task's images' gradient, and where the block below has a batch norm it leaves what that asks
of the gradient. Before, it may make what the product is over: dz of the pixels that its tiles see, of which those at
the edges are made by its neighbours too, to the same bits. So dz needs no launch of its own.
"""

import triton
import triton.language as tl

from .conv_block import channel_sums, store_sums
from .conv_block_backward import cotangents, deliver_norm, norm_sums
from .linear import accumulate, rows_of, store_matrix
from .pixels import covering, filters, share_of


@triton.jit
def image_tile(
    p_w, p_w_dot, p_dz, p_dz_dot, o_r, o_c, N: tl.constexpr, G: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    BK: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangent dx [BR, BC] at pixels o_r of the images and channels o_c, and with DUAL its tangent."""
    dx, dx_dot = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for at in range(0, G[6] * G[6] * G[5], BK):
        dz = covering(p_dz, o_r, at, N, G, BK)
        w = filters(p_w, at, o_c, G, BK)
        dx = accumulate(dx, dz, w, PRECISION)
        if DUAL:
            dx_dot = accumulate(dx_dot, dz, filters(p_w_dot, at, o_c, G, BK), PRECISION)
            dx_dot = accumulate(dx_dot, covering(p_dz_dot, o_r, at, N, G, BK), w, PRECISION)
    return dx, dx_dot


@triton.jit(do_not_specialize=["row", "first", "last"])
def conv_image_kernel(
    p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, p_winner, p_dy, p_dy_dot, p_sums, p_dz, p_dz_dot, p_to, p_with,
    p_state, p_next, p_lr, p_steps, p_u, p_dx, p_dx_dot, p_below, p_below_dot, p_below_stats, p_below_stats_dot,
    p_parts, row, first, last, N: tl.constexpr, SEEN: tl.constexpr, G: tl.constexpr, HP: tl.constexpr,
    WP: tl.constexpr, W_AT: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr, BIAS_AT: tl.constexpr,
    NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, P: tl.constexpr,
    PARTS: tl.constexpr, BS: tl.constexpr, MAKES_DZ: tl.constexpr, BZ: tl.constexpr, BO: tl.constexpr,
    ADD: tl.constexpr, SHARES: tl.constexpr, EACH: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    BELOW: tl.constexpr, DUAL: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    STATES: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx [T, N, H, W, C] from dz, on top of what is there with ADD; DUAL its tangent too. A program takes EACH tiles.

    With MAKES_DZ dz is made, and the norm's parameters' gradients taken where `sink.py` says, as in
    `block_backward_kernel`, BZ pixels and BO channels at a time; the convolution's input and output then have one size.
    BELOW is (SUMS, HZ, WZ, G_AT, B_AT, POOL, ACT, A, B) of the block whose y is x: with SUMS it gets in `parts` what
    `channel_sums` says; its z is [HZ, WZ].
    """
    C: tl.constexpr = G[2]
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[0] * G[1]
    HZ: tl.constexpr = BELOW[1]
    WZ: tl.constexpr = BELOW[2]
    BELOW_POOL: tl.constexpr = BELOW[5]
    i_task, i_share, o_c = share_of(SHARES, C, BC)
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    at_z, at_y = i_task * (N * G[3] * G[4] * OUT), i_task * (N * HP * WP * OUT)
    p_dz += at_z
    p_dz_dot += at_z
    if MAKES_DZ:
        REACH: tl.constexpr = G[8] * (G[1] + 1)
        OF: tl.constexpr = 4 if DUAL else 2
        at_stats, at_state = i_task * (2 * OUT), i_task * STATES * P
        for at_o in tl.static_range(0, OUT, BO):
            o_o = at_o + tl.arange(0, BO)
            sums = 0.0
            if NORM:
                sums = norm_sums(p_sums + i_task * (PARTS * OUT * OF), o_o, PARTS, BS, OUT, DUAL)
            for i in range((EACH * BR + 2 * REACH + BZ - 1) // BZ):
                o_r = i_share * (EACH * BR) - REACH + i * BZ + tl.arange(0, BZ)
                o_r = tl.where(o_r >= 0, o_r, ROWS)
                cotangents(
                    p_phi, p_v, p_z + at_z, p_z_dot + at_z, p_z + at_z, p_z_dot + at_z, p_stats + at_stats,
                    p_stats_dot + at_stats, p_winner + at_y, p_dy + at_y, p_dy_dot + at_y, p_dz, p_dz_dot, sums, o_r,
                    o_o, N, SEEN, G, HP, WP, G_AT, B_AT, NORM, POOL, ACT, A, B, "stored", DUAL,
                )  # fmt: skip
            if NORM:  # noqa: SIM102  the outer condition is the compiler's
                if i_share == 0:
                    deliver_norm(sums[3], sums[2], p_phi, p_to + i_task * P, p_with + i_task * P, p_state + at_state,
                                 p_next + at_state, p_lr, p_steps, p_u + i_task * P, o_o, first, last, G_AT, B_AT,
                                 BIAS_AT, OUT, P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
        tl.debug_barrier()  # the products read dz
    p_dx += i_task * (ROWS * C)
    p_dx_dot += i_task * (ROWS * C)
    for i in range(EACH):
        o_r = (i_share * EACH + i) * BR + tl.arange(0, BR)
        dx, dx_dot = image_tile(p_phi + W_AT, p_v + W_AT, p_dz, p_dz_dot, o_r, o_c, N, G, BR, BC, BK, DUAL,
                                PRECISION)  # fmt: skip
        mask = (o_r < ROWS)[:, None] & (o_c < C)[None, :]
        if ADD:
            dx += rows_of(p_dx, o_r, o_c, mask, C)
        store_matrix(p_dx, dx, o_r, o_c, ROWS, C)
        if DUAL:
            if ADD:
                dx_dot += rows_of(p_dx_dot, o_r, o_c, mask, C)
            store_matrix(p_dx_dot, dx_dot, o_r, o_c, ROWS, C)
    if BELOW[0]:
        p_below += i_task * (N * HZ * WZ * C)
        p_below_dot += i_task * (N * HZ * WZ * C)
        p_below_stats += i_task * (2 * C)
        p_below_stats_dot += i_task * (2 * C)
        tl.debug_barrier()  # dx comes back in one arrangement, and a few rows at a time: 112 registers for 235
        none = tl.zeros([BC], tl.float32)
        below = (none, none, none, none)
        for i in range(EACH * BR // 16):
            o_r = i_share * (EACH * BR) + i * 16 + tl.arange(0, 16)
            mask = (o_r < ROWS)[:, None] & (o_c < C)[None, :]
            dx = rows_of(p_dx, o_r, o_c, mask, C)
            dx_dot = rows_of(p_dx_dot, o_r, o_c, mask, C) if DUAL else dx
            below = channel_sums(
                below, p_phi, p_v, p_below, p_below_dot, p_below_stats, p_below_stats_dot, dx, dx_dot, o_r, o_c, mask,
                HZ, WZ, G[0], G[1], C, BELOW[3], BELOW[4], BELOW_POOL, BELOW[6], BELOW[7], BELOW[8], DUAL,
            )  # fmt: skip
        store_sums(p_parts, below, i_task * SHARES + i_share, o_c, C, DUAL)
