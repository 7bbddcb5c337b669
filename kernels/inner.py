"""Inner optimisers inside kernels, on a block of one parameter: the step of `fastmeta/optim` and its vjp.

`RULE` is "sgd" with `HYPER` = (momentum, nesterov, weight_decay) or "adam" with (beta1, beta2, eps). The state of an
optimiser lies in up to two rows of P values `p_state`, `STRIDE` apart: the velocity, or the first and second moment.
`p_steps` points to (α, 1 − beta1^(k+1), 1 − beta2^(k+1), 0) of step k, where α is its learning rate; with `LR_EACH`
every parameter's value has its own, in a row of P at `p_lr`. The zero is one that the compiler does not know (see
`mlp_registers.py`). It lies beside α: behind pointers of their own the assembler cannot tell the two apart, and takes
44 bytes of stack (1-40-40-1, K = 1, sm_80).

A step is φ_{k+1} = φ_k − α_k u_k, value by value. With `DIRECTIONS` step k leaves u_k in the row `p_u`, and the step
back turns it into the gradient of the learning rates.
"""

import triton
import triton.language as tl


@triton.jit
def load_state(p_state, offsets, mask, none):
    """A row of the optimiser's state or of its adjoint; zero where there is `none` yet."""
    return tl.load(p_state + offsets, mask=tl.where(mask, none, 1) == 0, other=0.0)


@triton.jit
def learning_rate(p_lr, p_steps, offsets, mask, LR_EACH: tl.constexpr):
    """α of this step: one number, or one for each value of the block."""
    if LR_EACH:
        lr = tl.load(p_lr + offsets, mask=mask, other=0.0)
    else:
        lr = tl.load(p_steps)
    return lr


@triton.jit
def step(
    phi, g, p_old, p_new, p_u, p_steps, lr, offsets, m_load, m_store, first, STRIDE: tl.constexpr, RULE: tl.constexpr,
    HYPER: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """φ_{k+1} of a block; the state goes from `p_old` to `p_new`, and with DIRECTIONS u_k to `p_u`."""
    if RULE == "sgd":
        u = g
        if HYPER[2] != 0:
            u = g + HYPER[2] * phi
        if HYPER[0] > 0:
            b = u + HYPER[0] * load_state(p_old, offsets, m_load, first)
            tl.store(p_new + offsets, b, mask=m_store)
            u = u + HYPER[0] * b if HYPER[1] > 0 else b
    else:
        m = HYPER[0] * load_state(p_old, offsets, m_load, first) + (1.0 - HYPER[0]) * g
        v = HYPER[1] * load_state(p_old + STRIDE, offsets, m_load, first) + (1.0 - HYPER[1]) * g * g
        tl.store(p_new + offsets, m, mask=m_store)
        tl.store(p_new + STRIDE + offsets, v, mask=m_store)
        c1, c2 = tl.load(p_steps + 1), tl.load(p_steps + 2)
        u = (m / c1) / (tl.sqrt(v / c2) + HYPER[2])
    if DIRECTIONS:
        tl.store(p_u + offsets, u, mask=m_store)
    return phi - lr * u


@triton.jit
def rate_gradient(lam, p_u, offsets, m_load, m_store):
    """Turns a block of u_k, in place, into the gradient −λ_{k+1} u_k of its learning rates."""
    u = tl.load(p_u + offsets, mask=m_load, other=0.0)
    tl.store(p_u + offsets, -lam * u, mask=m_store)


@triton.jit
def pulled_sgd(lam, lr, p_sigma, offsets, mask, first, HYPER: tl.constexpr):
    """v of `fastmeta/optim`'s Pulled, whose factor is 1 here, and the new σ. Needs no gradient."""
    du = -lr * lam
    v = du
    sigma = du
    if HYPER[0] > 0:
        db = load_state(p_sigma, offsets, mask, first) + (HYPER[0] * du if HYPER[1] > 0 else du)
        v = db + du if HYPER[1] > 0 else db
        sigma = HYPER[0] * db
    return v, sigma


@triton.jit
def pulled_adam(
    lam, g, lr, p_sigma, p_state, p_steps, offsets, m_load, m_store, first, last, STRIDE: tl.constexpr,
    HYPER: tl.constexpr,
):  # fmt: skip
    """v of Pulled; the new σ is stored. Where all gradients were zero the root's derivative is taken as zero.

    `first`: the first inner step, before which there is no state; `last`: the last one, after which there is no σ.
    """
    m = HYPER[0] * load_state(p_state, offsets, m_load, first) + (1.0 - HYPER[0]) * g
    v = HYPER[1] * load_state(p_state + STRIDE, offsets, m_load, first) + (1.0 - HYPER[1]) * g * g
    c1, c2 = tl.load(p_steps + 1), tl.load(p_steps + 2)
    root = tl.sqrt(v / c2)
    denominator = root + HYPER[2]
    dm_hat = -lr * lam / denominator
    d_root = -dm_hat * (m / c1) / denominator
    safe = tl.where(root > 0.0, root, 1.0)
    dm = load_state(p_sigma, offsets, m_load, last) + dm_hat / c1
    dv = load_state(p_sigma + STRIDE, offsets, m_load, last)
    dv += tl.where(root > 0.0, d_root / (2.0 * c2 * safe), 0.0)
    tl.store(p_sigma + offsets, HYPER[0] * dm, mask=m_store)
    tl.store(p_sigma + STRIDE + offsets, HYPER[1] * dv, mask=m_store)
    return (1.0 - HYPER[0]) * dm + 2.0 * (1.0 - HYPER[1]) * g * dv


@triton.jit
def use_gradient(
    g, phi, at, offsets, m_load, m_store, p_out, p_state, p_next, p_lam, p_lr, p_steps, p_u, first, last,
    P: tl.constexpr, USE: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """What becomes of a block of gradient g, `at` its place in a row; `p_out` takes it.

    "store": g itself; "step": φ_{k+1}, the state going from `p_state` to `p_next`; "pull": Adam's v, σ in `p_next`.
    """
    out = g
    if USE != "store":
        lr = learning_rate(p_lr + at, p_steps, offsets, m_load, LR_EACH)
        if USE == "step":
            out = step(phi, g, p_state + at, p_next + at, p_u + at, p_steps, lr, offsets, m_load, m_store, first, P,
                       RULE, HYPER, DIRECTIONS)  # fmt: skip
        else:
            lam = tl.load(p_lam + at + offsets, mask=m_load, other=0.0)
            out = pulled_adam(lam, g, lr, p_next + at, p_state + at, p_steps, offsets, m_load, m_store, first, last, P,
                              HYPER)  # fmt: skip
    tl.store(p_out + at + offsets, out, mask=m_store)


@triton.jit
def pulled(
    at, offsets, mask, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE: tl.constexpr, HYPER: tl.constexpr,
    LR_EACH: tl.constexpr,
):  # fmt: skip
    """λ, v (what the Hessian is multiplied by) and the new σ of a block. Adam's v was stored, as it needs gradients."""
    lr = learning_rate(p_lr + at, p_steps, offsets, mask, LR_EACH)
    lam = tl.load(p_lam + at + offsets, mask=mask, other=0.0)
    if RULE == "sgd":
        v, sigma = pulled_sgd(lam, lr, p_sigma + at, offsets, mask, last, HYPER)
    else:
        v = tl.load(p_v + at + offsets, mask=mask, other=0.0)
        sigma = v
    return lam, v, sigma


@triton.jit
def pushed(lam, v, sigma, h, at, offsets, m_store, p_lam, p_sigma, RULE: tl.constexpr, HYPER: tl.constexpr):
    """λ_k = direct + h of a block, h = H v, and, of an optimiser with momentum, σ_k, from what `pulled` found there."""
    if RULE == "sgd":
        if HYPER[2] != 0:
            lam = lam + HYPER[2] * v
        if HYPER[0] > 0:
            tl.store(p_sigma + at + offsets, sigma, mask=m_store)
    tl.store(p_lam + at + offsets, lam + h, mask=m_store)


@triton.jit
def push(
    h, at, offsets, m_load, m_store, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE: tl.constexpr,
    HYPER: tl.constexpr, LR_EACH: tl.constexpr,
):  # fmt: skip
    """`pulled` and `pushed`; both λ and σ in place."""
    lam, v, sigma = pulled(at, offsets, m_load, p_lam, p_sigma, p_v, p_lr, p_steps, last, RULE, HYPER, LR_EACH)
    pushed(lam, v, sigma, h, at, offsets, m_store, p_lam, p_sigma, RULE, HYPER)
