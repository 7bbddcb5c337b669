"""Losses of all tasks over any number of samples: values, and cotangents of the last layer's pre-activations."""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope
from .cross_entropy import cross_entropy, cross_entropy_dot, labels_that_count
from .linear import matrix, rows_of, store_matrix
from .mse import mse, mse_dot


@triton.jit
def loss_kernel(
    p_y, p_y_dot, p_z, p_z_dot, p_targets, p_parts, p_dz, p_dz_dot, N: tl.constexpr, LENT: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, LOSS: tl.constexpr, SMOOTHING: tl.constexpr,
    IGNORE: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, VALUE: tl.constexpr,
    BACKWARD: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """Of outputs y = f(z) [T, N, C]: with VALUE each tile's part of the loss [T, tiles], with BACKWARD dz, with DUAL
    its tangent too.

    The first LENT samples, which lend a batch norm their statistics, are in no loss. LOSS "given" takes cotangents of y
    in place of targets.
    """
    TILES: tl.constexpr = (N + BN - 1) // BN
    i_task, i_tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    o_n, o_c = i_tile * BN + tl.arange(0, BN), tl.arange(0, BC)
    m_n, rows = (o_n >= LENT) & (o_n < N), o_n - LENT
    p_y += i_task * (N * C)
    p_targets += i_task * ((N - LENT) * (1 if LOSS == "cross_entropy" else C))
    y = matrix(p_y, o_n, o_c, N, C)
    if LOSS == "cross_entropy":
        count = labels_that_count(p_targets, N - LENT, IGNORE)
        loss, d = cross_entropy(y, p_targets, rows, m_n, count, C, BC, SMOOTHING, IGNORE)
    elif LOSS == "mse":
        loss, d = mse(y, p_targets, rows, m_n, N - LENT, C, BC)
    else:
        loss, d = 0.0, rows_of(p_targets, rows, o_c, m_n[:, None] & (o_c < C)[None, :], C)
    if VALUE:
        tl.store(p_parts + i_task * TILES + i_tile, loss)
    if BACKWARD:
        z = matrix(p_z + i_task * (N * C), o_n, o_c, N, C)
        slope = act_slope(z, ACT, A, B)
        store_matrix(p_dz + i_task * (N * C), slope * d, o_n, o_c, N, C)
        if DUAL:
            y_dot = matrix(p_y_dot + i_task * (N * C), o_n, o_c, N, C)
            z_dot = matrix(p_z_dot + i_task * (N * C), o_n, o_c, N, C)
            if LOSS == "cross_entropy":
                d_dot = cross_entropy_dot(y, y_dot, p_targets, rows, m_n, count, C, BC, IGNORE)
            else:
                d_dot = mse_dot(y_dot, m_n, N - LENT, C, BC)
            d_dot = slope * d_dot + act_curvature(z, ACT, A, B) * z_dot * d
            store_matrix(p_dz_dot + i_task * (N * C), d_dot, o_n, o_c, N, C)
