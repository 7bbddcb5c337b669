"""What is behind a convolution, for all tasks: batch norm by the batch's own statistics, activation f, 2 × 2 pool.

    x̂ = (z − μ) r,  a = γ x̂ + β,  y = pool(f(a));  without NORM a = z

z is [T, N, HO, WO, OUT]; y, its winners and what they picked are [T, N, HP, WP, OUT]. `stats` [T, 2, OUT] are μ and
r, and of tangents the means of ż and x̂ ż. A program makes a tile of one task: pixels × channels. POOL is "max" (the
first maximum of f(a), as PyTorch takes it, and a NaN wins), "mean" or "none". G_AT and B_AT are the places of γ and β
in a row (−1: 1 and 0). Formulas: README.md.
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope, act_value
from .linear import matrix, store_matrix, tile_of
from .pixels import pixel, share_of
from .sink import deliver


@triton.jit
def parameter(p, AT: tl.constexpr, o_c, OUT: tl.constexpr, NONE: tl.constexpr):
    """A parameter [BC] of channels o_c out of a row, or the number NONE where there is no such parameter."""
    if AT >= 0:
        value = tl.load(p + AT + o_c, mask=o_c < OUT, other=0.0)
    else:
        value = tl.full(o_c.shape, NONE, tl.float32)
    return value


@triton.jit
def channels(p_stats, o_c, OUT: tl.constexpr):
    """The two numbers of each channel."""
    return tl.load(p_stats + o_c, mask=o_c < OUT, other=0.0), tl.load(p_stats + OUT + o_c, mask=o_c < OUT, other=0.0)


@triton.jit
def shares(p_parts, o_s, o_c, WHICH: tl.constexpr, OF: tl.constexpr, SHARES: tl.constexpr, OUT: tl.constexpr):
    """One of the OF numbers [BS, BC] that every share of the rows left for every channel."""
    mask = (o_s < SHARES)[:, None] & (o_c < OUT)[None, :]
    return tl.load(p_parts + (o_s * (OF * OUT))[:, None] + (WHICH * OUT + o_c)[None, :], mask=mask, other=0.0)


@triton.jit
def moments(p_parts, o_c, EPS: tl.constexpr, ROWS: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr,
            BS: tl.constexpr, OUT: tl.constexpr):  # fmt: skip
    """μ and r = (var + ε)^−½ of channels, from the means and centred sums of squares of shares of SHARE rows."""
    o_s = tl.arange(0, BS)
    count = tl.where(o_s < SHARES, tl.minimum(ROWS - o_s * SHARE, SHARE), 0).to(tl.float32)[:, None]
    means = shares(p_parts, o_s, o_c, 0, 2, SHARES, OUT)
    mean = tl.sum(count * means, 0) / ROWS
    off = means - mean[None, :]
    squares = tl.sum(shares(p_parts, o_s, o_c, 1, 2, SHARES, OUT) + count * off * off, 0)
    return mean, tl.rsqrt(squares / ROWS + EPS)


@triton.jit
def corner(o_r, Q: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
           POOL: tl.constexpr):  # fmt: skip
    """The pixel of z that is the Q-th, row-major, of the window of pixels o_r of y."""
    if POOL == "none":
        o_z = o_r
    else:
        n, h, w = pixel(o_r, HP, WP)
        o_z = (n * HO + 2 * h + Q // 2) * WO + 2 * w + Q % 2
    return o_z


@triton.jit
def rows_of(p, o_r, o_c, mask, OUT: tl.constexpr):
    """Channels o_c of pixels o_r, in float32."""
    return tl.load(p + o_r[:, None] * OUT + o_c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["row"])
def block_forward_kernel(
    p_phi, p_z, p_parts, p_stats, p_y, p_picked, p_winner, row, N: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr, OUT: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr, NORM: tl.constexpr,
    EPS: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SHARE: tl.constexpr,
    SHARES: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y from z and the shares' parts of the statistics, which are joined and left in `stats`; a maximum leaves its
    winners, 0 to 3 in their windows, and the z that they picked."""
    i_task, o_r, o_c = tile_of(N * HP * WP, OUT, BR, BC)
    if NORM:
        p_phi += i_task * tl.multiple_of(row, 4)
        mean, r = moments(p_parts + i_task * (SHARES * 2 * OUT), o_c, EPS, N * HO * WO, SHARE, SHARES, BS, OUT)
        gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
        ACROSS: tl.constexpr = (OUT + BC - 1) // BC
        if tl.program_id(0) % (ACROSS * ((N * HP * WP + BR - 1) // BR)) < ACROSS:  # the first tile of these channels
            tl.store(p_stats + i_task * (2 * OUT) + o_c, mean, mask=o_c < OUT)
            tl.store(p_stats + i_task * (2 * OUT) + OUT + o_c, r, mask=o_c < OUT)
    p_z += i_task * (N * HO * WO * OUT)
    at_task = i_task * (N * HP * WP * OUT)
    mask = (o_r < N * HP * WP)[:, None] & (o_c < OUT)[None, :]
    for q in tl.static_range(1 if POOL == "none" else 4):
        z = rows_of(p_z, corner(o_r, q, HO, WO, HP, WP, POOL), o_c, mask, OUT)
        if NORM:
            value = act_value((z - mean[None, :]) * r[None, :] * gamma[None, :] + beta[None, :], ACT, A, B)
        else:
            value = act_value(z, ACT, A, B)
        if q == 0:
            y, picked, winner = value, z, tl.zeros([BR, BC], tl.int32)
        elif POOL == "max":
            better = (value > y) | (value != value)  # noqa: PLR0124  NaN
            y, picked, winner = tl.where(better, value, y), tl.where(better, z, picked), tl.where(better, q, winner)
        else:
            y += value
    if POOL == "mean":
        y *= 0.25
    store_matrix(p_y + at_task, y, o_r, o_c, N * HP * WP, OUT)
    if POOL == "max":
        store_matrix(p_picked + at_task, picked, o_r, o_c, N * HP * WP, OUT)
        store_matrix(p_winner + at_task, winner, o_r, o_c, N * HP * WP, OUT)


@triton.jit
def normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot):
    """x̂ and a, and their tangents."""
    xh = (z - mean[None, :]) * r[None, :]
    xh_dot = r[None, :] * (z_dot - drift[None, :] - xh * bend[None, :])
    a_dot = gamma_dot[None, :] * xh + gamma[None, :] * xh_dot + beta_dot[None, :]
    return xh, xh_dot, xh * gamma[None, :] + beta[None, :], a_dot


@triton.jit(do_not_specialize=["row"])
def block_tangent_kernel(
    p_phi, p_v, p_z, p_z_dot, p_parts, p_stats, p_stats_dot, p_y_dot, p_picked, p_picked_dot, p_winner, row,
    N: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, OUT: tl.constexpr,
    G_AT: tl.constexpr, B_AT: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, P: tl.constexpr, SHARES: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """ẏ from ż and the shares' parts of Σ ż and Σ x̂ ż, whose means are left in `stats_dot`; a maximum leaves the ż
    that its winners picked."""
    i_task, o_r, o_c = tile_of(N * HP * WP, OUT, BR, BC)
    if NORM:
        p_phi += i_task * tl.multiple_of(row, 4)
        p_v += i_task * P
        p_parts += i_task * (SHARES * 2 * OUT)
        o_s = tl.arange(0, BS)
        drift = tl.sum(shares(p_parts, o_s, o_c, 0, 2, SHARES, OUT), 0) / (N * HO * WO)
        bend = tl.sum(shares(p_parts, o_s, o_c, 1, 2, SHARES, OUT), 0) / (N * HO * WO)
        mean, r = channels(p_stats + i_task * (2 * OUT), o_c, OUT)
        gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
        gamma_dot, beta_dot = parameter(p_v, G_AT, o_c, OUT, 0.0), parameter(p_v, B_AT, o_c, OUT, 0.0)
        ACROSS: tl.constexpr = (OUT + BC - 1) // BC
        if tl.program_id(0) % (ACROSS * ((N * HP * WP + BR - 1) // BR)) < ACROSS:
            tl.store(p_stats_dot + i_task * (2 * OUT) + o_c, drift, mask=o_c < OUT)
            tl.store(p_stats_dot + i_task * (2 * OUT) + OUT + o_c, bend, mask=o_c < OUT)
    p_z += i_task * (N * HO * WO * OUT)
    p_z_dot += i_task * (N * HO * WO * OUT)
    at_task = i_task * (N * HP * WP * OUT)
    mask = (o_r < N * HP * WP)[:, None] & (o_c < OUT)[None, :]
    if POOL == "max":
        winner = matrix(p_winner + at_task, o_r, o_c, N * HP * WP, OUT)
        z_dot = tl.zeros([BR, BC], tl.float32)
        for q in tl.static_range(4):
            z_dot += rows_of(p_z_dot, corner(o_r, q, HO, WO, HP, WP, POOL), o_c, mask & (winner == q), OUT)
        store_matrix(p_picked_dot + at_task, z_dot, o_r, o_c, N * HP * WP, OUT)
    y_dot = tl.zeros([BR, BC], tl.float32)
    for q in tl.static_range(4 if POOL == "mean" else 1):
        if POOL == "max":
            z = matrix(p_picked + at_task, o_r, o_c, N * HP * WP, OUT)
        else:
            o_z = corner(o_r, q, HO, WO, HP, WP, POOL)
            z, z_dot = rows_of(p_z, o_z, o_c, mask, OUT), rows_of(p_z_dot, o_z, o_c, mask, OUT)
        if NORM:
            xh, xh_dot, a, a_dot = normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot)
            y_dot += act_slope(a, ACT, A, B) * a_dot
        else:
            y_dot += act_slope(z, ACT, A, B) * z_dot
    if POOL == "mean":
        y_dot *= 0.25
    store_matrix(p_y_dot + at_task, y_dot, o_r, o_c, N * HP * WP, OUT)


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


@triton.jit(do_not_specialize=["row"])
def block_reduce_kernel(
    p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, p_dy, p_dy_dot, p_parts, row, N: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, OUT: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr,
    POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, P: tl.constexpr, SHARES: tl.constexpr,
    EACH: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """Σ g and Σ g x̂ of every share of the rows, g = f'(a) times the cotangent of f(a); DUAL their tangents behind them.

    The parts are [T, SHARES, 2 or 4, OUT]. Behind a maximum z is what the winners picked, and there is no pool.
    """
    OF: tl.constexpr = 4 if DUAL else 2
    i_task, i_share, o_c = share_of(SHARES, OUT, BC)
    p_phi += i_task * tl.multiple_of(row, 4)
    p_v += i_task * P
    mean, r = channels(p_stats + i_task * (2 * OUT), o_c, OUT)
    gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
    if DUAL:
        drift, bend = channels(p_stats_dot + i_task * (2 * OUT), o_c, OUT)
        gamma_dot, beta_dot = parameter(p_v, G_AT, o_c, OUT, 0.0), parameter(p_v, B_AT, o_c, OUT, 0.0)
        zero = tl.zeros([BC], tl.float32)
        g_sum_dot, gx_sum_dot = zero, zero
    p_z += i_task * (N * HO * WO * OUT)
    p_z_dot += i_task * (N * HO * WO * OUT)
    p_dy += i_task * (N * HP * WP * OUT)
    p_dy_dot += i_task * (N * HP * WP * OUT)
    g_sum, gx_sum = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for i in range(EACH):
        o_r = (i_share * EACH + i) * BR + tl.arange(0, BR)
        z = matrix(p_z, o_r, o_c, N * HO * WO, OUT)
        d = unpooled(p_dy, p_dy, o_r, o_c, N, HO, WO, HP, WP, OUT, POOL)
        if DUAL:
            z_dot = matrix(p_z_dot, o_r, o_c, N * HO * WO, OUT)
            xh, xh_dot, a, a_dot = normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot)
            slope = act_slope(a, ACT, A, B)
            d_dot = unpooled(p_dy_dot, p_dy, o_r, o_c, N, HO, WO, HP, WP, OUT, POOL)
            g_dot = slope * d_dot + act_curvature(a, ACT, A, B) * a_dot * d
            g = slope * d
            g_sum_dot += tl.sum(g_dot, 0)
            gx_sum_dot += tl.sum(g_dot * xh + g * xh_dot, 0)
        else:
            xh = (z - mean[None, :]) * r[None, :]
            g = act_slope(xh * gamma[None, :] + beta[None, :], ACT, A, B) * d
        g_sum += tl.sum(g, 0)
        gx_sum += tl.sum(g * xh, 0)
    p_parts += (i_task * SHARES + i_share) * (OF * OUT)
    tl.store(p_parts + o_c, g_sum, mask=o_c < OUT)
    tl.store(p_parts + OUT + o_c, gx_sum, mask=o_c < OUT)
    if DUAL:
        tl.store(p_parts + 2 * OUT + o_c, g_sum_dot, mask=o_c < OUT)
        tl.store(p_parts + 3 * OUT + o_c, gx_sum_dot, mask=o_c < OUT)


@triton.jit
def deliver_channels(
    g, AT: tl.constexpr, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, o_c, first, last, OUT: tl.constexpr,
    P: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
):  # fmt: skip
    """A channel parameter's gradient [BC] to where `sink.py` says, if there is such a parameter; pointers are rows."""
    if AT >= 0:
        deliver(g, p_phi + AT, p_to + AT, p_with + AT, p_state + AT, p_next + AT, p_lr + AT, p_steps, o_c, o_c < OUT,
                o_c < (OUT + 3) // 4 * 4, first, last, P, SINK, RULE, HYPER, LR_EACH)  # fmt: skip


@triton.jit
def centred(
    z, z_dot, d, d_dot, p_phi, p_v, p_stats, p_stats_dot, p_parts, o_c, ROWS: tl.constexpr, OUT: tl.constexpr,
    G_AT: tl.constexpr, B_AT: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SHARES: tl.constexpr,
    BS: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """dz and its tangent through a norm, and dγ and dβ [BC] (with DUAL their tangents); pointers are the task's."""
    OF: tl.constexpr = 4 if DUAL else 2
    o_s = tl.arange(0, BS)
    d_beta = tl.sum(shares(p_parts, o_s, o_c, 0, OF, SHARES, OUT), 0)
    d_gamma = tl.sum(shares(p_parts, o_s, o_c, 1, OF, SHARES, OUT), 0)
    g_mean, gx_mean = (d_beta / ROWS)[None, :], (d_gamma / ROWS)[None, :]
    mean, r = channels(p_stats, o_c, OUT)
    gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
    scale = (gamma * r)[None, :]
    if DUAL:
        drift, bend = channels(p_stats_dot, o_c, OUT)
        gamma_dot, beta_dot = parameter(p_v, G_AT, o_c, OUT, 0.0), parameter(p_v, B_AT, o_c, OUT, 0.0)
        d_beta = tl.sum(shares(p_parts, o_s, o_c, 2, OF, SHARES, OUT), 0)
        d_gamma = tl.sum(shares(p_parts, o_s, o_c, 3, OF, SHARES, OUT), 0)
        xh, xh_dot, a, a_dot = normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot)
        slope = act_slope(a, ACT, A, B)
        u = slope * d - g_mean - xh * gx_mean
        u_dot = slope * d_dot + act_curvature(a, ACT, A, B) * a_dot * d - (d_beta / ROWS)[None, :]
        u_dot -= xh_dot * gx_mean + xh * (d_gamma / ROWS)[None, :]
        dz_dot = (gamma_dot * r - gamma * r * r * bend)[None, :] * u + scale * u_dot
    else:
        xh = (z - mean[None, :]) * r[None, :]
        u = act_slope(xh * gamma[None, :] + beta[None, :], ACT, A, B) * d - g_mean - xh * gx_mean
        dz_dot = u
    return scale * u, dz_dot, d_gamma, d_beta


@triton.jit(do_not_specialize=["row", "first", "last"])
def block_backward_kernel(
    p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, p_winner, p_dy, p_dy_dot, p_parts, p_dz, p_dz_dot, p_to, p_with,
    p_state, p_next, p_lr, p_steps, row, first, last, N: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr, OUT: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr,
    BIAS_AT: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, P: tl.constexpr, SHARES: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    DUAL: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, STATES: tl.constexpr,
    LR_EACH: tl.constexpr,
):  # fmt: skip
    """dz from dy and the shares' parts of Σ g and Σ g x̂; DUAL its tangent too.

    With NORM the sums are dβ and dγ (their tangents with DUAL), which one program of each task's takes where `sink.py`
    says, and a zero for a convolution's bias, which the norm takes away (BIAS_AT ≥ 0).
    """
    ROWS: tl.constexpr = N * HO * WO
    i_task, o_r, o_c = tile_of(ROWS, OUT, BR, BC)
    at_z, at_y = i_task * (ROWS * OUT), i_task * (N * HP * WP * OUT)
    p_phi += i_task * tl.multiple_of(row, 4)
    p_winner += at_y
    z = matrix(p_z + at_z, o_r, o_c, ROWS, OUT)
    d = unpooled(p_dy + at_y, p_winner, o_r, o_c, N, HO, WO, HP, WP, OUT, POOL)
    if DUAL:
        z_dot = matrix(p_z_dot + at_z, o_r, o_c, ROWS, OUT)
        d_dot = unpooled(p_dy_dot + at_y, p_winner, o_r, o_c, N, HO, WO, HP, WP, OUT, POOL)
    else:
        z_dot, d_dot = z, d
    if NORM:
        OF: tl.constexpr = 4 if DUAL else 2
        at_stats = i_task * (2 * OUT)
        dz, dz_dot, d_gamma, d_beta = centred(
            z, z_dot, d, d_dot, p_phi, p_v + i_task * P, p_stats + at_stats, p_stats_dot + at_stats,
            p_parts + i_task * (SHARES * OUT * OF), o_c, ROWS, OUT, G_AT, B_AT, ACT, A, B, SHARES, BS, DUAL,
        )  # fmt: skip
    else:
        slope = act_slope(z, ACT, A, B)
        dz = slope * d
        dz_dot = slope * d_dot + act_curvature(z, ACT, A, B) * z_dot * d
    store_matrix(p_dz + at_z, dz, o_r, o_c, ROWS, OUT)
    if DUAL:
        store_matrix(p_dz_dot + at_z, dz_dot, o_r, o_c, ROWS, OUT)
    if NORM:
        ACROSS: tl.constexpr = (OUT + BC - 1) // BC
        if tl.program_id(0) % (ACROSS * ((ROWS + BR - 1) // BR)) < ACROSS:  # the first tile of these channels
            p_to += i_task * P
            p_with += i_task * P
            p_state += i_task * STATES * P
            p_next += i_task * STATES * P
            deliver_channels(d_gamma, G_AT, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, o_c, first, last, OUT,
                             P, SINK, RULE, HYPER, LR_EACH)  # fmt: skip
            deliver_channels(d_beta, B_AT, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, o_c, first, last, OUT,
                             P, SINK, RULE, HYPER, LR_EACH)  # fmt: skip
            none = tl.zeros([BC], tl.float32)
            deliver_channels(none, BIAS_AT, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, o_c, first, last, OUT,
                             P, SINK, RULE, HYPER, LR_EACH)  # fmt: skip
