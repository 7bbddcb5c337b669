"""Multilayer perceptrons: the inner loop of every task, its adjoint and the query pass, one program a task.

A program streams weights, layer by layer, through its own rows of scratch, which stay in the first-level cache (1.8 kB
to 0.5 MB a task). Activations live in registers where they fit, and in scratch as well where they do not (STREAM, see
`tiles.py`). Scratch that is written and read again within a program has a barrier between, and another before it is
overwritten by other threads than read it. See README.md.

Loops over steps keep what does not change in them where it is: the compiler would fill the registers with it. Loop
bounds are compile-time: Triton 3.6 interprets no others on NumPy 2.4.

`DIMS` are the layers' widths D_0 … D_L and `BLOCKS` the columns of their tiles, in scratch all of a layer's, padded to
a power of two; `W_AT` and `B_AT` say where a layer's weight [O, I] and bias lie in a row of P values (−1: no bias);
`ACTS` are the activations behind the layers and `ARGS` their two arguments each.
"""

import triton
import triton.language as tl

from . import mlp_registers, mlp_scratch
from .cross_entropy import cross_entropy, cross_entropy_dot, labels_that_count_of
from .inner import rate_gradient
from .mean_over_tasks import drop_unless_finite
from .mse import mse, mse_dot


@triton.jit
def phi_row(k, i_task, T, R):
    """Row of φ_k: R sets of T rows, used in turn from k = 1 on, then θ, which all tasks read at k = 0."""
    return (((k + R - 1) % R) * T + i_task) * (k > 0) + R * T * (k == 0)


@triton.jit
def samples(k, N: tl.constexpr, B: tl.constexpr, BN: tl.constexpr):
    """Rows of inner step k's samples, taken from the N of the support set cyclically, and which of them count."""
    o_n = tl.arange(0, BN)
    return ((k * B) % N + o_n) % N, o_n < B


@triton.jit
def loss_gradient(
    y, p_y, rows, m_rows, N: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr, IGNORE: tl.constexpr,
):  # fmt: skip
    """A loss of either kind, and its gradient [BN, BC]."""
    if LOSS == "mse":
        loss, d = mse(y, p_y, rows, m_rows, N, C, BC)
    else:
        count = labels_that_count_of(p_y, rows, m_rows, IGNORE)
        loss, d = cross_entropy(y, p_y, rows, m_rows, count, C, BC, SMOOTHING, IGNORE)
    return loss, d


@triton.jit
def loss_gradient_dot(
    y, y_dot, p_y, rows, m_rows, N: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, LOSS: tl.constexpr,
    IGNORE: tl.constexpr,
):  # fmt: skip
    """Tangent of that gradient along y_dot."""
    if LOSS == "mse":
        d_dot = mse_dot(y_dot, m_rows, N, C, BC)
    else:
        count = labels_that_count_of(p_y, rows, m_rows, IGNORE)
        d_dot = cross_entropy_dot(y, y_dot, p_y, rows, m_rows, count, C, BC, IGNORE)
    return d_dot


@triton.jit(do_not_specialize=["T", "R"])
def adapt_kernel(
    p_phis, p_states, p_bad, p_x, p_y, p_lr, p_steps, p_directions, p_room, T, R, K: tl.constexpr, N: tl.constexpr,
    B: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, ROOM: tl.constexpr,
    STREAM: tl.constexpr, LOSS: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr, RULE: tl.constexpr,
    HYPER: tl.constexpr, STATES: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """φ_0 → φ_K of every task, every step's weights left in `p_phis` for the adjoint; NaN in `p_bad` for bad inputs.

    With DIRECTIONS every step's u_k [T, P] are left in `p_directions` [K, T, P].
    """
    i_task = tl.program_id(0).to(tl.int64)
    p_x += i_task * N * DIMS[0]
    p_y += i_task * N * (DIMS[DEPTH] if LOSS == "mse" else 1)
    p_room += i_task * ROOM[DEPTH + 3]
    o_flat = tl.arange(0, 1024)
    drift = tl.zeros([1024], tl.float32)
    for at in range(0, N * DIMS[0], 1024):
        x = tl.load(p_x + at + o_flat, mask=at + o_flat < N * DIMS[0], other=0.0)
        drift += x - x
    tl.store(p_bad + i_task, tl.sum(drift, 0))
    for k in tl.range(0, K, disable_licm=True):
        p_phi = p_phis + phi_row(k, i_task, T, R) * P
        p_new = p_phis + phi_row(k + 1, i_task, T, R) * P
        p_state = p_states + (((k + R - 1) % R) * T + i_task) * STATES * P
        p_next = p_states + ((k % R) * T + i_task) * STATES * P
        p_lr_k, p_step = p_lr + k * P, p_steps + 4 * k
        p_u = p_directions + (k * T + i_task) * P
        first = (k == 0) * 1
        rows, m_rows = samples(k, N, B, BN)
        if STREAM:
            x = mlp_scratch.inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
            y = mlp_scratch.forward(x, p_room, p_phi, BN, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ROOM, ACTS, ARGS, PRECISION)
        else:
            xs = mlp_registers.inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
            zs, y = mlp_registers.forward(xs, p_phi, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, PRECISION)
        _, d = loss_gradient(y, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, SMOOTHING, IGNORE)
        if STREAM:
            mlp_scratch.backward(
                d, p_room, p_phi, p_new, p_state, p_next, p_phi, p_lr_k, p_step, p_u, first, first, P, BN, DEPTH, DIMS,
                BLOCKS, W_AT, B_AT, ROOM, ACTS, ARGS, "step", RULE, HYPER, LR_EACH, DIRECTIONS, PRECISION,
            )  # fmt: skip
        else:
            mlp_registers.backward(
                d, zs, xs, p_phi, p_new, p_state, p_next, p_phi, p_lr_k, p_step, p_u, first, first, P, DEPTH, DIMS,
                BLOCKS, W_AT, B_AT, ACTS, ARGS, "step", RULE, HYPER, LR_EACH, DIRECTIONS, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()  # the next step reads what this one wrote


@triton.jit(do_not_specialize=["T", "R"])
def apply_kernel(
    p_phis, p_lam, p_bad, p_finite, p_x, p_y, p_outputs, p_losses, p_room, T, R, K: tl.constexpr, N: tl.constexpr,
    BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, ROOM: tl.constexpr,
    STREAM: tl.constexpr, LOSS: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr, BACKWARD: tl.constexpr,
    REPTILE: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The query pass: outputs at φ_K and, with a LOSS, its value.

    With BACKWARD the gradient λ_K as well, of the loss or (LOSS "given") along the cotangents in `p_y`; with REPTILE
    θ − φ_K in its place. Where it is the LAST of a meta-step, it says which tasks stayed finite.
    """
    i_task = tl.program_id(0).to(tl.int64)
    p_phi = p_phis + phi_row(K, i_task, T, R) * P
    p_lam += i_task * P
    p_room += i_task * ROOM[DEPTH + 3]
    o_n, o_c = tl.arange(0, BN), tl.arange(0, BLOCKS[DEPTH])
    m_rows = o_n < N
    p_x += i_task * N * DIMS[0]
    p_y += i_task * N * (1 if LOSS == "cross_entropy" else DIMS[DEPTH])
    at = o_n[:, None] * DIMS[DEPTH] + o_c[None, :]
    m_out = m_rows[:, None] & (o_c[None, :] < DIMS[DEPTH])
    if STREAM:
        x = mlp_scratch.inputs(p_x, o_n, m_rows, DIMS[0], BLOCKS[0])
        y = mlp_scratch.forward(x, p_room, p_phi, BN, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ROOM, ACTS, ARGS, PRECISION)
    else:
        xs = mlp_registers.inputs(p_x, o_n, m_rows, DIMS[0], BLOCKS[0])
        zs, y = mlp_registers.forward(xs, p_phi, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, PRECISION)
    if LOSS == "given":
        d = tl.load(p_y + at, mask=m_out, other=0.0)
    else:
        tl.store(p_outputs + i_task * N * DIMS[DEPTH] + at, y, mask=m_out)
    if LOSS == "mse" or LOSS == "cross_entropy":
        loss, d = loss_gradient(y, p_y, o_n, m_rows, N, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, SMOOTHING, IGNORE)
        tl.store(p_losses + i_task, loss)
        tl.store(p_bad + i_task, tl.load(p_bad + i_task) + (loss - loss))
    if BACKWARD:
        if STREAM:
            mlp_scratch.backward(
                d, p_room, p_phi, p_lam, p_lam, p_lam, p_lam, p_lam, p_lam, p_lam, 0, 0, P, BN, DEPTH, DIMS, BLOCKS,
                W_AT, B_AT, ROOM, ACTS, ARGS, "store", "", (), False, False, PRECISION,
            )  # fmt: skip
        else:
            mlp_registers.backward(
                d, zs, xs, p_phi, p_lam, p_lam, p_lam, p_lam, p_lam, p_lam, p_lam, 0, 0, P, DEPTH, DIMS, BLOCKS, W_AT,
                B_AT, ACTS, ARGS, "store", "", (), False, False, PRECISION,
            )  # fmt: skip
    if REPTILE:
        o_p = tl.arange(0, 1024)
        for p in range(0, P, 1024):
            theta = tl.load(p_phis + phi_row(0, i_task, T, R) * P + p + o_p, mask=p + o_p < P, other=0.0)
            phi = tl.load(p_phi + p + o_p, mask=p + o_p < P, other=0.0)
            tl.store(p_lam + p + o_p, theta - phi, mask=p + o_p < P)
    if LAST:
        tl.debug_barrier()
        drop_unless_finite(p_lam, p_bad + i_task, p_finite + i_task, P if BACKWARD or REPTILE else 0, 1024)


@triton.jit
def step_back_in_registers(
    xs, zs, y, dy, p_phi, p_lam, p_sigma, p_state, p_v, p_y, p_lr, p_step, rows, m_rows, first, last,
    B: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, LOSS: tl.constexpr,
    IGNORE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ_{k+1} → λ_k with activations in registers, the forward sweep done."""
    if RULE == "adam":
        # v asks for the gradient itself, so it is computed once more
        mlp_registers.backward(
            dy, zs, xs, p_phi, p_v, p_state, p_sigma, p_lam, p_lr, p_step, p_v, first, last, P, DEPTH, DIMS, BLOCKS,
            W_AT, B_AT, ACTS, ARGS, "pull", RULE, HYPER, LR_EACH, False, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # v is read below
    zs_dot, y_dot = mlp_registers.forward_dot(
        xs, zs, p_phi, p_lam, p_sigma, p_v, p_lr, p_step, last, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, RULE,
        HYPER, LR_EACH, PRECISION,
    )  # fmt: skip
    dy_dot = loss_gradient_dot(y, y_dot, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, IGNORE)
    tl.debug_barrier()  # all have read λ before it changes
    mlp_registers.backward_dot(
        dy, dy_dot, xs, zs, zs_dot, p_phi, p_lam, p_sigma, p_v, p_lr, p_step, last, DEPTH, DIMS, BLOCKS,
        W_AT, B_AT, ACTS, ARGS, RULE, HYPER, LR_EACH, PRECISION,
    )  # fmt: skip


@triton.jit
def step_back_in_scratch(
    y, dy, p_room, p_phi, p_lam, p_sigma, p_state, p_v, p_y, p_lr, p_step, rows, m_rows, first, last,
    B: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, ROOM: tl.constexpr,
    LOSS: tl.constexpr, IGNORE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """λ_{k+1} → λ_k with activations in scratch, the forward sweep done."""
    if RULE == "adam":
        mlp_scratch.backward(
            dy, p_room, p_phi, p_v, p_state, p_sigma, p_lam, p_lr, p_step, p_v, first, last, P, BN, DEPTH, DIMS, BLOCKS,
            W_AT, B_AT, ROOM, ACTS, ARGS, "pull", RULE, HYPER, LR_EACH, False, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # v is read below
    y_dot = mlp_scratch.forward_dot(
        p_room, p_phi, p_lam, p_sigma, p_v, p_lr, p_step, last, BN, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ROOM, ACTS, ARGS,
        RULE, HYPER, LR_EACH, PRECISION,
    )  # fmt: skip
    dy_dot = loss_gradient_dot(y, y_dot, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, IGNORE)
    mlp_scratch.backward_dot(
        dy, dy_dot, p_room, p_phi, p_lam, p_sigma, p_v, p_lr, p_step, last, BN, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ROOM,
        ACTS, ARGS, RULE, HYPER, LR_EACH, PRECISION,
    )  # fmt: skip


@triton.jit
def rate_gradients(p_lam, p_u, P: tl.constexpr, BLOCK: tl.constexpr):
    """`rate_gradient` of a task's row; in the padding u is zero."""
    offsets = tl.arange(0, BLOCK)
    for at in tl.range(0, P, BLOCK, disable_licm=True):
        mask = at + offsets < P
        lam = tl.load(p_lam + at + offsets, mask=mask, other=0.0)
        rate_gradient(lam, p_u + at, offsets, mask, mask)


@triton.jit(do_not_specialize=["T", "R"])
def adjoint_kernel(
    p_phis, p_lam, p_sigma, p_states, p_v, p_bad, p_finite, p_x, p_y, p_lr, p_steps, p_directions, p_room, T, R,
    K: tl.constexpr, N: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr,
    DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr,
    ARGS: tl.constexpr, ROOM: tl.constexpr, STREAM: tl.constexpr, LOSS: tl.constexpr, SMOOTHING: tl.constexpr,
    IGNORE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, STATES: tl.constexpr, LR_EACH: tl.constexpr,
    DIRECTIONS: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ_K → λ_0 of every task, in place, by forward-over-reverse through every step.

    With DIRECTIONS the u_k in `p_directions` become the gradients −λ_{k+1} u_k of the learning rates.
    """
    i_task = tl.program_id(0).to(tl.int64)
    p_x += i_task * N * DIMS[0]
    p_y += i_task * N * (DIMS[DEPTH] if LOSS == "mse" else 1)
    p_room += i_task * 2 * ROOM[DEPTH + 3]
    p_lam += i_task * P
    p_sigma += i_task * STATES * P
    p_v += i_task * P
    for back in tl.range(0, K, disable_licm=True):
        k = K - 1 - back
        p_phi = p_phis + phi_row(k, i_task, T, R) * P
        p_state = p_states + (((k + R - 1) % R) * T + i_task) * STATES * P
        p_lr_k, p_step = p_lr + k * P, p_steps + 4 * k
        first, last = (k == 0) * 1, (back == 0) * 1
        if DIRECTIONS:  # where λ changes it would take 44 to 140 bytes of stack with K = 1 too (1-40-40-1, float32)
            rate_gradients(p_lam, p_directions + (k * T + i_task) * P, P, 1024)
        rows, m_rows = samples(k, N, B, BN)
        if STREAM:
            x = mlp_scratch.inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
            y = mlp_scratch.forward(x, p_room, p_phi, BN, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ROOM, ACTS, ARGS, PRECISION)
        else:
            xs = mlp_registers.inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
            zs, y = mlp_registers.forward(xs, p_phi, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, PRECISION)
        _, dy = loss_gradient(y, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, SMOOTHING, IGNORE)
        if STREAM:
            step_back_in_scratch(
                y, dy, p_room, p_phi, p_lam, p_sigma, p_state, p_v, p_y, p_lr_k, p_step, rows, m_rows, first, last, B,
                BN, P, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, ROOM, LOSS, IGNORE, RULE, HYPER, LR_EACH,
                PRECISION,
            )  # fmt: skip
        else:
            step_back_in_registers(
                xs, zs, y, dy, p_phi, p_lam, p_sigma, p_state, p_v, p_y, p_lr_k, p_step, rows, m_rows, first, last,
                B, P, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, LOSS, IGNORE, RULE, HYPER, LR_EACH, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()  # the next step reads what this one wrote
    if LAST:
        drop_unless_finite(p_lam, p_bad + i_task, p_finite + i_task, P, 1024)
