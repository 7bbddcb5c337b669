"""Multilayer perceptrons: the inner loop of every task, its adjoint and the query pass, one program a task.

A program streams weights, layer by layer, through its own rows of scratch, which stay in the first-level cache (1.8 kB
to 0.5 MB a task); activations live in registers. Scratch that is written and read again within a program has a barrier
between, and another before it is overwritten. See README.md.

What is used again in a later phase gets a zero added that the compiler does not know: otherwise it keeps activations
as operands of the matrix instructions from phase to phase, and spills (1-40-40-1 on sm_90 with tf32x3 products: 600
bytes of stack). For the same reason loops keep what does not change in them where it is (adapt: 227 registers without,
120 with). Loop bounds are compile-time: Triton 3.6 interprets no others on NumPy 2.4.

`DIMS` are the layers' widths D_0 … D_L and `BLOCKS` the same padded to powers of two; `W_AT` and `B_AT` say where a
layer's weight [O, I] and bias lie in a row of P values (−1: no bias); `ACTS` are the activations behind the layers and
`ARGS` their two arguments each.
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope, act_value
from .cross_entropy import cross_entropy, cross_entropy_dot, labels_that_count_of
from .inner import learning_rate, pulled_adam, pulled_sgd, step
from .linear import bias, bias_block, dot, weight, weight_block
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
def inputs(p_x, rows, m_rows, D: tl.constexpr, BD: tl.constexpr):
    """Inputs [BN, BD] of the samples in `rows`, zero outside."""
    o_d = tl.arange(0, BD)
    return tl.load(p_x + rows[:, None] * D + o_d[None, :], mask=m_rows[:, None] & (o_d[None, :] < D), other=0.0)


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


@triton.jit
def layer(
    x,
    p_phi,
    L: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    W_AT: tl.constexpr,
    B_AT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z = x Wᵀ + b [BN, BO] of layer L."""
    z = dot(x, tl.trans(weight(p_phi + W_AT[L], DIMS[L + 1], DIMS[L], BLOCKS[L + 1], BLOCKS[L])), PRECISION)
    if B_AT[L] >= 0:
        z += bias(p_phi + B_AT[L], DIMS[L + 1], BLOCKS[L + 1])[None, :]
    return z


@triton.jit
def act(z, L: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr):
    """f of layer L."""
    return act_value(z, ACTS[L], ARGS[2 * L], ARGS[2 * L + 1])


@triton.jit
def slope(z, L: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr):
    """f' of layer L."""
    return act_slope(z, ACTS[L], ARGS[2 * L], ARGS[2 * L + 1])


@triton.jit
def curvature(z, L: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr):
    """f'' of layer L."""
    return act_curvature(z, ACTS[L], ARGS[2 * L], ARGS[2 * L + 1])


@triton.jit
def forward(
    x,
    p_phi,
    DEPTH: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCKS: tl.constexpr,
    W_AT: tl.constexpr,
    B_AT: tl.constexpr,
    ACTS: tl.constexpr,
    ARGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pre-activations of all layers, and the outputs."""
    zs = ()
    for j in tl.static_range(DEPTH):
        z = layer(x, p_phi, j, DIMS, BLOCKS, W_AT, B_AT, PRECISION)
        zs = zs + (z,)
        x = act(z, j, ACTS, ARGS)
    return zs, x


@triton.jit
def again(tiles, p_zero, DEPTH: tl.constexpr):
    """The same tiles, which the compiler takes for new ones."""
    zero = tl.load(p_zero, volatile=True)
    fresh = ()
    for j in tl.static_range(DEPTH):
        fresh = fresh + (tiles[j] + zero,)
    return fresh


@triton.jit(do_not_specialize=["T", "R"])
def adapt_kernel(
    p_phis, p_states, p_bad, p_x, p_y, p_lr, p_steps, T, R, K: tl.constexpr,
    N: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr,
    BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
    LOSS: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    STATES: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """φ_0 → φ_K of every task, every step's weights left in `p_phis` for the adjoint; NaN in `p_bad` for bad inputs."""
    i_task = tl.program_id(0).to(tl.int64)
    p_x += i_task * N * DIMS[0]
    p_y += i_task * N * (DIMS[DEPTH] if LOSS == "mse" else 1)
    o_flat = tl.arange(0, 1024)
    drift = tl.zeros([1024], tl.float32)
    for at in range(0, N * DIMS[0], 1024):
        x = tl.load(p_x + at + o_flat, mask=at + o_flat < N * DIMS[0], other=0.0)
        drift += x - x
    tl.store(p_bad + i_task, tl.sum(drift, 0))
    for k in tl.range(0, K, disable_licm=True):
        p_phi = p_phis + phi_row(k, i_task, T, R) * P
        p_new = p_phis + phi_row(k + 1, i_task, T, R) * P
        p_old_state = p_states + (((k + R - 1) % R) * T + i_task) * STATES * P
        p_new_state = p_states + ((k % R) * T + i_task) * STATES * P
        first = (k == 0) * 1
        rows, m_rows = samples(k, N, B, BN)
        x = inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
        zs, y = forward(x, p_phi, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, PRECISION)
        _, d = loss_gradient(y, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, SMOOTHING, IGNORE)
        zs = again(zs, p_steps + 4 * k + 3, DEPTH)
        for j in tl.static_range(DEPTH - 1, -1, -1):
            d = d * slope(zs[j], j, ACTS, ARGS)
            if B_AT[j] >= 0:
                offsets, m_load, m_store = bias_block(DIMS[j + 1], BLOCKS[j + 1])
                b = tl.load(p_phi + B_AT[j] + offsets, mask=m_load, other=0.0)
                lr = learning_rate(p_lr + k * P + B_AT[j], p_steps + 4 * k, offsets, m_load, LR_EACH)
                b = step(b, tl.sum(d, 0), p_old_state + B_AT[j], p_new_state + B_AT[j], p_steps + 4 * k, lr, offsets,
                         m_load, m_store, first, P, RULE, HYPER)  # fmt: skip
                tl.store(p_new + B_AT[j] + offsets, b, mask=m_store)
            offsets, m_load, m_store = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
            w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
            x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
            g = dot(tl.trans(d), x_in, PRECISION)
            lr = learning_rate(p_lr + k * P + W_AT[j], p_steps + 4 * k, offsets, m_load, LR_EACH)
            new = step(w, g, p_old_state + W_AT[j], p_new_state + W_AT[j], p_steps + 4 * k, lr, offsets, m_load,
                       m_store, first, P, RULE, HYPER)  # fmt: skip
            tl.store(p_new + W_AT[j] + offsets, new, mask=m_store)
            if j > 0:
                d = dot(d, w, PRECISION)
        tl.debug_barrier()  # the next step reads what this one wrote


@triton.jit(do_not_specialize=["T", "R"])
def apply_kernel(
    p_phis, p_lam, p_bad, p_finite, p_x, p_y, p_outputs, p_losses, T, R, K: tl.constexpr, N: tl.constexpr,
    BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr,
    W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr, LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr, IGNORE: tl.constexpr, BACKWARD: tl.constexpr, REPTILE: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The query pass: outputs at φ_K and, with a LOSS, its value.

    With BACKWARD the gradient λ_K as well, of the loss or (LOSS "given") along the cotangents in `p_y`; with REPTILE
    θ − φ_K in its place. Where it is the LAST of a meta-step, it says which tasks stayed finite.
    """
    i_task = tl.program_id(0).to(tl.int64)
    p_phi = p_phis + phi_row(K, i_task, T, R) * P
    p_lam += i_task * P
    o_n, o_c = tl.arange(0, BN), tl.arange(0, BLOCKS[DEPTH])
    m_rows = o_n < N
    p_x += i_task * N * DIMS[0]
    p_y += i_task * N * (1 if LOSS == "cross_entropy" else DIMS[DEPTH])
    at = o_n[:, None] * DIMS[DEPTH] + o_c[None, :]
    m_out = m_rows[:, None] & (o_c[None, :] < DIMS[DEPTH])
    x = inputs(p_x, o_n, m_rows, DIMS[0], BLOCKS[0])
    zs, y = forward(x, p_phi, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, PRECISION)
    if LOSS == "given":
        d = tl.load(p_y + at, mask=m_out, other=0.0)
    else:
        tl.store(p_outputs + i_task * N * DIMS[DEPTH] + at, y, mask=m_out)
    if LOSS == "mse" or LOSS == "cross_entropy":
        loss, d = loss_gradient(y, p_y, o_n, m_rows, N, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, SMOOTHING, IGNORE)
        tl.store(p_losses + i_task, loss)
        tl.store(p_bad + i_task, tl.load(p_bad + i_task) + (loss - loss))
    if BACKWARD:
        for j in tl.static_range(DEPTH - 1, -1, -1):
            d = d * slope(zs[j], j, ACTS, ARGS)
            if B_AT[j] >= 0:
                offsets, _, m_store = bias_block(DIMS[j + 1], BLOCKS[j + 1])
                tl.store(p_lam + B_AT[j] + offsets, tl.sum(d, 0), mask=m_store)
            offsets, m_load, m_store = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
            x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
            tl.store(p_lam + W_AT[j] + offsets, dot(tl.trans(d), x_in, PRECISION), mask=m_store)
            if j > 0:
                w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
                d = dot(d, w, PRECISION)
    if REPTILE:
        o_p = tl.arange(0, 1024)
        for p in range(0, P, 1024):
            theta = tl.load(p_phis + R * T * P + p + o_p, mask=p + o_p < P, other=0.0)
            phi = tl.load(p_phi + p + o_p, mask=p + o_p < P, other=0.0)
            tl.store(p_lam + p + o_p, theta - phi, mask=p + o_p < P)
    if LAST:
        tl.debug_barrier()
        drop_unless_finite(p_lam, p_bad + i_task, p_finite + i_task, P if BACKWARD or REPTILE else 0, 1024)


@triton.jit
def pulled(p_lam, p_sigma, p_v, lr, offsets, mask, last, RULE: tl.constexpr, HYPER: tl.constexpr):
    """λ and v on a block: what the Hessian is multiplied by. Adam's v has been stored before, as it needs gradients."""
    lam = tl.load(p_lam + offsets, mask=mask, other=0.0)
    if RULE == "sgd":
        v, sigma = pulled_sgd(lam, lr, p_sigma, offsets, mask, last, HYPER)
    else:
        v = tl.load(p_v + offsets, mask=mask, other=0.0)
        sigma = v
    return lam, v, sigma


@triton.jit
def store_pulled(h, lam, v, sigma, p_lam, p_sigma, offsets, mask, RULE: tl.constexpr, HYPER: tl.constexpr):
    """λ_k = direct + H v and, of an optimiser with momentum, σ_k."""
    if RULE == "sgd":
        lam = lam + HYPER[2] * v
        if HYPER[0] > 0:
            tl.store(p_sigma + offsets, sigma, mask=mask)
    tl.store(p_lam + offsets, lam + h, mask=mask)


@triton.jit(do_not_specialize=["T", "R"])
def adjoint_kernel(
    p_phis, p_lam, p_sigma, p_states, p_v, p_bad, p_finite, p_x, p_y, p_lr, p_steps, T, R, K: tl.constexpr,
    N: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, DEPTH: tl.constexpr, DIMS: tl.constexpr,
    BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
    LOSS: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    STATES: tl.constexpr, LR_EACH: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ_K → λ_0 of every task, in place, by forward-over-reverse through every step."""
    i_task = tl.program_id(0).to(tl.int64)
    p_x += i_task * N * DIMS[0]
    p_y += i_task * N * (DIMS[DEPTH] if LOSS == "mse" else 1)
    p_lam += i_task * P
    p_sigma += i_task * STATES * P
    p_v += i_task * P
    for back in tl.range(0, K, disable_licm=True):
        k = K - 1 - back
        p_phi = p_phis + phi_row(k, i_task, T, R) * P
        p_state = p_states + (((k + R - 1) % R) * T + i_task) * STATES * P
        p_step = p_steps + 4 * k
        p_lr_k = p_lr + k * P
        first, last = (k == 0) * 1, (back == 0) * 1
        rows, m_rows = samples(k, N, B, BN)
        x = inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
        zs, y = forward(x, p_phi, DEPTH, DIMS, BLOCKS, W_AT, B_AT, ACTS, ARGS, PRECISION)
        _, dy = loss_gradient(y, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, SMOOTHING, IGNORE)
        if RULE == "adam":
            # v asks for the gradient itself, so it is computed once more
            zs = again(zs, p_step + 3, DEPTH)
            d = dy
            for j in tl.static_range(DEPTH - 1, -1, -1):
                d = d * slope(zs[j], j, ACTS, ARGS)
                if B_AT[j] >= 0:
                    offsets, m_load, m_store = bias_block(DIMS[j + 1], BLOCKS[j + 1])
                    lam = tl.load(p_lam + B_AT[j] + offsets, mask=m_load, other=0.0)
                    lr = learning_rate(p_lr_k + B_AT[j], p_step, offsets, m_load, LR_EACH)
                    v = pulled_adam(lam, tl.sum(d, 0), lr, p_sigma + B_AT[j], p_state + B_AT[j], p_step, offsets,
                                    m_load, m_store, first, last, P, HYPER)  # fmt: skip
                    tl.store(p_v + B_AT[j] + offsets, v, mask=m_store)
                offsets, m_load, m_store = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
                x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
                g = dot(tl.trans(d), x_in, PRECISION)
                lam = tl.load(p_lam + W_AT[j] + offsets, mask=m_load, other=0.0)
                lr = learning_rate(p_lr_k + W_AT[j], p_step, offsets, m_load, LR_EACH)
                v = pulled_adam(lam, g, lr, p_sigma + W_AT[j], p_state + W_AT[j], p_step, offsets, m_load, m_store,
                                first, last, P, HYPER)  # fmt: skip
                tl.store(p_v + W_AT[j] + offsets, v, mask=m_store)
                if j > 0:
                    d = dot(d, weight(p_phi + W_AT[j], DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j]), PRECISION)
            tl.debug_barrier()  # v is read below
        # tangents, forward
        x = inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
        zs = again(zs, p_step + 3, DEPTH)
        zs_dot = ()
        x_dot = x
        for j in tl.static_range(DEPTH):
            x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
            offsets, m_load, _ = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
            lr = learning_rate(p_lr_k + W_AT[j], p_step, offsets, m_load, LR_EACH)
            _, v, _ = pulled(p_lam + W_AT[j], p_sigma + W_AT[j], p_v + W_AT[j], lr, offsets, m_load, last, RULE, HYPER)
            z_dot = dot(x_in, tl.trans(v), PRECISION)
            if j > 0:
                w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
                z_dot += dot(x_dot, tl.trans(w), PRECISION)
            if B_AT[j] >= 0:
                offsets, m_load, _ = bias_block(DIMS[j + 1], BLOCKS[j + 1])
                lr = learning_rate(p_lr_k + B_AT[j], p_step, offsets, m_load, LR_EACH)
                _, v, _ = pulled(
                    p_lam + B_AT[j], p_sigma + B_AT[j], p_v + B_AT[j], lr, offsets, m_load, last, RULE, HYPER
                )
                z_dot += v[None, :]
            zs_dot = zs_dot + (z_dot,)
            x_dot = slope(zs[j], j, ACTS, ARGS) * z_dot
        dy_dot = loss_gradient_dot(y, x_dot, p_y, rows, m_rows, B, DIMS[DEPTH], BLOCKS[DEPTH], LOSS, IGNORE)
        # backward, on dual numbers
        x = inputs(p_x, rows, m_rows, DIMS[0], BLOCKS[0])
        zs, zs_dot = again(zs, p_step + 3, DEPTH), again(zs_dot, p_step + 3, DEPTH)
        for j in tl.static_range(DEPTH - 1, -1, -1):
            f1 = slope(zs[j], j, ACTS, ARGS)
            d = f1 * dy
            d_dot = f1 * dy_dot + curvature(zs[j], j, ACTS, ARGS) * zs_dot[j] * dy
            if B_AT[j] >= 0:
                offsets, m_load, m_store = bias_block(DIMS[j + 1], BLOCKS[j + 1])
                lr = learning_rate(p_lr_k + B_AT[j], p_step, offsets, m_load, LR_EACH)
                lam, v, sigma = pulled(p_lam + B_AT[j], p_sigma + B_AT[j], p_v + B_AT[j], lr, offsets, m_load, last,
                                       RULE, HYPER)  # fmt: skip
                store_pulled(tl.sum(d_dot, 0), lam, v, sigma, p_lam + B_AT[j], p_sigma + B_AT[j], offsets, m_store,
                             RULE, HYPER)  # fmt: skip
            offsets, m_load, m_store = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
            lr = learning_rate(p_lr_k + W_AT[j], p_step, offsets, m_load, LR_EACH)
            if j > 0:
                _, v, _ = pulled(p_lam + W_AT[j], p_sigma + W_AT[j], p_v + W_AT[j], lr, offsets, m_load, last, RULE,
                                 HYPER)  # fmt: skip
                dy_dot = dot(d, v, PRECISION)
                tl.debug_barrier()
                w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
                dy = dot(d + tl.load(p_step + 3, volatile=True), w, PRECISION)
                dy_dot += dot(d_dot, w, PRECISION)
                tl.debug_barrier()
                zero = tl.load(p_step + 3, volatile=True)
                d, d_dot = d + zero, d_dot + zero
            x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
            h = dot(tl.trans(d_dot), x_in, PRECISION)
            if j > 0:
                zero = tl.load(p_step + 3, volatile=True)
                x_dot = slope(zs[j - 1] + zero, j - 1, ACTS, ARGS) * zs_dot[j - 1]
                h += dot(tl.trans(d), x_dot, PRECISION)
            tl.debug_barrier()  # all have read λ before it changes
            lam, v, sigma = pulled(p_lam + W_AT[j], p_sigma + W_AT[j], p_v + W_AT[j], lr, offsets, m_load, last, RULE,
                                   HYPER)  # fmt: skip
            store_pulled(h, lam, v, sigma, p_lam + W_AT[j], p_sigma + W_AT[j], offsets, m_store, RULE, HYPER)
        tl.debug_barrier()  # the next step reads what this one wrote
    if LAST:
        drop_unless_finite(p_lam, p_bad + i_task, p_finite + i_task, P, 1024)
