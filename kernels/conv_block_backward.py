"""Backwards through what is behind a convolution (`conv_block.py`), for all tasks: sums over channels, then dz.

The sums that a norm asks for come from whatever makes dy, or from a launch of their own. A first block whose z is not
stored makes dz for its weight's gradient alone, in one launch.
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope
from .conv2d_backward import deliver_shares
from .conv_block import channel_sums, channels, normalised, parameter, parameters, pre_activation, shares, store_sums
from .linear import accumulate, dot, matrix, rows_of, store_matrix, tile_of
from .pixels import patches, pixel, share_of
from .sink import deliver


@triton.jit(do_not_specialize=["row"])
def block_reduce_kernel(
    p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, p_dy, p_dy_dot, p_parts, row, N: tl.constexpr, HZ: tl.constexpr,
    WZ: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, OUT: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr,
    POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, P: tl.constexpr, SHARES: tl.constexpr,
    EACH: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """`channel_sums` of every share of y's pixels; the parts are [T, SHARES, 2 or 4, OUT]."""
    i_task, i_share, o_c = share_of(SHARES, OUT, BC)
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    p_z += i_task * (N * HZ * WZ * OUT)
    p_z_dot += i_task * (N * HZ * WZ * OUT)
    p_dy += i_task * (N * HP * WP * OUT)
    p_dy_dot += i_task * (N * HP * WP * OUT)
    p_stats += i_task * (2 * OUT)
    p_stats_dot += i_task * (2 * OUT)
    none = tl.zeros([BC], tl.float32)
    sums = (none, none, none, none)
    for i in range(EACH):
        o_r = (i_share * EACH + i) * BR + tl.arange(0, BR)
        mask = (o_r < N * HP * WP)[:, None] & (o_c < OUT)[None, :]
        dy = rows_of(p_dy, o_r, o_c, mask, OUT)
        dy_dot = rows_of(p_dy_dot, o_r, o_c, mask, OUT) if DUAL else dy
        sums = channel_sums(sums, p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, dy, dy_dot, o_r, o_c, mask, HZ, WZ,
                            HP, WP, OUT, G_AT, B_AT, POOL, ACT, A, B, DUAL)  # fmt: skip
    store_sums(p_parts, sums, i_task * SHARES + i_share, o_c, OUT, DUAL)


@triton.jit
def unpooled(
    p_dy, p_winner, o_r, o_c, N: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, HP: tl.constexpr,
    WP: tl.constexpr, OUT: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """Cotangent of f(a) at pixels o_r of z, from that of y."""
    m_c = (o_c < OUT)[None, :]
    if POOL == "none":
        d = rows_of(p_dy, o_r, o_c, (o_r < N * HO * WO)[:, None] & m_c, OUT)
    else:
        n, h, w = pixel(o_r, HO, WO)
        # an odd last row or column is in no window
        mask = ((o_r < N * HO * WO) & (h < 2 * HP) & (w < 2 * WP))[:, None] & m_c
        o_y = (n * HP + h // 2) * WP + w // 2
        d = rows_of(p_dy, o_y, o_c, mask, OUT)
        if POOL == "max":
            winner = tl.load(p_winner + o_y[:, None] * OUT + o_c[None, :], mask=mask, other=0)
            d = tl.where(winner == (h % 2 * 2 + w % 2)[:, None], d, 0.0)
        else:
            d *= 0.25
    return d


@triton.jit
def deliver_channels(
    g, AT: tl.constexpr, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_c, first, last, OUT: tl.constexpr,
    P: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """A channel parameter's gradient [BC] to where `sink.py` says, if there is such a parameter; pointers are rows."""
    if AT >= 0:
        deliver(g, p_phi + AT, p_to + AT, p_with + AT, p_state + AT, p_next + AT, p_lr + AT, p_steps, p_u + AT, o_c,
                o_c < OUT, o_c < (OUT + 3) // 4 * 4, first, last, P, SINK, RULE, HYPER, LR_EACH,
                DIRECTIONS)  # fmt: skip


@triton.jit
def deliver_norm(
    d_gamma, d_beta, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_c, first, last, G_AT: tl.constexpr,
    B_AT: tl.constexpr, BIAS_AT: tl.constexpr, OUT: tl.constexpr, P: tl.constexpr, SINK: tl.constexpr,
    RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """dγ, dβ and, of a convolution's bias, which the norm takes away, a zero (BIAS_AT ≥ 0); pointers are rows."""
    deliver_channels(d_gamma, G_AT, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_c, first, last, OUT, P,
                     SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    deliver_channels(d_beta, B_AT, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_c, first, last, OUT, P,
                     SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    none = tl.zeros(d_beta.shape, tl.float32)
    deliver_channels(none, BIAS_AT, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_c, first, last, OUT, P,
                     SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit
def norm_sums(p_parts, o_c, SHARES: tl.constexpr, BS: tl.constexpr, OUT: tl.constexpr, DUAL: tl.constexpr):
    """dβ, dγ and, with DUAL, their tangents [BC], from the shares' parts."""
    OF: tl.constexpr = 4 if DUAL else 2
    o_s = tl.arange(0, BS)
    d_beta = tl.sum(shares(p_parts, o_s, o_c, 0, OF, SHARES, OUT), 0)
    d_gamma = tl.sum(shares(p_parts, o_s, o_c, 1, OF, SHARES, OUT), 0)
    d_beta_dot, d_gamma_dot = d_beta, d_gamma
    if DUAL:
        d_beta_dot = tl.sum(shares(p_parts, o_s, o_c, 2, OF, SHARES, OUT), 0)
        d_gamma_dot = tl.sum(shares(p_parts, o_s, o_c, 3, OF, SHARES, OUT), 0)
    return d_beta, d_gamma, d_beta_dot, d_gamma_dot


@triton.jit
def centred(
    z, z_dot, d, d_dot, sums, seen, p_phi, p_v, p_stats, p_stats_dot, o_c, ROWS: tl.constexpr, OUT: tl.constexpr,
    G_AT: tl.constexpr, B_AT: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """dz and its tangent through a norm, from its `norm_sums`; pointers are the task's.

    `seen` [BR] says which pixels the statistics are of, ROWS how many those are.
    """
    d_beta, d_gamma, d_beta_dot, d_gamma_dot = sums
    share = tl.where(seen, 1.0 / ROWS, 0.0)[:, None]
    g_mean, gx_mean = share * d_beta[None, :], share * d_gamma[None, :]
    mean, r = channels(p_stats, o_c, OUT)
    gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
    scale = (gamma * r)[None, :]
    if DUAL:
        drift, bend = channels(p_stats_dot, o_c, OUT)
        gamma, beta, gamma_dot, beta_dot = parameters(p_phi, p_v, o_c, G_AT, B_AT, OUT)
        xh, xh_dot, a, a_dot = normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot)
        slope = act_slope(a, ACT, A, B)
        u = slope * d - g_mean - xh * gx_mean
        u_dot = slope * d_dot + act_curvature(a, ACT, A, B) * a_dot * d - share * d_beta_dot[None, :]
        u_dot -= xh_dot * gx_mean + xh * share * d_gamma_dot[None, :]
        dz_dot = (gamma_dot * r - gamma * r * r * bend)[None, :] * u + scale * u_dot
    else:
        xh = (z - mean[None, :]) * r[None, :]
        u = act_slope(xh * gamma[None, :] + beta[None, :], ACT, A, B) * d - g_mean - xh * gx_mean
        dz_dot = u
    return scale * u, dz_dot


@triton.jit
def cotangents(
    p_phi, p_v, p_x, p_x_dot, p_z, p_z_dot, p_stats, p_stats_dot, p_winner, p_dy, p_dy_dot, p_dz, p_dz_dot, sums, o_r,
    o_c, N: tl.constexpr, SEEN: tl.constexpr, G: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, G_AT: tl.constexpr,
    B_AT: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    Z: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """Makes dz at pixels o_r and channels o_c from dy and `norm_sums`; DUAL its tangent. Pointers are the task's."""
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[3] * G[4]
    mask = (o_r < ROWS)[:, None] & (o_c < OUT)[None, :]
    z = pre_activation(p_z, p_x, p_phi, o_r, o_c, mask, N, G, 0, 16, Z, "ieee")
    d = unpooled(p_dy, p_winner, o_r, o_c, N, G[3], G[4], HP, WP, OUT, POOL)
    if DUAL:
        z_dot = pre_activation(p_z_dot, p_x_dot, p_phi, o_r, o_c, mask, N, G, 0, 16, Z, "ieee")
        d_dot = unpooled(p_dy_dot, p_winner, o_r, o_c, N, G[3], G[4], HP, WP, OUT, POOL)
    else:
        z_dot, d_dot = z, d
    if NORM:
        dz, dz_dot = centred(z, z_dot, d, d_dot, sums, o_r < SEEN * G[3] * G[4], p_phi, p_v, p_stats, p_stats_dot, o_c,
                             SEEN * G[3] * G[4], OUT, G_AT, B_AT, ACT, A, B, DUAL)  # fmt: skip
    else:
        slope = act_slope(z, ACT, A, B)
        dz = slope * d
        dz_dot = slope * d_dot + act_curvature(z, ACT, A, B) * z_dot * d
    store_matrix(p_dz, dz, o_r, o_c, ROWS, OUT)
    if DUAL:
        store_matrix(p_dz_dot, dz_dot, o_r, o_c, ROWS, OUT)


@triton.jit(do_not_specialize=["row", "first", "last"])
def block_backward_kernel(
    p_phi, p_v, p_x, p_x_dot, p_z, p_z_dot, p_stats, p_stats_dot, p_winner, p_dy, p_dy_dot, p_parts, p_dz, p_dz_dot,
    p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, row, first, last, N: tl.constexpr, SEEN: tl.constexpr,
    G: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr, BIAS_AT: tl.constexpr,
    NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, P: tl.constexpr,
    SHARES: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, Z: tl.constexpr, DUAL: tl.constexpr,
    SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, STATES: tl.constexpr, LR_EACH: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """dz from dy and the shares' parts of Σ g and Σ g x̂; DUAL its tangent too. z is stored, or a sum.

    With NORM the sums are dβ and dγ (their tangents with DUAL), which one program of each task's takes where `sink.py`
    says, and a zero for a convolution's bias, which the norm takes away (BIAS_AT ≥ 0).
    """
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[3] * G[4]
    i_task, o_r, o_c = tile_of(ROWS, OUT, BR, BC)
    at_z, at_y = i_task * (ROWS * OUT), i_task * (N * HP * WP * OUT)
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    sums = 0.0
    at_stats = i_task * (2 * OUT)
    if NORM:
        OF: tl.constexpr = 4 if DUAL else 2
        sums = norm_sums(p_parts + i_task * (SHARES * OUT * OF), o_c, SHARES, BS, OUT, DUAL)
    cotangents(
        p_phi, p_v, p_x + at_z, p_x_dot + at_z, p_z + at_z, p_z_dot + at_z, p_stats + at_stats, p_stats_dot + at_stats,
        p_winner + at_y, p_dy + at_y, p_dy_dot + at_y, p_dz + at_z, p_dz_dot + at_z, sums, o_r, o_c, N, SEEN, G, HP, WP,
        G_AT, B_AT, NORM, POOL, ACT, A, B, Z, DUAL,
    )  # fmt: skip
    if NORM:
        ACROSS: tl.constexpr = (OUT + BC - 1) // BC
        if tl.program_id(0) % (ACROSS * ((ROWS + BR - 1) // BR)) < ACROSS:  # the first tile of these channels
            at_state = i_task * STATES * P
            deliver_norm(sums[3], sums[2], p_phi, p_to + i_task * P, p_with + i_task * P, p_state + at_state,
                         p_next + at_state, p_lr, p_steps, p_u + i_task * P, o_c, first, last, G_AT, B_AT, BIAS_AT, OUT,
                         P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit
def filtered(x, p_w, o_o, G: tl.constexpr, BIAS: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """z of patches x that are whole; or ż, along p_w."""
    w = matrix(p_w, o_o, tl.arange(0, BK), G[5], G[6] * G[6] * G[2])
    z = dot(x, tl.trans(w), PRECISION)
    if BIAS != 0:
        z += tl.load(p_w + BIAS + o_o, mask=o_o < G[5], other=0.0)[None, :]
    return z


@triton.jit(do_not_specialize=["row", "first", "last"])
def block_weight_kernel(
    p_phi, p_v, p_x, p_stats, p_stats_dot, p_winner, p_dy, p_dy_dot, p_parts, p_to, p_with, p_state, p_next, p_lr,
    p_steps, p_u, p_terms, p_arrived, row, first, last, N: tl.constexpr, SEEN: tl.constexpr, G: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr,
    BIAS_AT: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    P: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr, EACH: tl.constexpr, PARTS: tl.constexpr,
    BS: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, DUAL: tl.constexpr, SINK: tl.constexpr,
    RULE: tl.constexpr, HYPER: tl.constexpr, STATES: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The parameters' gradients of a block that is the first and whose z is not stored, from dy and PARTS shares' parts
    of its sums; with DUAL their tangents. A filter's values are one block of BK.

    z is convolved again from the image, dz made from it and taken into dW at once. TILES and SHARES as in
    `conv_weight_kernel`.
    """
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[3] * G[4]
    i_task = (tl.program_id(0) // (TILES * SHARES)).to(tl.int64)
    i_tile, i_share = tl.program_id(0) // SHARES % TILES, tl.program_id(0) % SHARES
    o_o = i_tile * BO + tl.arange(0, BO)
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    p_x += i_task * (N * G[0] * G[1] * G[2])
    at_y, at_stats = i_task * (N * HP * WP * OUT), i_task * (2 * OUT)
    p_dy += at_y
    p_dy_dot += at_y
    p_winner += at_y
    OF: tl.constexpr = 4 if DUAL else 2
    p_stats += at_stats
    p_stats_dot += at_stats
    g, g_bias = tl.zeros([BO, BK], tl.float32), tl.zeros([BO], tl.float32)
    if NORM:
        sums = norm_sums(p_parts + i_task * (PARTS * OUT * OF), o_o, PARTS, BS, OUT, DUAL)
    for i in range(EACH):
        o_r = (i_share * EACH + i) * BR + tl.arange(0, BR)
        mask = (o_r < ROWS)[:, None] & (o_o < OUT)[None, :]
        x = patches(p_x, o_r, 0, N, G, BK)
        z = filtered(x, p_phi + W_AT, o_o, G, BIAS, BK, PRECISION)
        d = unpooled(p_dy, p_winner, o_r, o_o, N, G[3], G[4], HP, WP, OUT, POOL)
        z_dot, d_dot = z, d
        if DUAL:
            z_dot = filtered(x, p_v + W_AT, o_o, G, BIAS, BK, PRECISION)
            d_dot = unpooled(p_dy_dot, p_winner, o_r, o_o, N, G[3], G[4], HP, WP, OUT, POOL)
        if NORM:
            dz, dz_dot = centred(
                z, z_dot, d, d_dot, sums, o_r < SEEN * G[3] * G[4], p_phi, p_v, p_stats, p_stats_dot, o_o,
                SEEN * G[3] * G[4], OUT, G_AT, B_AT, ACT, A, B, DUAL,
            )  # fmt: skip
        else:
            slope = act_slope(z, ACT, A, B)
            dz = slope * d
            dz_dot = slope * d_dot + act_curvature(z, ACT, A, B) * z_dot * d
        out = tl.where(mask, dz_dot if DUAL else dz, 0.0)  # the statistics' share is of pixels that there are
        g = accumulate(g, tl.trans(out), x, PRECISION)
        if BIAS != 0:
            g_bias += tl.sum(out, 0)
    p_to += i_task * P
    p_with += i_task * P
    p_state += i_task * STATES * P
    p_next += i_task * STATES * P
    p_u += i_task * P
    deliver_shares(g, g_bias, p_terms, p_arrived, i_task * TILES + i_tile, i_share, p_phi + W_AT, p_to + W_AT,
                   p_with + W_AT, p_state + W_AT, p_next + W_AT, p_lr + W_AT, p_steps, p_u + W_AT, o_o, 0, first, last,
                   G, BIAS, P, SHARES, BO, BK, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    if NORM:  # noqa: SIM102  the outer condition is the compiler's
        if i_share == 0:
            deliver_norm(sums[3], sums[2], p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o, first, last,
                         G_AT, B_AT, BIAS_AT, OUT, P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
