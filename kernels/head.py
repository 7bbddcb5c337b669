"""The end of a convolutional network and its loss, in one launch: a linear layer on flattened images, forward and back.

x [T, N, IN] are images [PIXELS, C] of the block below. A program takes UNIT columns of x, PER pixels of every image: it
makes all of a task's outputs itself, a few samples at a time, and of what goes back its own columns, with what the
block's norm asks of them. So nothing is waited for, and outputs, losses and the bias are the first program's.
"""

import triton
import triton.language as tl

from .conv_block import channel_sums, store_sums
from .cross_entropy import cross_entropy, cross_entropy_dot, labels_that_count
from .linear import accumulate, matrix, rows_of, store_matrix
from .mse import mse, mse_dot
from .sink import deliver


@triton.jit
def products(total, p_x, p_w, o_n, inputs, N: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, BC: tl.constexpr,
             BI: tl.constexpr, KNOWN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """total [BN, BC] plus x Wᵀ of samples o_n. `inputs` is IN, which the compiler must not know: it would unroll the
    loop, and leave 20 bytes on the stack (800→5, tangents, sm_100, tf32). KNOWN is for an interpreter: that of Triton
    3.6 takes no such bound with NumPy 2.4."""
    for at in range(0, IN if KNOWN else inputs, BI):
        o_i = at + tl.arange(0, BI)
        w = tl.trans(matrix(p_w, tl.arange(0, BC), o_i, OUT, IN))
        total = accumulate(total, matrix(p_x, o_n, o_i, N, IN), w, PRECISION)
    return total


@triton.jit(do_not_specialize=["row", "first", "last", "inputs"])
def head_kernel(
    p_phi, p_v, p_x, p_x_dot, p_targets, p_y, p_losses, p_bad, p_dx, p_dx_dot, p_to, p_with, p_state, p_next, p_lr,
    p_steps, p_u, p_z, p_z_dot, p_stats, p_stats_dot, p_parts, row, first, last, inputs, N: tl.constexpr,
    LENT: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, W_AT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BI: tl.constexpr, UNIT: tl.constexpr, PER: tl.constexpr, BU: tl.constexpr,
    LOSS: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr, VALUE: tl.constexpr, BACKWARD: tl.constexpr,
    DUAL: tl.constexpr, SUMS: tl.constexpr, C: tl.constexpr, HZ: tl.constexpr, WZ: tl.constexpr, HP: tl.constexpr,
    WP: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr, G_AT: tl.constexpr, B_AT: tl.constexpr, POOL: tl.constexpr,
    ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    STATES: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, KNOWN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x Wᵀ + b [T, N, OUT] and the loss [T] with VALUE; with BACKWARD dW, db to where `sink.py` says and dx, with
    DUAL their tangents.

    The first LENT samples, which lend a batch norm their statistics, are in no loss. LOSS "none" has outputs only,
    "given" takes cotangents of y in place of targets. With SUMS the block below gets its sums, as in
    `conv2d_backward.py`; C, HP and WP are those of its y, a tile of which is [BP, BH].
    """
    PROGRAMS: tl.constexpr = (IN + UNIT - 1) // UNIT if BACKWARD else 1
    i_task, i_unit = (tl.program_id(0) // PROGRAMS).to(tl.int64), tl.program_id(0) % PROGRAMS
    p_phi += i_task * (row * 4)
    p_v += i_task * P
    p_w, p_w_dot = p_phi + W_AT, p_v + W_AT
    p_x += i_task * (N * IN)
    p_x_dot += i_task * (N * IN)
    p_dx += i_task * (N * IN)
    p_dx_dot += i_task * (N * IN)
    LABELS: tl.constexpr = 1 if LOSS == "cross_entropy" else OUT
    p_targets += i_task * ((N - LENT) * LABELS)
    o_c, o_u = tl.arange(0, BC), i_unit * UNIT + tl.arange(0, BU)
    m_u = (tl.arange(0, BU) < UNIT) & (o_u < IN)
    g, g_bias, loss = tl.zeros([BC, BU], tl.float32), tl.zeros([BC], tl.float32), 0.0
    if LOSS == "cross_entropy":
        count = labels_that_count(p_targets, N - LENT, IGNORE)
    for at_n in range(0, N, BN):
        o_n = at_n + tl.arange(0, BN)
        m_n = (o_n >= LENT) & (o_n < N)
        y = products(tl.zeros([BN, BC], tl.float32), p_x, p_w, o_n, inputs, N, IN, OUT, BC, BI, KNOWN, PRECISION)
        if DUAL:
            y_dot = products(
                tl.zeros([BN, BC], tl.float32), p_x, p_w_dot, o_n, inputs, N, IN, OUT, BC, BI, KNOWN, PRECISION
            )
            y_dot = products(y_dot, p_x_dot, p_w, o_n, inputs, N, IN, OUT, BC, BI, KNOWN, PRECISION)
        if BIAS != 0:
            y += tl.load(p_w + BIAS + o_c, mask=o_c < OUT, other=0.0)[None, :]
            if DUAL:
                y_dot += tl.load(p_w_dot + BIAS + o_c, mask=o_c < OUT, other=0.0)[None, :]
        if VALUE:  # noqa: SIM102  the outer condition is the compiler's
            if i_unit == 0:
                store_matrix(p_y + i_task * (N * OUT), y, o_n, o_c, N, OUT)
        if LOSS == "cross_entropy":
            part, d = cross_entropy(y, p_targets, o_n - LENT, m_n, count, OUT, BC, SMOOTHING, IGNORE)
            loss += part
            if DUAL:
                d_dot = cross_entropy_dot(y, y_dot, p_targets, o_n - LENT, m_n, count, OUT, BC, IGNORE)
        elif LOSS == "mse":
            part, d = mse(y, p_targets, o_n - LENT, m_n, N - LENT, OUT, BC)
            loss += part
            if DUAL:
                d_dot = mse_dot(y_dot, m_n, N - LENT, OUT, BC)
        elif LOSS == "given":
            d = rows_of(p_targets, o_n - LENT, o_c, m_n[:, None] & (o_c < OUT)[None, :], OUT)
        if BACKWARD:
            m_x = (o_n < N)[:, None] & m_u[None, :]
            x = rows_of(p_x, o_n, o_u, m_x, IN)
            w = rows_of(p_w, o_c, o_u, (o_c < OUT)[:, None] & m_u[None, :], IN)
            dx = accumulate(tl.zeros([BN, BU], tl.float32), d, w, PRECISION)
            tl.store(p_dx + o_n[:, None] * IN + o_u[None, :], dx.to(p_dx.dtype.element_ty), mask=m_x)
            if DUAL:
                v = rows_of(p_w_dot, o_c, o_u, (o_c < OUT)[:, None] & m_u[None, :], IN)
                dx_dot = accumulate(tl.zeros([BN, BU], tl.float32), d_dot, w, PRECISION)
                dx_dot = accumulate(dx_dot, d, v, PRECISION)
                tl.store(p_dx_dot + o_n[:, None] * IN + o_u[None, :], dx_dot.to(p_dx.dtype.element_ty), mask=m_x)
                g = accumulate(g, tl.trans(d_dot), x, PRECISION)
                g = accumulate(g, tl.trans(d), rows_of(p_x_dot, o_n, o_u, m_x, IN), PRECISION)
                g_bias += tl.sum(d_dot, 0)
            else:
                g = accumulate(g, tl.trans(d), x, PRECISION)
                g_bias += tl.sum(d, 0)
    if VALUE and LOSS != "none" and LOSS != "given":  # noqa: SIM102  the outer condition is the compiler's
        if i_unit == 0:
            tl.store(p_losses + i_task, loss)
            tl.store(p_bad + i_task, tl.load(p_bad + i_task) + (loss - loss))
    if BACKWARD:
        p_to += i_task * P + W_AT
        p_with += i_task * P + W_AT
        p_state += i_task * STATES * P + W_AT
        p_next += i_task * STATES * P + W_AT
        p_lr += W_AT
        p_u += i_task * P + W_AT
        GAP: tl.constexpr = (4 - (OUT * IN) % 4) % 4  # as in `linear_weight_kernel`
        m_load = (o_c < OUT)[:, None] & m_u[None, :]
        m_gap = (o_c == OUT)[:, None] & (tl.arange(0, BU) < tl.where(i_unit == 0, GAP, 0))[None, :]
        deliver(g, p_w, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_c[:, None] * IN + o_u[None, :], m_load,
                m_load | m_gap, first, last, P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
        if BIAS != 0:  # noqa: SIM102
            if i_unit == 0:
                deliver(g_bias, p_w + BIAS, p_to + BIAS, p_with + BIAS, p_state + BIAS, p_next + BIAS, p_lr + BIAS,
                        p_steps, p_u + BIAS, o_c, o_c < OUT, o_c < (OUT + 3) // 4 * 4, first, last, P, SINK, RULE,
                        HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    if BACKWARD and SUMS:
        tl.debug_barrier()  # dx comes back in another arrangement
        p_z += i_task * (N * HZ * WZ * C)
        p_z_dot += i_task * (N * HZ * WZ * C)
        p_stats += i_task * (2 * C)
        p_stats_dot += i_task * (2 * C)
        o_h = tl.arange(0, BH)
        none = tl.zeros([BH], tl.float32)
        sums = (none, none, none, none)
        for at in range(0, N * PER, BP):
            o_p = at + tl.arange(0, BP)  # this program's pixels, of all images
            o_own = i_unit * PER + o_p % PER
            o_r = o_p // PER * (HP * WP) + o_own
            mask = ((o_p < N * PER) & (o_own < HP * WP))[:, None] & (o_h < C)[None, :]
            dx = rows_of(p_dx, o_r, o_h, mask, C)
            dx_dot = rows_of(p_dx_dot, o_r, o_h, mask, C) if DUAL else dx
            sums = channel_sums(sums, p_phi, p_v, p_z, p_z_dot, p_stats, p_stats_dot, dx, dx_dot, o_r, o_h, mask, HZ,
                                WZ, HP, WP, C, G_AT, B_AT, POOL, ACT, A, B, DUAL)  # fmt: skip
        store_sums(p_parts, sums, i_task * PROGRAMS + i_unit, o_h, C, DUAL)
