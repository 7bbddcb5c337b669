"""Backwards through the convolutions of `conv2d.py`: gradients of weights, and of images.

A program of the first makes a tile of a task's weight's gradient over a share of the pixels, one of the second tiles of
its images' gradient; where the block below has a batch norm, it leaves what that asks of the gradient too.
"""

import triton
import triton.language as tl

from .conv_block import channel_sums, store_sums
from .linear import accumulate, rows_of, store_matrix, turned
from .pixels import covering, filters, patches, share_of
from .sink import deliver
from .total import arrived_last


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


@triton.jit
def weight_tile(
    p_dz, p_dz_dot, p_x, p_x_dot, o_o, at_k, i_share, N: tl.constexpr, G: tl.constexpr, BIAS: tl.constexpr,
    EACH: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, DUAL: tl.constexpr,
    X_MOVES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW [BO, BK] = Σ dz x over a share's EACH blocks of pixels and, where BIAS is not 0, db [BO] = Σ dz; with DUAL
    their tangents."""
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[3] * G[4]
    g, g_bias = tl.zeros([BO, BK], tl.float32), tl.zeros([BO], tl.float32)
    for i in range(EACH):
        o_r = (i_share * EACH + i) * BR + tl.arange(0, BR)
        x = patches(p_x, o_r, at_k, N, G, BK)
        moving = turned(p_dz_dot if DUAL else p_dz, o_o, o_r, ROWS, OUT)
        g = accumulate(g, moving, x, PRECISION)
        if BIAS != 0:
            g_bias += tl.sum(moving.to(tl.float32), 1)
        if X_MOVES:
            dz = turned(p_dz, o_o, o_r, ROWS, OUT)
            g = accumulate(g, dz, patches(p_x_dot, o_r, at_k, N, G, BK), PRECISION)
    return g, g_bias


@triton.jit
def deliver_filters(
    g, g_bias, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o, at_k, first, last, G: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, BK: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr,
    HYPER: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """A tile of dW and, in one tile of each row of tiles, db, to where `sink.py` says; pointers are the weight's."""
    OUT: tl.constexpr = G[5]
    VALUES: tl.constexpr = G[6] * G[6] * G[2]
    GAP: tl.constexpr = (4 - (OUT * VALUES) % 4) % 4  # as in `linear_weight_kernel`
    o_k = at_k + tl.arange(0, BK)
    m_load = (o_o < OUT)[:, None] & (o_k < VALUES)[None, :]
    m_store = m_load | ((o_o == OUT)[:, None] & (o_k < GAP)[None, :])
    deliver(g, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o[:, None] * VALUES + o_k[None, :], m_load,
            m_store, first, last, P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    if BIAS != 0:  # noqa: SIM102  the outer condition is the compiler's
        if at_k == 0:
            deliver(g_bias, p_phi + BIAS, p_to + BIAS, p_with + BIAS, p_state + BIAS, p_next + BIAS, p_lr + BIAS,
                    p_steps, p_u + BIAS, o_o, o_o < OUT, o_o < (OUT + 3) // 4 * 4, first, last, P, SINK, RULE, HYPER,
                    LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit
def deliver_shares(
    g, g_bias, p_terms, p_arrived, i_tile, i_share, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o, at_k,
    first, last, G: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr, SHARES: tl.constexpr, BO: tl.constexpr,
    BK: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """The same of a share's terms: the last of SHARES programs to come here adds them all, in their order.

    `terms` and `arrived` are those of tile `i_tile` of all tasks' tiles, counted through.
    """
    if SHARES == 1:
        deliver_filters(g, g_bias, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o, at_k, first, last, G,
                        BIAS, P, BK, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    else:
        SIZE: tl.constexpr = BO * BK + BO
        p_terms += i_tile * SHARES * SIZE
        o_g = tl.arange(0, BO)[:, None] * BK + tl.arange(0, BK)[None, :]
        o_bias = BO * BK + tl.arange(0, BO)
        tl.store(p_terms + i_share * SIZE + o_g, g)
        if BIAS != 0:
            tl.store(p_terms + i_share * SIZE + o_bias, g_bias)
        if arrived_last(p_arrived + i_tile, SHARES):
            g, g_bias = tl.zeros([BO, BK], tl.float32), tl.zeros([BO], tl.float32)
            for _ in range(SHARES):
                g += tl.load(p_terms + o_g, cache_modifier=".cg")  # past the first-level cache, which is of one program
                if BIAS != 0:
                    g_bias += tl.load(p_terms + o_bias, cache_modifier=".cg")
                p_terms += SIZE
            deliver_filters(g, g_bias, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o, at_k, first, last,
                            G, BIAS, P, BK, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit(do_not_specialize=["row", "first", "last"])
def conv_weight_kernel(
    p_phi, p_dz, p_dz_dot, p_x, p_x_dot, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, p_terms, p_arrived, row,
    first, last, N: tl.constexpr, G: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    TILES: tl.constexpr, SHARES: tl.constexpr, EACH: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
    BR: tl.constexpr, DUAL: tl.constexpr, X_MOVES: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr,
    HYPER: tl.constexpr, STATES: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW, db (BIAS ≠ 0) to where `sink.py` says. dW has TILES tiles, each of SHARES shares of the pixels."""
    ACROSS: tl.constexpr = (G[6] * G[6] * G[2] + BK - 1) // BK
    i_task = (tl.program_id(0) // (TILES * SHARES)).to(tl.int64)
    i_tile, i_share = tl.program_id(0) // SHARES % TILES, tl.program_id(0) % SHARES
    p_phi += i_task * (row * 4)
    p_dz += i_task * (N * G[3] * G[4] * G[5])
    p_dz_dot += i_task * (N * G[3] * G[4] * G[5])
    o_o, at_k = i_tile // ACROSS * BO + tl.arange(0, BO), i_tile % ACROSS * BK
    at_x = i_task * (N * G[0] * G[1] * G[2])
    g, g_bias = weight_tile(p_dz, p_dz_dot, p_x + at_x, p_x_dot + at_x, o_o, at_k, i_share, N, G, BIAS, EACH, BO, BK,
                            BR, DUAL, X_MOVES, PRECISION)  # fmt: skip
    at = i_task * P + W_AT
    at_state = i_task * STATES * P + W_AT
    deliver_shares(g, g_bias, p_terms, p_arrived, i_task * TILES + i_tile, i_share, p_phi + W_AT, p_to + at,
                   p_with + at, p_state + at_state, p_next + at_state, p_lr + W_AT, p_steps, p_u + at, o_o, at_k,
                   first, last, G, BIAS, P, SHARES, BO, BK, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit(do_not_specialize=["row"])
def conv_image_kernel(
    p_phi, p_v, p_dz, p_dz_dot, p_dx, p_dx_dot, p_z, p_z_dot, p_stats, p_stats_dot, p_parts, row, N: tl.constexpr,
    G: tl.constexpr, W_AT: tl.constexpr, P: tl.constexpr, ADD: tl.constexpr, SHARES: tl.constexpr, EACH: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr, HZ: tl.constexpr, WZ: tl.constexpr,
    G_AT: tl.constexpr, B_AT: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    DUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx [T, N, H, W, C] from dz, on top of what is there with ADD; DUAL its tangent too. A program takes EACH tiles.

    With SUMS the block below, whose y is x, gets in `parts` what `channel_sums` says; z [HZ, WZ] and all from its
    POOL to B is that block's.
    """
    C: tl.constexpr = G[2]
    ROWS: tl.constexpr = N * G[0] * G[1]
    i_task, i_share, o_c = share_of(SHARES, C, BC)
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    p_dz += i_task * (N * G[3] * G[4] * G[5])
    p_dz_dot += i_task * (N * G[3] * G[4] * G[5])
    p_dx += i_task * (ROWS * C)
    p_dx_dot += i_task * (ROWS * C)
    p_z += i_task * (N * HZ * WZ * C)
    p_z_dot += i_task * (N * HZ * WZ * C)
    p_stats += i_task * (2 * C)
    p_stats_dot += i_task * (2 * C)
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
    if SUMS:
        tl.debug_barrier()  # dx comes back in one arrangement, and a few rows at a time: 112 registers for 235
        none = tl.zeros([BC], tl.float32)
        sums = (none, none, none, none)
        for i in range(EACH * BR // 16):
            o_r = i_share * (EACH * BR) + i * 16 + tl.arange(0, 16)
            mask = (o_r < ROWS)[:, None] & (o_c < C)[None, :]
            dx = rows_of(p_dx, o_r, o_c, mask, C)
            dx_dot = rows_of(p_dx_dot, o_r, o_c, mask, C) if DUAL else dx
            sums = channel_sums(sums, p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, dx, dx_dot, o_r, o_c, mask,
                                HZ, WZ, G[0], G[1], C, G_AT, B_AT, POOL, ACT, A, B, DUAL)  # fmt: skip
        store_sums(p_parts, sums, i_task * SHARES + i_share, o_c, C, DUAL)
