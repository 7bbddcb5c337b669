"""What is behind a convolution, for all tasks: batch norm by a batch's own statistics, activation f, 2 × 2 pool.

    x̂ = (z − μ) r,  a = γ x̂ + β,  y = pool(f(a));  without NORM a = z

z is [T, N, HO, WO, OUT]; y, its winners and what they picked are [T, N, HP, WP, OUT]. `stats` [T, 2, OUT] are μ and
r, and of tangents the means of ż and x̂ ż. A program makes a tile of one task: pixels × channels. POOL is "max" (the
first maximum of f(a), as PyTorch takes it, and a NaN wins), "mean" or "none". G_AT and B_AT are the places of γ and β
in a row (−1: 1 and 0). Z says where z comes from: "stored"; "image", convolved again from x as `conv2d.py` does, W_AT
and BIAS as there; or "sum" of two tensors, the second in the place of x, where branches of a network join. G is the
convolution's geometry (`pixels.py`), of which a sum has HO, WO and OUT. Formulas: README.md.
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope, act_value
from .conv2d import convolved
from .linear import matrix, rows_of, store_matrix, tile_of
from .pixels import pixel


@triton.jit
def parameter(p, AT: tl.constexpr, o_c, OUT: tl.constexpr, NONE: tl.constexpr):
    """A parameter [BC] of channels o_c out of a row, or the number NONE where there is no such parameter."""
    if AT >= 0:
        value = tl.load(p + AT + o_c, mask=o_c < OUT, other=0.0)
    else:
        value = tl.full(o_c.shape, NONE, tl.float32)
    return value


@triton.jit
def parameters(p_phi, p_v, o_c, G_AT: tl.constexpr, B_AT: tl.constexpr, OUT: tl.constexpr):
    """γ, β and their tangents along v [BC]."""
    gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
    return gamma, beta, parameter(p_v, G_AT, o_c, OUT, 0.0), parameter(p_v, B_AT, o_c, OUT, 0.0)


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
    left = tl.maximum(ROWS - o_s * SHARE, 0)  # a share may lie behind all rows that count
    count = tl.where(o_s < SHARES, tl.minimum(left, SHARE), 0).to(tl.float32)[:, None]
    means = shares(p_parts, o_s, o_c, 0, 2, SHARES, OUT)
    mean = tl.sum(count * means, 0) / ROWS
    off = means - mean[None, :]
    squares = tl.sum(shares(p_parts, o_s, o_c, 1, 2, SHARES, OUT) + count * off * off, 0)
    return mean, tl.rsqrt(squares / ROWS + EPS)


@triton.jit
def corner(o_r, q, HO: tl.constexpr, WO: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
           POOL: tl.constexpr):  # fmt: skip
    """The pixel of z that is the q-th, row-major, of the window of pixels o_r of y."""
    if POOL == "none":
        o_z = o_r
    else:
        n, h, w = pixel(o_r, HP, WP)
        o_z = (n * HO + 2 * h + q // 2) * WO + 2 * w + q % 2
    return o_z


@triton.jit
def pre_activation(
    p_z, p_x, p_w, o_z, o_c, mask, N: tl.constexpr, G: tl.constexpr, BIAS: tl.constexpr, BK: tl.constexpr,
    Z: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z [BR, BC] at pixels o_z and channels o_c, zero outside of the mask where it is read; or ż, along p_w."""
    if Z == "image":
        tl.debug_barrier()  # or what several products read is put in front of them, and fills the registers
        z = convolved(tl.zeros(mask.shape, tl.float32), p_x, p_w, o_z, o_c, N, G, BK, PRECISION)
        if BIAS != 0:
            z += tl.load(p_w + BIAS + o_c, mask=o_c < G[5], other=0.0)[None, :]
    else:
        z = rows_of(p_z, o_z, o_c, mask, G[5])
        if Z == "sum":
            z += rows_of(p_x, o_z, o_c, mask, G[5])
    return z


@triton.jit
def normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot):
    """x̂ and a, and their tangents."""
    xh = (z - mean[None, :]) * r[None, :]
    xh_dot = r[None, :] * (z_dot - drift[None, :] - xh * bend[None, :])
    a_dot = gamma_dot[None, :] * xh + gamma[None, :] * xh_dot + beta_dot[None, :]
    return xh, xh_dot, xh * gamma[None, :] + beta[None, :], a_dot


@triton.jit(do_not_specialize=["row"])
def block_forward_kernel(
    p_phi, p_x, p_z, p_parts, p_stats, p_y, p_picked, p_winner, row, N: tl.constexpr, SEEN: tl.constexpr,
    G: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr, G_AT: tl.constexpr,
    B_AT: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, SHARE: tl.constexpr, SHARES: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    BK: tl.constexpr, Z: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y from z and the shares' parts of the statistics, which are joined and left in `stats`; a maximum leaves its
    winners, 0 to 3 in their windows, and the z that they picked. Statistics are of the first SEEN images."""
    OUT: tl.constexpr = G[5]
    i_task, o_r, o_c = tile_of(N * HP * WP, OUT, BR, BC)
    p_phi += i_task * (row * 4)
    if NORM:
        mean, r = moments(p_parts + i_task * (SHARES * 2 * OUT), o_c, EPS, SEEN * G[3] * G[4], SHARE, SHARES, BS, OUT)
        gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
        ACROSS: tl.constexpr = (OUT + BC - 1) // BC
        if tl.program_id(0) % (ACROSS * ((N * HP * WP + BR - 1) // BR)) < ACROSS:  # the first tile of these channels
            tl.store(p_stats + i_task * (2 * OUT) + o_c, mean, mask=o_c < OUT)
            tl.store(p_stats + i_task * (2 * OUT) + OUT + o_c, r, mask=o_c < OUT)
    p_z += i_task * (N * G[3] * G[4] * OUT)
    p_x += i_task * (N * G[0] * G[1] * G[2])
    at_task = i_task * (N * HP * WP * OUT)
    mask = (o_r < N * HP * WP)[:, None] & (o_c < OUT)[None, :]
    picked, winner = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.int32)
    y = tl.full([BR, BC], float("-inf") if POOL == "max" else 0.0, tl.float32)
    for q in tl.range(1 if POOL == "none" else 4, loop_unroll_factor=1 if Z == "image" else 4):
        o_z = corner(o_r, q, G[3], G[4], HP, WP, POOL)
        z = pre_activation(p_z, p_x, p_phi + W_AT, o_z, o_c, mask, N, G, BIAS, BK, Z, PRECISION)
        a = z
        if NORM:
            a = (z - mean[None, :]) * r[None, :] * gamma[None, :] + beta[None, :]
        value = act_value(a, ACT, A, B)
        if POOL == "max":
            better = (value > y) | (value != value) | (q == 0)  # noqa: PLR0124  NaN
            y, picked, winner = tl.where(better, value, y), tl.where(better, z, picked), tl.where(better, q, winner)
        else:
            y += value
    if POOL == "mean":
        y *= 0.25
    store_matrix(p_y + at_task, y, o_r, o_c, N * HP * WP, OUT)
    if POOL == "max":
        store_matrix(p_picked + at_task, picked, o_r, o_c, N * HP * WP, OUT)
        store_matrix(p_winner + at_task, winner, o_r, o_c, N * HP * WP, OUT)


@triton.jit(do_not_specialize=["row"])
def block_tangent_kernel(
    p_phi, p_v, p_x, p_x_dot, p_z, p_z_dot, p_parts, p_stats, p_stats_dot, p_y_dot, p_picked, p_picked_dot, p_winner,
    row, N: tl.constexpr, G: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr,
    G_AT: tl.constexpr, B_AT: tl.constexpr, NORM: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, P: tl.constexpr, SHARES: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, BK: tl.constexpr, Z: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ẏ from ż and the shares' parts of Σ ż and Σ x̂ ż, whose means are left in `stats_dot`; a maximum leaves the ż
    that its winners picked."""
    OUT: tl.constexpr = G[5]
    ROWS: tl.constexpr = N * G[3] * G[4]
    i_task, o_r, o_c = tile_of(N * HP * WP, OUT, BR, BC)
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    if NORM:
        p_parts += i_task * (SHARES * 2 * OUT)
        p_stats += i_task * (2 * OUT)
        p_stats_dot += i_task * (2 * OUT)
        o_s = tl.arange(0, BS)
        drift = tl.sum(shares(p_parts, o_s, o_c, 0, 2, SHARES, OUT), 0) / ROWS
        bend = tl.sum(shares(p_parts, o_s, o_c, 1, 2, SHARES, OUT), 0) / ROWS
        mean, r = channels(p_stats, o_c, OUT)
        gamma, beta, gamma_dot, beta_dot = parameters(p_phi, p_v, o_c, G_AT, B_AT, OUT)
        ACROSS: tl.constexpr = (OUT + BC - 1) // BC
        if tl.program_id(0) % (ACROSS * ((N * HP * WP + BR - 1) // BR)) < ACROSS:
            tl.store(p_stats_dot + o_c, drift, mask=o_c < OUT)
            tl.store(p_stats_dot + OUT + o_c, bend, mask=o_c < OUT)
    p_z += i_task * (ROWS * OUT)
    p_z_dot += i_task * (ROWS * OUT)
    p_x += i_task * (N * G[0] * G[1] * G[2])
    p_x_dot += i_task * (N * G[0] * G[1] * G[2])
    at_task = i_task * (N * HP * WP * OUT)
    mask = (o_r < N * HP * WP)[:, None] & (o_c < OUT)[None, :]
    p_w, p_w_dot = p_phi + W_AT, p_v + W_AT
    p_moving = p_x if Z == "image" else p_x_dot
    y_dot = tl.zeros([BR, BC], tl.float32)
    if POOL == "max":
        winner = matrix(p_winner + at_task, o_r, o_c, N * HP * WP, OUT)
        z, z_dot = y_dot, y_dot
        for q in tl.range(4, loop_unroll_factor=1 if Z == "image" else 4):
            o_z, won = corner(o_r, q, G[3], G[4], HP, WP, POOL), mask & (winner == q)
            here = pre_activation(p_z_dot, p_moving, p_w_dot, o_z, o_c, won, N, G, BIAS, BK, Z, PRECISION)
            z_dot = tl.where(won, here, z_dot)
            if Z == "image":  # convolved anyway: nothing is read for it
                z = tl.where(won, pre_activation(p_z, p_x, p_w, o_z, o_c, won, N, G, BIAS, BK, Z, PRECISION), z)
        if Z != "image":
            z = rows_of(p_picked + at_task, o_r, o_c, mask, OUT)
        store_matrix(p_picked_dot + at_task, z_dot, o_r, o_c, N * HP * WP, OUT)
    for q in tl.static_range(4 if POOL == "mean" else 1):
        if POOL != "max":
            o_z = corner(o_r, q, G[3], G[4], HP, WP, POOL)
            z = pre_activation(p_z, p_x, p_w, o_z, o_c, mask, N, G, BIAS, BK, Z, PRECISION)
            z_dot = pre_activation(p_z_dot, p_moving, p_w_dot, o_z, o_c, mask, N, G, BIAS, BK, Z, PRECISION)
        if NORM:
            xh, xh_dot, a, a_dot = normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot)
            y_dot += act_slope(a, ACT, A, B) * a_dot
        else:
            y_dot += act_slope(z, ACT, A, B) * z_dot
    if POOL == "mean":
        y_dot *= 0.25
    store_matrix(p_y_dot + at_task, y_dot, o_r, o_c, N * HP * WP, OUT)


@triton.jit
def channel_sums(
    sums, p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, dy, dy_dot, o_r, o_c, mask, HZ: tl.constexpr,
    WZ: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr, OUT: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr,
    POOL: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """Σ g, Σ g x̂ and, with DUAL, their tangents [BC], with those of pixels o_r of y added, whose cotangent is dy.

    g = f'(a) times the cotangent of f(a). z is [HZ, WZ]; behind a maximum it is what the winners picked, and POOL
    "none". Pointers are the task's.
    """
    g_sum, gx_sum, g_sum_dot, gx_sum_dot = sums
    mean, r = channels(p_stats, o_c, OUT)
    gamma, beta = parameter(p_phi, G_AT, o_c, OUT, 1.0), parameter(p_phi, B_AT, o_c, OUT, 0.0)
    if POOL == "mean":
        dy = dy * 0.25
    if DUAL:
        drift, bend = channels(p_stats_dot, o_c, OUT)
        gamma, beta, gamma_dot, beta_dot = parameters(p_phi, p_v, o_c, G_AT, B_AT, OUT)
        if POOL == "mean":
            dy_dot = dy_dot * 0.25
    for q in tl.static_range(4 if POOL == "mean" else 1):
        o_z = corner(o_r, q, HZ, WZ, HP, WP, POOL)
        z = rows_of(p_z, o_z, o_c, mask, OUT)
        if DUAL:
            z_dot = rows_of(p_z_dot, o_z, o_c, mask, OUT)
            xh, xh_dot, a, a_dot = normalised(z, z_dot, mean, r, drift, bend, gamma, beta, gamma_dot, beta_dot)
            slope = act_slope(a, ACT, A, B)
            g_dot = slope * dy_dot + act_curvature(a, ACT, A, B) * a_dot * dy
            g = slope * dy
            g_sum_dot += tl.sum(g_dot, 0)
            gx_sum_dot += tl.sum(g_dot * xh + g * xh_dot, 0)
        else:
            xh = (z - mean[None, :]) * r[None, :]
            g = act_slope(xh * gamma[None, :] + beta[None, :], ACT, A, B) * dy
        g_sum += tl.sum(g, 0)
        gx_sum += tl.sum(g * xh, 0)
    return g_sum, gx_sum, g_sum_dot, gx_sum_dot


@triton.jit
def store_sums(p_parts, sums, at, o_c, OUT: tl.constexpr, DUAL: tl.constexpr):
    """Leaves them as the parts [2 or 4, OUT] of share `at`, shares of all tasks counted through."""
    p_parts += at * ((4 if DUAL else 2) * OUT)
    tl.store(p_parts + o_c, sums[0], mask=o_c < OUT)
    tl.store(p_parts + OUT + o_c, sums[1], mask=o_c < OUT)
    if DUAL:
        tl.store(p_parts + 2 * OUT + o_c, sums[2], mask=o_c < OUT)
        tl.store(p_parts + 3 * OUT + o_c, sums[3], mask=o_c < OUT)
