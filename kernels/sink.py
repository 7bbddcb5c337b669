"""What becomes of a parameter's gradient, in the kernel that makes it: it is kept, stepped along, or added to λ.

`SINK` says what is written to the row `p_to`, value by value, from the gradient g:

    "store"  g itself
    "step"   φ_{k+1}, from φ_k at `p_phi` and the optimiser's states `p_state` → `p_next`
    "pull"   Adam's v (`inner.py`), from λ at `p_with`, the states at `p_state` and σ at `p_next`, which is replaced
    "add"    λ_k = λ + ω v + g in place, where g is H v and v lies at `p_with`

So no gradient of a task is ever stored that only an optimiser wants. Pointers are the parameter's, in the task's row.
With `DIRECTIONS` "step" leaves u_k at `p_u` (`inner.py`), and "add" turns it into the gradient of the learning rates.
"""

import triton
import triton.language as tl

from .inner import learning_rate, pulled_sgd, rate_gradient, use_gradient


@triton.jit
def deliver(
    g, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, offsets, m_load, m_store, first, last, P: tl.constexpr,
    SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """Takes a block of gradients to where they belong. `first`, `last`: 1 in the first and the last inner step."""
    if SINK == "add":
        lam = tl.load(p_to + offsets, mask=m_load, other=0.0)
        if DIRECTIONS:
            rate_gradient(lam, p_u, offsets, m_load, m_store)
        lam += g
        if RULE == "sgd" and HYPER[2] > 0:
            lam += HYPER[2] * tl.load(p_with + offsets, mask=m_load, other=0.0)
        tl.store(p_to + offsets, lam, mask=m_store)
    else:
        phi = g
        if SINK == "step":
            phi = tl.load(p_phi + offsets, mask=m_load, other=0.0)
        use_gradient(g, phi, 0, offsets, m_load, m_store, p_to, p_state, p_next, p_with, p_lr, p_steps, p_u, first,
                     last, P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip


@triton.jit(do_not_specialize=["last"])
def pull_kernel(
    p_lam, p_sigma, p_v, p_lr, p_steps, last, P: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
    HYPER: tl.constexpr, LR_EACH: tl.constexpr,
):  # fmt: skip
    """SGD's v of every task from λ and σ, which is replaced; it asks for no gradient, so it comes before the sweeps."""
    TILES: tl.constexpr = (P + BLOCK - 1) // BLOCK
    i_task = (tl.program_id(0) // TILES).to(tl.int64)
    offsets = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < P
    lam = tl.load(p_lam + i_task * P + offsets, mask=mask, other=0.0)
    lr = learning_rate(p_lr, p_steps, offsets, mask, LR_EACH)
    p_sigma += i_task * STATES * P
    v, sigma = pulled_sgd(lam, lr, p_sigma, offsets, mask, last, HYPER)
    tl.store(p_v + i_task * P + offsets, v, mask=mask)
    if HYPER[0] > 0:
        tl.store(p_sigma + offsets, sigma, mask=mask)
