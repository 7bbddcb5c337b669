"""Sweeps over a perceptron's layers with its activations in registers; `mlp_scratch.py` has the same ones for sizes
that do not fit.

What is used again in a later sweep gets a zero added that the compiler does not know: otherwise it keeps activations
as operands of the matrix instructions from sweep to sweep, and spills (1-40-40-1 on sm_90 with tf32x3 products: 600
bytes of stack).
"""

import triton
import triton.language as tl

from .activation import act_curvature, act_slope, act_value
from .inner import pulled, push, use_gradient
from .linear import bias, bias_block, dot, weight, weight_block


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
    tl.debug_barrier()  # or the loads come before the last layer's products (1-40-40-1, K = 1: 16 bytes of stack)
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


@triton.jit
def backward(
    d, zs, x, p_phi, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last, P: tl.constexpr,
    DEPTH: tl.constexpr, DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr,
    ACTS: tl.constexpr, ARGS: tl.constexpr, USE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of all layers from that of the outputs, d [BN, BO]; what becomes of them: `use_gradient`."""
    for j in tl.static_range(DEPTH - 1, -1, -1):
        d = d * slope(zs[j], j, ACTS, ARGS)
        if B_AT[j] >= 0:
            offsets, m_load, m_store = bias_block(DIMS[j + 1], BLOCKS[j + 1])
            b = tl.load(p_phi + B_AT[j] + offsets, mask=m_load, other=0.0)
            use_gradient(tl.sum(d, 0), b, B_AT[j], offsets, m_load, m_store, p_out, p_state, p_next, p_lam, p_lr,
                         p_steps, p_u, first, last, P, USE, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
        offsets, m_load, m_store = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
        if USE == "step":
            w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
        else:
            w = 0.0
        x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
        g = dot(tl.trans(d), x_in, PRECISION)
        use_gradient(g, w, W_AT[j], offsets, m_load, m_store, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first,
                     last, P, USE, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
        if j > 0:
            if USE != "step":
                w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
            d = dot(d, w, PRECISION)


@triton.jit
def forward_dot(
    x, zs, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, DEPTH: tl.constexpr, DIMS: tl.constexpr,
    BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr, ARGS: tl.constexpr,
    RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tangents along v of all pre-activations, and of the outputs."""
    zs_dot = ()
    x_dot = x
    for j in tl.static_range(DEPTH):
        x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
        offsets, mask, _ = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
        _, v, _ = pulled(W_AT[j], offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
        z_dot = dot(x_in, tl.trans(v), PRECISION)
        if j > 0:
            w = tl.load(p_phi + W_AT[j] + offsets, mask=mask, other=0.0)
            z_dot += dot(x_dot, tl.trans(w), PRECISION)
        if B_AT[j] >= 0:
            offsets, mask, _ = bias_block(DIMS[j + 1], BLOCKS[j + 1])
            _, v, _ = pulled(B_AT[j], offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            z_dot += v[None, :]
        zs_dot = zs_dot + (z_dot,)
        x_dot = slope(zs[j], j, ACTS, ARGS) * z_dot
    return zs_dot, x_dot


@triton.jit
def backward_dot(
    dy, dy_dot, x, zs, zs_dot, p_zero, p_phi, p_lam, p_sigma, p_v, p_lr, p_steps, last, DEPTH: tl.constexpr,
    DIMS: tl.constexpr, BLOCKS: tl.constexpr, W_AT: tl.constexpr, B_AT: tl.constexpr, ACTS: tl.constexpr,
    ARGS: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ and σ of all layers one step back, in place, from the outputs' cotangents dy and their tangents [BN, BO]."""
    for j in tl.static_range(DEPTH - 1, -1, -1):
        f1 = slope(zs[j], j, ACTS, ARGS)
        d = f1 * dy
        d_dot = f1 * dy_dot + curvature(zs[j], j, ACTS, ARGS) * zs_dot[j] * dy
        if B_AT[j] >= 0:
            offsets, m_load, m_store = bias_block(DIMS[j + 1], BLOCKS[j + 1])
            tl.debug_barrier()  # all have read λ of this bias, of which `forward_dot` made v, before it changes
            push(tl.sum(d_dot, 0), B_AT[j], offsets, m_load, m_store, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE,
                 HYPER, LR_EACH)  # fmt: skip
        offsets, m_load, m_store = weight_block(DIMS[j + 1], DIMS[j], BLOCKS[j + 1], BLOCKS[j])
        if j > 0:
            _, v, _ = pulled(W_AT[j], offsets, m_load, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
            dy_dot = dot(d, v, PRECISION)
            tl.debug_barrier()
            w = tl.load(p_phi + W_AT[j] + offsets, mask=m_load, other=0.0)
            dy = dot(d + tl.load(p_zero, volatile=True), w, PRECISION)
            dy_dot += dot(d_dot, w, PRECISION)
            tl.debug_barrier()
            zero = tl.load(p_zero, volatile=True)
            d, d_dot = d + zero, d_dot + zero
        x_in = act(zs[j - 1], j - 1, ACTS, ARGS) if j > 0 else x
        h = dot(tl.trans(d_dot), x_in, PRECISION)
        if j > 0:
            x_dot = slope(zs[j - 1] + tl.load(p_zero, volatile=True), j - 1, ACTS, ARGS) * zs_dot[j - 1]
            h += dot(tl.trans(d), x_dot, PRECISION)
        tl.debug_barrier()  # all have read λ before it changes
        push(h, W_AT[j], offsets, m_load, m_store, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
