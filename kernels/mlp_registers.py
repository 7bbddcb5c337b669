"""Sweeps over a perceptron's layers with its activations in registers; `mlp_scratch.py` has the same ones for sizes
that do not fit.

Activations of a layer are a tuple of tiles [BN, B], B of `BLOCKS`, and weights are taken one block [BO, BI] at a time
(`mlp_blocks.py`): a program of one warp holds 16 columns in 8 registers of a thread. What is elementwise is computed
again from the pre-activations.
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope, act_value
from .inner import pulled, pushed, use_gradient
from .mlp_blocks import (
    bias_block,
    bias_gradient,
    block_over_outputs,
    by_feature,
    by_place,
    features,
    operands,
    over_outputs,
    times_block,
    times_transposed,
    weight_block,
    weight_gradient,
    weight_gradient_dot,
)


@triton.jit
def inputs(p_x, rows, m_rows, D: tl.constexpr, BD: tl.constexpr):
    """Inputs of the samples in `rows`, zero outside."""
    xs = ()
    for d in tl.static_range(0, D, BD):
        o_d = d + features(BD)
        xs = xs + (
            tl.load(p_x + rows[:, None] * D + o_d[None, :], mask=m_rows[:, None] & (o_d[None, :] < D), other=0.0),
        )
    return xs


@triton.jit
def act(zs, L: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr):
    """f of layer L."""
    xs = ()
    for t in tl.static_range(len(zs)):
        xs = xs + (act_value(zs[t], ACTS[L], ARGS[2 * L], ARGS[2 * L + 1]),)
    return xs


@triton.jit
def times_slope(ds, zs, L: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr):
    """d f'(z) of layer L: a tangent through its activation, or a cotangent back."""
    found = ()
    for t in tl.static_range(len(zs)):
        found = found + (act_slope(zs[t], ACTS[L], ARGS[2 * L], ARGS[2 * L + 1]) * ds[t],)
    return found


@triton.jit
def times_slope_dot(ds, ds_dot, zs, zs_dot, L: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr):
    """The tangent of that cotangent."""
    found = ()
    for t in tl.static_range(len(zs)):
        f1 = act_slope(zs[t], ACTS[L], ARGS[2 * L], ARGS[2 * L + 1])
        f2 = act_curvature(zs[t], ACTS[L], ARGS[2 * L], ARGS[2 * L + 1])
        found = found + (f1 * ds_dot[t] + f2 * zs_dot[t] * ds[t],)
    return found


@triton.jit
def layer(
    xs, p_phi, OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, W_AT: tl.constexpr,
    B_AT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z = x Wᵀ + b of a layer."""
    zs = ()
    for o in tl.static_range(0, OUT, BO):
        z = tl.zeros([xs[0].shape[0], BO], tl.float32)
        if B_AT >= 0:
            o_b = o + features(BO)
            z += tl.load(p_phi + B_AT + o_b, mask=o_b < OUT, other=0.0)[None, :]
        zs = zs + (z,)
    for i in tl.static_range(0, IN, BI):
        x = operands((xs[i // BI],), BI if BO > 1 else 1, PRECISION)
        sums = ()
        for o in tl.static_range(0, OUT, BO):
            offsets, mask, _ = weight_block(OUT, IN, BO, BI, o, i)
            w = tl.load(p_phi + W_AT + offsets, mask=mask, other=0.0)
            sums = sums + (times_transposed(zs[o // BO], x[0], w, BO, BI, PRECISION),)
        zs = sums
    return zs


@triton.jit
def forward(
    xs, p_phi, DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr,
    ACTS: tl.constexpr, ARGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pre-activations of all layers, and the outputs, which are one tile."""
    zs = ()
    for j in tl.static_range(DEPTH):
        z = layer(xs, p_phi, DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j], W_AT[j], B_AT[j], PRECISION)
        zs = zs + (z,)
        xs = act(z, j, ACTS, ARGS)
    return zs, by_feature(xs[0])


@triton.jit
def layer_backward(
    ds, xs, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P: tl.constexpr,
    J: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, W_AT: tl.constexpr,
    B_AT: tl.constexpr, USE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of layer J and what becomes of them; the cotangents of its inputs, J > 0."""
    if B_AT >= 0:
        for o in tl.static_range(0, OUT, BO):
            offsets, m_load, m_store = bias_block(OUT, BO, o)
            b = tl.load(p_phi + B_AT + offsets, mask=m_load, other=0.0)
            use_gradient(bias_gradient(ds[o // BO], BO), b, B_AT, offsets, m_load, m_store, p_out, p_state, p_next,
                         p_lam, p_lr, p_steps, p_u, first, last, P, USE, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    d_parts = operands(ds, BO if BI > 1 else 1, PRECISION)
    dxs = ()
    if J > 0:
        for i in tl.static_range(0, IN, BI):
            dx = tl.zeros([ds[0].shape[0], BI], tl.float32)
            for o in tl.static_range(0, OUT, BO):
                offsets, mask = block_over_outputs(OUT, IN, BO, BI, o, i)
                w = over_outputs(tl.load(p_phi + W_AT + offsets, mask=mask, other=0.0), BO, BI, PRECISION)
                dx = times_block(dx, d_parts[o // BO], w, BO, BI, PRECISION)
            dxs = dxs + (dx,)
    for i in tl.static_range(0, IN, BI):
        x_parts = operands((xs[i // BI],), BI if BO > 1 else 1, PRECISION)
        for o in tl.static_range(0, OUT, BO):
            offsets, m_load, m_store = weight_block(OUT, IN, BO, BI, o, i)
            g = weight_gradient(d_parts[o // BO], x_parts[0], m_load, BO, BI, PRECISION)
            if USE == "step":
                w = tl.load(p_phi + W_AT + offsets, mask=m_load, other=0.0)
            else:
                w = 0.0
            use_gradient(g, w, W_AT, offsets, m_load, m_store, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first,
                         last, P, USE, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    return dxs


@triton.jit
def backward(
    d, zs, xs, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P: tl.constexpr,
    DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr,
    ACTS: tl.constexpr, ARGS: tl.constexpr, USE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of all layers from that of the outputs, d [BN, BO]; what becomes of them: `use_gradient`."""
    ds = (by_place(d),)
    for j in tl.static_range(DEPTH - 1, -1, -1):
        ds = times_slope(ds, zs[j], j, ACTS, ARGS)
        x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else xs
        ds = layer_backward(
            ds, x_in, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P, j, DIMS[j + 1], DIMS[j],
            BLOCKS[j + 1], BLOCKS[j], W_AT[j], B_AT[j], USE, RULE, HYPER, LR_EACH, DIRECTIONS, PRECISION,
        )  # fmt: skip


@triton.jit
def layer_dot(
    xs, xs_dot, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, J: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, RULE: tl.constexpr,
    HYPER: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ż = x Vᵀ + ẋ Wᵀ + c of layer J, whose inputs move where J > 0."""
    zs_dot = ()
    for o in tl.static_range(0, OUT, BO):
        z_dot = tl.zeros([xs[0].shape[0], BO], tl.float32)
        if B_AT >= 0:
            o_b = o + features(BO)
            _, v, _ = pulled(B_AT, o_b, o_b < OUT, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            z_dot += v[None, :]
        zs_dot = zs_dot + (z_dot,)
    for i in tl.static_range(0, IN, BI):
        x = operands((xs[i // BI], xs_dot[i // BI]), BI if BO > 1 else 1, PRECISION)
        sums = ()
        for o in tl.static_range(0, OUT, BO):
            offsets, mask, _ = weight_block(OUT, IN, BO, BI, o, i)
            _, v, _ = pulled(W_AT, offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            z_dot = times_transposed(zs_dot[o // BO], x[0], v, BO, BI, PRECISION)
            if J > 0:
                w = tl.load(p_phi + W_AT + offsets, mask=mask, other=0.0)
                z_dot = times_transposed(z_dot, x[1], w, BO, BI, PRECISION)
            sums = sums + (z_dot,)
        zs_dot = sums
    return zs_dot


@triton.jit
def forward_dot(
    xs, zs, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, DEPTH: tl.constexpr, DIMS: tl.constexpr,
    BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
    RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tangents along v of all pre-activations, and of the outputs."""
    zs_dot = ()
    xs_dot = xs
    for j in tl.static_range(DEPTH):
        x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else xs
        tl.debug_barrier()  # or loads come long before their products and fill the registers
        z_dot = layer_dot(x_in, xs_dot, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, j, DIMS[j + 1], DIMS[j],
                          BLOCKS[j + 1], BLOCKS[j], W_AT[j], B_AT[j], RULE, HYPER, LR_EACH, PRECISION)  # fmt: skip
        zs_dot = zs_dot + (z_dot,)
        xs_dot = times_slope(z_dot, zs[j], j, ACTS, ARGS)
    return zs_dot, by_feature(xs_dot[0])


@triton.jit
def cotangents_dot(
    d_parts, d_dot_parts, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, BN: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, W_AT: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangents of a layer's inputs and their tangents, d W and ḋ W + d V."""
    dxs, dxs_dot = (), ()
    for _ in tl.static_range(0, IN, BI):
        dxs = dxs + (tl.zeros([BN, BI], tl.float32),)
        dxs_dot = dxs_dot + (tl.zeros([BN, BI], tl.float32),)
    for o in tl.static_range(0, OUT, BO):
        d, d_dot = d_parts[o // BO], d_dot_parts[o // BO]
        sums, sums_dot = (), ()
        for i in tl.static_range(0, IN, BI):
            offsets, mask = block_over_outputs(OUT, IN, BO, BI, o, i)
            w = over_outputs(tl.load(p_phi + W_AT + offsets, mask=mask, other=0.0), BO, BI, PRECISION)
            sums = sums + (times_block(dxs[i // BI], d, w, BO, BI, PRECISION),)
            dx_dot = times_block(dxs_dot[i // BI], d_dot, w, BO, BI, PRECISION)
            _, v, _ = pulled(W_AT, offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            sums_dot = sums_dot + (times_block(dx_dot, d, over_outputs(v, BO, BI, PRECISION), BO, BI, PRECISION),)
        dxs, dxs_dot = sums, sums_dot
    return dxs, dxs_dot


@triton.jit
def weight_back(
    d_parts, d_dot_parts, xs, xs_dot, p_lam, p_sigma, p_v, p_lr, p_steps, last, J: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, W_AT: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ and σ of layer J's weight one step back."""
    for i in tl.static_range(0, IN, BI):
        x_parts = operands((xs[i // BI], xs_dot[i // BI]), BI if BO > 1 else 1, PRECISION)
        for o in tl.static_range(0, OUT, BO):
            offsets, m_load, m_store = weight_block(OUT, IN, BO, BI, o, i)
            if J > 0:
                h = weight_gradient_dot(d_parts[o // BO], d_dot_parts[o // BO], x_parts[0], x_parts[1], m_load, BO, BI,
                                        PRECISION)  # fmt: skip
            else:
                h = weight_gradient(d_dot_parts[o // BO], x_parts[0], m_load, BO, BI, PRECISION)
            lam, v, sigma = pulled(W_AT, offsets, m_load, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER,
                                   LR_EACH)  # fmt: skip
            if BO == 1 or BI == 1:
                tl.debug_barrier()  # fewer values than threads of several warps: more than one has read each
            pushed(lam, v, sigma, h, W_AT, offsets, m_store, p_lam, p_sigma, RULE, HYPER)


@triton.jit
def bias_back(
    ds_dot, p_lam, p_sigma, p_v, p_lr, p_steps, last, OUT: tl.constexpr, BO: tl.constexpr, B_AT: tl.constexpr,
    RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
):  # fmt: skip
    """The same of a bias."""
    for o in tl.static_range(0, OUT, BO):
        offsets, m_load, m_store = bias_block(OUT, BO, o)
        lam, v, sigma = pulled(B_AT, offsets, m_load, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
        h = bias_gradient(ds_dot[o // BO], BO)
        tl.debug_barrier()  # as in `weight_back`
        pushed(lam, v, sigma, h, B_AT, offsets, m_store, p_lam, p_sigma, RULE, HYPER)


@triton.jit
def backward_dot(
    dy, dy_dot, xs, zs, zs_dot, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, DEPTH: tl.constexpr,
    DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr,
    ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ and σ of all layers one step back, in place, from the outputs' cotangents dy and their tangents [BN, BO]."""
    ds, ds_dot = (by_place(dy),), (by_place(dy_dot),)
    for j in tl.static_range(DEPTH - 1, -1, -1):
        ds_dot = times_slope_dot(ds, ds_dot, zs[j], zs_dot[j], j, ACTS, ARGS)
        ds = times_slope(ds, zs[j], j, ACTS, ARGS)
        x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else xs
        x_dot = times_slope(zs_dot[j - 1], zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else xs
        output_d_dot = ds_dot
        d_parts = operands(ds, BLOCKS[j + 1] if BLOCKS[j] > 1 else 1, PRECISION)
        d_dot_parts = operands(ds_dot, BLOCKS[j + 1] if BLOCKS[j] > 1 else 1, PRECISION)
        if j > 0:
            ds, ds_dot = cotangents_dot(
                d_parts, d_dot_parts, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, dy.shape[0], DIMS[j + 1],
                DIMS[j], BLOCKS[j + 1], BLOCKS[j], W_AT[j], RULE, HYPER, LR_EACH, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()  # all have read λ, of which `forward_dot` and this made v, before it changes
        if tl.load(p_steps + 3) < 1.0:  # always, but what the compiler cannot know keeps it from mixing the two
            if B_AT[j] >= 0:
                bias_back(
                    output_d_dot, p_lam, p_sigma, p_v, p_lr, p_steps, last, DIMS[j + 1], BLOCKS[j + 1], B_AT[j], RULE,
                    HYPER, LR_EACH,
                )  # fmt: skip
            weight_back(
                d_parts, d_dot_parts, x_in, x_dot, p_lam, p_sigma, p_v, p_lr, p_steps, last, j, DIMS[j + 1], DIMS[j],
                BLOCKS[j + 1], BLOCKS[j], W_AT[j], RULE, HYPER, LR_EACH, PRECISION,
            )  # fmt: skip
