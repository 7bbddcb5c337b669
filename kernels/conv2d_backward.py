"""Backwards through the convolutions of `conv2d.py`: gradients of weights. Those of images: `conv_image.py`.

A program makes a tile of a task's weight's gradient over a share of the pixels.
"""

import triton
import triton.language as tl

from .linear import accumulate, turned
from .pixels import patches
from .sink import deliver
from .total import arrived_last


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
