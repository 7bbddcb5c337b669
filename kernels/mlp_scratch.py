"""Sweeps over a perceptron's layers with its activations in scratch: those of `mlp_registers.py`, for larger sizes.

Results are blocks of at most COLUMNS columns, and products run over at most CHUNK values at a time, so that registers
hold the same few blocks whatever the widths (128-128-128-5 on sm_90: 4.9 kB of stack without). What is elementwise
(activations, v) is computed again from every block that is read. Three tf32 products take 16 values at a time, and
loops keep what does not change in them where it is (adjoint of the same on sm_90: 16 bytes of stack without).

A task's row of scratch holds x_0 [BN, B_0] and the pre-activations z_l [BN, B_l] at `ROOM[l]`, two blocks of cotangents
used in turn behind them, and the tangents of all of it in the same order, `ROOM[-1]` further. There is a barrier
wherever one layer's results become the next one's operands.
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope, act_value
from .inner import pulled, push, use_gradient
from .linear import accumulate, bias, bias_block, weight, weight_block

COLUMNS = tl.constexpr(64)
CHUNK = tl.constexpr(32)


@triton.jit
def block_at(p, n, c, BN: tl.constexpr, BC: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers to a block [BN, BC] of a matrix [·, WIDTH], from row `n` and column `c` on."""
    return p + (n + tl.arange(0, BN))[:, None] * WIDTH + (c + tl.arange(0, BC))[None, :]


@triton.jit
def inputs(p_x, rows, m_rows, D: tl.constexpr, BD: tl.constexpr):
    """Inputs [BN, BD] of the samples in `rows`, zero outside."""
    o_d = tl.arange(0, BD)
    return tl.load(p_x + rows[:, None] * D + o_d[None, :], mask=m_rows[:, None] & (o_d[None, :] < D), other=0.0)


@triton.jit
def activations(
    p_room, n, c, BN: tl.constexpr, BC: tl.constexpr, J: tl.constexpr, WIDTH: tl.constexpr, ROOM: tl.constexpr,
    ACTS: tl.constexpr, ARGS: tl.constexpr,
):  # fmt: skip
    """A block of layer J's inputs x_J."""
    x = tl.load(block_at(p_room + ROOM[J], n, c, BN, BC, WIDTH))
    if J > 0:
        x = act_value(x, ACTS[J - 1], ARGS[2 * J - 2], ARGS[2 * J - 1])
    return x


@triton.jit
def activations_dot(
    p_room, n, c, BN: tl.constexpr, BC: tl.constexpr, J: tl.constexpr, WIDTH: tl.constexpr, ROOM: tl.constexpr,
    DEPTH: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
):  # fmt: skip
    """The same of their tangent f'(z) ż, J > 0."""
    z = tl.load(block_at(p_room + ROOM[J], n, c, BN, BC, WIDTH))
    z_dot = tl.load(block_at(p_room + ROOM[DEPTH + 3] + ROOM[J], n, c, BN, BC, WIDTH))
    return act_slope(z, ACTS[J - 1], ARGS[2 * J - 2], ARGS[2 * J - 1]) * z_dot


@triton.jit
def layer_forward(
    p_room, p_phi, BN: tl.constexpr, J: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, WO: tl.constexpr,
    WI: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ROOM: tl.constexpr, ACTS: tl.constexpr,
    ARGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z_J = x Wᵀ + b."""
    BO: tl.constexpr = WO if WO < COLUMNS else COLUMNS
    BI: tl.constexpr = 16 if PRECISION == "tf32x3" or WI == 16 else CHUNK
    for o in tl.range(0, WO, BO, disable_licm=True):
        z = tl.zeros([BN, BO], tl.float32)
        for i in tl.range(0, WI, BI, disable_licm=True):
            x = activations(p_room, 0, i, BN, BI, J, WI, ROOM, ACTS, ARGS)
            w = weight(p_phi + W_AT[J], OUT, IN, BO, BI, o, i)
            z = accumulate(z, x, tl.trans(w), PRECISION)
        if B_AT[J] >= 0:
            z += bias(p_phi + B_AT[J], OUT, BO, o)[None, :]
        tl.store(block_at(p_room + ROOM[J + 1], 0, o, BN, BO, WO), z)
    tl.debug_barrier()


@triton.jit
def forward(
    x, p_room, p_phi, BN: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs; the pre-activations of all layers go to scratch."""
    tl.store(block_at(p_room, 0, 0, BN, BLOCKS[0], BLOCKS[0]), x)
    tl.debug_barrier()
    for j in tl.static_range(DEPTH):
        layer_forward(p_room, p_phi, BN, j, DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j], W_AT, B_AT, ROOM, ACTS,
                      ARGS, PRECISION)  # fmt: skip
    return activations(p_room, 0, 0, BN, BLOCKS[DEPTH], DEPTH, BLOCKS[DEPTH], ROOM, ACTS, ARGS)


@triton.jit
def layer_gradients(
    p_room, p_d, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P: tl.constexpr,
    BN: tl.constexpr, J: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, WO: tl.constexpr, WI: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
    USE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of layer J from the cotangents of z_J, and what becomes of them."""
    BO: tl.constexpr = WO if WO < COLUMNS else COLUMNS
    BI: tl.constexpr = WI if WI < COLUMNS else COLUMNS
    BK: tl.constexpr = 16 if PRECISION == "tf32x3" or BN == 16 else CHUNK
    for o in tl.range(0, WO, BO, disable_licm=True):
        if B_AT[J] >= 0:
            o_b, m_b, m_pad = bias_block(OUT, BO, o)
            db = tl.sum(tl.load(block_at(p_d, 0, o, BN, BO, WO)), 0)
            b = tl.load(p_phi + B_AT[J] + o_b, mask=m_b, other=0.0)
            use_gradient(db, b, B_AT[J], o_b, m_b, m_pad, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first,
                         last, P, USE, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
        for i in tl.range(0, WI, BI, disable_licm=True):
            g = tl.zeros([BO, BI], tl.float32)
            for n in tl.range(0, BN, BK, disable_licm=True):
                d = tl.load(block_at(p_d, n, o, BK, BO, WO))
                g = accumulate(g, tl.trans(d), activations(p_room, n, i, BK, BI, J, WI, ROOM, ACTS, ARGS), PRECISION)
            offsets, m_load, m_store = weight_block(OUT, IN, BO, BI, o, i)
            w = tl.load(p_phi + W_AT[J] + offsets, mask=m_load, other=0.0)
            use_gradient(g, w, W_AT[J], offsets, m_load, m_store, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u,
                         first, last, P, USE, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit
def layer_backward(
    p_room, p_d, p_new, p_phi, BN: tl.constexpr, J: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    WO: tl.constexpr, WI: tl.constexpr, W_AT: tl.constexpr, ROOM: tl.constexpr, ACTS: tl.constexpr,
    ARGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangents of z_{J−1}, in `p_new`, from those of z_J."""
    BO: tl.constexpr = 16 if PRECISION == "tf32x3" or WO == 16 else CHUNK
    BI: tl.constexpr = WI if WI < COLUMNS else COLUMNS
    for i in tl.range(0, WI, BI, disable_licm=True):
        dx = tl.zeros([BN, BI], tl.float32)
        for o in tl.range(0, WO, BO, disable_licm=True):
            d = tl.load(block_at(p_d, 0, o, BN, BO, WO))
            dx = accumulate(dx, d, weight(p_phi + W_AT[J], OUT, IN, BO, BI, o, i), PRECISION)
        z = tl.load(block_at(p_room + ROOM[J], 0, i, BN, BI, WI))
        d = dx * act_slope(z, ACTS[J - 1], ARGS[2 * J - 2], ARGS[2 * J - 1])
        tl.store(block_at(p_new, 0, i, BN, BI, WI), d)
    tl.debug_barrier()


@triton.jit
def backward(
    d, p_room, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P: tl.constexpr, BN: tl.constexpr,
    DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr,
    ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, USE: tl.constexpr, RULE: tl.constexpr,
    HYPER: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of all layers from that of the outputs, d [BN, BO]; what becomes of them: `use_gradient`."""
    z = tl.load(block_at(p_room + ROOM[DEPTH], 0, 0, BN, BLOCKS[DEPTH], BLOCKS[DEPTH]))
    d = d * act_slope(z, ACTS[DEPTH - 1], ARGS[2 * DEPTH - 2], ARGS[2 * DEPTH - 1])
    tl.store(block_at(p_room + ROOM[DEPTH + 1 + DEPTH % 2], 0, 0, BN, BLOCKS[DEPTH], BLOCKS[DEPTH]), d)
    tl.debug_barrier()
    for j in tl.static_range(DEPTH - 1, -1, -1):
        p_d, p_new = p_room + ROOM[DEPTH + 1 + (j + 1) % 2], p_room + ROOM[DEPTH + 1 + j % 2]
        layer_gradients(p_room, p_d, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P, BN, j,
                        DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j], W_AT, B_AT, ROOM, ACTS, ARGS, USE, RULE, HYPER,
                        LR_EACH, DIRECTIONS, PRECISION)  # fmt: skip
        if j > 0:
            layer_backward(p_room, p_d, p_new, p_phi, BN, j, DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j], W_AT,
                           ROOM, ACTS, ARGS, PRECISION)  # fmt: skip


@triton.jit
def layer_forward_dot(
    p_room, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN: tl.constexpr, DEPTH: tl.constexpr, J: tl.constexpr,
    OUT: tl.constexpr, IN: tl.constexpr, WO: tl.constexpr, WI: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr,
    ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ż_J = x Vᵀ + ẋ Wᵀ + c."""
    BO: tl.constexpr = WO if WO < COLUMNS else COLUMNS
    BI: tl.constexpr = 16 if PRECISION == "tf32x3" or WI == 16 else CHUNK
    for o in tl.range(0, WO, BO, disable_licm=True):
        z_dot = tl.zeros([BN, BO], tl.float32)
        for i in tl.range(0, WI, BI, disable_licm=True):
            offsets, mask, _ = weight_block(OUT, IN, BO, BI, o, i)
            _, v, _ = pulled(W_AT[J], offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            x = activations(p_room, 0, i, BN, BI, J, WI, ROOM, ACTS, ARGS)
            z_dot = accumulate(z_dot, x, tl.trans(v), PRECISION)
            if J > 0:
                x_dot = activations_dot(p_room, 0, i, BN, BI, J, WI, ROOM, DEPTH, ACTS, ARGS)
                w = tl.load(p_phi + W_AT[J] + offsets, mask=mask, other=0.0)
                z_dot = accumulate(z_dot, x_dot, tl.trans(w), PRECISION)
        if B_AT[J] >= 0:
            offsets, mask, _ = bias_block(OUT, BO, o)
            _, v, _ = pulled(B_AT[J], offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            z_dot += v[None, :]
        tl.store(block_at(p_room + ROOM[DEPTH + 3] + ROOM[J + 1], 0, o, BN, BO, WO), z_dot)
    tl.debug_barrier()


@triton.jit
def forward_dot(
    p_room, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN: tl.constexpr, DEPTH: tl.constexpr,
    DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ROOM: tl.constexpr,
    ACTS: tl.constexpr, ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The outputs' tangent along v; those of all pre-activations go to scratch."""
    for j in tl.static_range(DEPTH):
        layer_forward_dot(p_room, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN, DEPTH, j, DIMS[j + 1], DIMS[j],
                          BLOCKS[j + 1], BLOCKS[j], W_AT, B_AT, ROOM, ACTS, ARGS, RULE, HYPER, LR_EACH,
                          PRECISION)  # fmt: skip
    return activations_dot(p_room, 0, 0, BN, BLOCKS[DEPTH], DEPTH, BLOCKS[DEPTH], ROOM, DEPTH, ACTS, ARGS)


@triton.jit
def store_cotangents(
    dx, dx_dot, p_room, p_d, c, BN: tl.constexpr, BC: tl.constexpr, J: tl.constexpr, WIDTH: tl.constexpr,
    DEPTH: tl.constexpr, ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
):  # fmt: skip
    """A block of the cotangents of z_{J−1} and of their tangents, from those of x_J."""
    z = tl.load(block_at(p_room + ROOM[J], 0, c, BN, BC, WIDTH))
    z_dot = tl.load(block_at(p_room + ROOM[DEPTH + 3] + ROOM[J], 0, c, BN, BC, WIDTH))
    f1 = act_slope(z, ACTS[J - 1], ARGS[2 * J - 2], ARGS[2 * J - 1])
    f2 = act_curvature(z, ACTS[J - 1], ARGS[2 * J - 2], ARGS[2 * J - 1])
    tl.store(block_at(p_d, 0, c, BN, BC, WIDTH), f1 * dx)
    tl.store(block_at(p_d + ROOM[DEPTH + 3], 0, c, BN, BC, WIDTH), f1 * dx_dot + f2 * z_dot * dx)


@triton.jit
def layer_backward_dot(
    p_room, p_d, p_new, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN: tl.constexpr, DEPTH: tl.constexpr,
    J: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, WO: tl.constexpr, WI: tl.constexpr, W_AT: tl.constexpr,
    ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangents of z_{J−1} and their tangents, in `p_new`, from those of z_J."""
    BO: tl.constexpr = 16 if PRECISION == "tf32x3" or WO == 16 else CHUNK
    BI: tl.constexpr = WI if WI < COLUMNS else COLUMNS
    for i in tl.range(0, WI, BI, disable_licm=True):
        dx, dx_dot = tl.zeros([BN, BI], tl.float32), tl.zeros([BN, BI], tl.float32)
        for o in tl.range(0, WO, BO, disable_licm=True):
            offsets, mask, _ = weight_block(OUT, IN, BO, BI, o, i)
            _, v, _ = pulled(W_AT[J], offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            w = tl.load(p_phi + W_AT[J] + offsets, mask=mask, other=0.0)
            d = tl.load(block_at(p_d, 0, o, BN, BO, WO))
            d_dot = tl.load(block_at(p_d + ROOM[DEPTH + 3], 0, o, BN, BO, WO))
            dx = accumulate(dx, d, w, PRECISION)
            dx_dot = accumulate(dx_dot, d, v, PRECISION)
            dx_dot = accumulate(dx_dot, d_dot, w, PRECISION)
        store_cotangents(dx, dx_dot, p_room, p_new, i, BN, BI, J, WI, DEPTH, ROOM, ACTS, ARGS)
    tl.debug_barrier()  # also: all have read λ before it changes


@triton.jit
def layer_adjoint(
    p_room, p_d, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN: tl.constexpr, DEPTH: tl.constexpr, J: tl.constexpr,
    OUT: tl.constexpr, IN: tl.constexpr, WO: tl.constexpr, WI: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr,
    ROOM: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ and σ of layer J one step back."""
    BO: tl.constexpr = WO if WO < COLUMNS else COLUMNS
    BI: tl.constexpr = WI if WI < COLUMNS else COLUMNS
    BK: tl.constexpr = 16 if PRECISION == "tf32x3" or BN == 16 else CHUNK
    p_d_dot = p_d + ROOM[DEPTH + 3]
    for o in tl.range(0, WO, BO, disable_licm=True):
        if B_AT[J] >= 0:
            o_b, m_b, m_pad = bias_block(OUT, BO, o)
            h_b = tl.sum(tl.load(block_at(p_d_dot, 0, o, BN, BO, WO)), 0)
            push(h_b, B_AT[J], o_b, m_b, m_pad, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
        for i in tl.range(0, WI, BI, disable_licm=True):
            h = tl.zeros([BO, BI], tl.float32)
            for n in tl.range(0, BN, BK, disable_licm=True):
                x = activations(p_room, n, i, BK, BI, J, WI, ROOM, ACTS, ARGS)
                h = accumulate(h, tl.trans(tl.load(block_at(p_d_dot, n, o, BK, BO, WO))), x, PRECISION)
                if J > 0:
                    x_dot = activations_dot(p_room, n, i, BK, BI, J, WI, ROOM, DEPTH, ACTS, ARGS)
                    h = accumulate(h, tl.trans(tl.load(block_at(p_d, n, o, BK, BO, WO))), x_dot, PRECISION)
            offsets, m_load, m_store = weight_block(OUT, IN, BO, BI, o, i)
            push(h, W_AT[J], offsets, m_load, m_store, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)


@triton.jit
def backward_dot(
    dy, dy_dot, p_room, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN: tl.constexpr, DEPTH: tl.constexpr,
    DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ROOM: tl.constexpr,
    ACTS: tl.constexpr, ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """λ and σ of all layers one step back, in place, from the outputs' cotangents dy and their tangents [BN, BO]."""
    store_cotangents(dy, dy_dot, p_room, p_room + ROOM[DEPTH + 1 + DEPTH % 2], 0, BN, BLOCKS[DEPTH], DEPTH,
                     BLOCKS[DEPTH], DEPTH, ROOM, ACTS, ARGS)  # fmt: skip
    tl.debug_barrier()
    for j in tl.static_range(DEPTH - 1, -1, -1):
        p_d, p_new = p_room + ROOM[DEPTH + 1 + (j + 1) % 2], p_room + ROOM[DEPTH + 1 + j % 2]
        if j > 0:
            layer_backward_dot(p_room, p_d, p_new, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN, DEPTH, j,
                               DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j], W_AT, ROOM, ACTS, ARGS, RULE, HYPER,
                               LR_EACH, PRECISION)  # fmt: skip
        layer_adjoint(p_room, p_d, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN, DEPTH, j, DIMS[j + 1], DIMS[j],
                      BLOCKS[j + 1], BLOCKS[j], W_AT, B_AT, ROOM, ACTS, ARGS, RULE, HYPER, LR_EACH,
                      PRECISION)  # fmt: skip
        if j > 0:
            tl.debug_barrier()  # the next layer's cotangents overwrite those that this one read
