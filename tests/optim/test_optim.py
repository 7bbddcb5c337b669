"""Inner optimisers: steps as torch.optim takes them, vector-Jacobian products as torch.func has them."""

from __future__ import annotations

import pytest
import torch
from torch.func import vjp

from fastmeta.optim.adam import Adam
from fastmeta.optim.sgd import SGD

T, P, STEPS = 3, 7, 4
RATE = (torch.tensor([0.1], dtype=torch.float64),)  # what `meta` hands a step
CASES = {
    "sgd": (SGD(lr=0.1), torch.optim.SGD, {"lr": 0.1}),
    "weight decay": (SGD(lr=0.1, weight_decay=0.3), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (SGD(lr=0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    ),
    "adam": (Adam(lr=0.1), torch.optim.Adam, {"lr": 0.1}),
    "adam, other rates": (
        Adam(lr=0.1, betas=(0.0, 0.5), eps=0.1),
        torch.optim.Adam,
        {"lr": 0.1, "betas": (0.0, 0.5), "eps": 0.1},
    ),
}


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_torch_optim(name):
    ours, make, options = CASES[name]
    phi = randn(T, P)
    theirs = torch.nn.Parameter(phi.clone())
    optimizer, state = make([theirs], **options), ours.init(phi)
    for k in range(STEPS):
        g = randn(T, P)
        before = phi.clone(), g.clone(), tuple(s.clone() for s in state)
        theirs.grad = g.clone()
        optimizer.step()
        new, new_state = ours.step(phi, g, state, k, RATE)
        assert torch.equal(phi, before[0])
        assert torch.equal(g, before[1])
        assert all(torch.equal(a, b) for a, b in zip(state, before[2], strict=True))
        phi, state = new, new_state
        torch.testing.assert_close(phi, theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("name", CASES)
def test_vjp(name, k):
    ours, _, _ = CASES[name]
    phi, g, lam = (randn(T, P) for _ in range(3))
    state = tuple(s + torch.rand(T, P, dtype=torch.float64) for s in ours.init(phi))
    sigma = tuple(map(torch.randn_like, state))

    def step(phi, g, *state):
        new, new_state = ours.step(phi, g, state, k, RATE)
        return new, *new_state

    expected = vjp(step, phi, g, *state)[1]((lam, *sigma))
    d_phi, v, factor, d_state, *_ = ours.vjp(phi, g if ours.reads_gradient else None, state, k, RATE, lam, sigma)
    for got, want in zip((d_phi, factor * v, *d_state), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_step_and_vjp_take_theta_shared_by_all_tasks(name):
    ours, _, _ = CASES[name]
    shared, g, lam = randn(1, P).expand(T, P), randn(T, P), randn(T, P)
    dense = shared.contiguous()
    results = []
    for phi in (shared, dense):
        state = ours.init(phi)
        new, new_state = ours.step(phi, g, state, 0, RATE)
        d_phi, v, factor, d_state, *_ = ours.vjp(phi, g, state, 0, RATE, lam, ours.init(lam))
        results.append((new, *new_state, d_phi, factor * v, *d_state))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_at_gradients_of_exactly_zero_is_finite(dtype):
    ours = Adam(lr=0.1)
    phi, g = torch.randn(T, P, dtype=dtype), torch.randn(T, P, dtype=dtype)
    g[:, ::2] = 0.0
    g[0, 1] = 1e-30  # its square is zero in float32
    state, lam = ours.init(phi), torch.ones_like(phi)
    new, new_state = ours.step(phi, g, state, 0, (RATE[0].to(dtype),))
    assert torch.equal(new[:, ::2], phi[:, ::2])
    pulled = ours.vjp(phi, g, state, 0, (RATE[0].to(dtype),), lam, tuple(map(torch.ones_like, state)))
    assert all(x.isfinite().all() for x in (new, *new_state, pulled.direct, pulled.v, *pulled.state))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SGD(lr=-0.1), r"SGD\.lr .* got -0\.1"),
        (lambda: SGD(lr=float("nan")), r"SGD\.lr .* got nan"),
        (lambda: SGD(lr="0.1"), r"SGD\.lr must be a number"),
        (lambda: SGD(lr=0.1, momentum=float("inf")), r"SGD\.momentum"),
        (lambda: SGD(lr=0.1, weight_decay=-1.0), r"SGD\.weight_decay"),
        (lambda: SGD(lr=0.1, nesterov=True), r"SGD\.nesterov=True needs momentum"),
        (lambda: Adam(lr=float("inf")), r"Adam\.lr"),
        (lambda: Adam(lr=0.1, betas=(0.9,)), r"Adam\.betas must be a pair"),
        (lambda: Adam(lr=0.1, betas=0.9), r"Adam\.betas must be a pair"),
        (lambda: Adam(lr=0.1, betas=(0.9, 1.0)), r"Adam\.betas\[1\] must be a number in \[0, 1\)"),
        (lambda: Adam(lr=0.1, betas=(-0.1, 0.9)), r"Adam\.betas\[0\]"),
        (lambda: Adam(lr=0.1, eps=0.0), r"Adam\.eps must be positive"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
