"""Ridge regression as a head: its two forms, its numbers, and what it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from closed_form import grads_of, labelled
from golden_algorithms import deviation as relative
from meta_steps import mlp

import fastmeta
from fastmeta.algorithms.ridge import solved


def learner_of(model):
    return fastmeta.R2D2(model, lam=0.7, scale=2.0, bias=0.1, learn_lam=True, ways=3)


def step(learner, batch):
    """A meta-step's results and all gradients."""
    learner.zero_grad()
    out = learner(*batch)
    out.loss.backward()
    return out, grads_of(learner)


@pytest.mark.parametrize("samples, width", [(4, 7), (7, 4), (5, 5)])
def test_both_forms_of_the_ridge_system(samples, width):
    x, y = torch.randn(samples, width, dtype=torch.float64), torch.randn(samples, 3, dtype=torch.float64)
    eye = torch.eye(width, dtype=torch.float64)
    want = torch.linalg.solve(x.T @ x + 0.3 * eye, x.T @ y)
    torch.testing.assert_close(solved(x, y, 0.3), want)


def test_numbers_as_powers_of_a_base():
    """The authors' other parametrisation: λ = b ** lam, a = b ** scale, b ** bias − 1."""
    model, batch = mlp(2, 8, 4), labelled(2)
    plain = fastmeta.R2D2(model, lam=100.0, scale=2.0, bias=1.0, ways=3)
    powers = fastmeta.R2D2(model, lam=2.0, lam_base=10.0, scale=1.0, bias=1.0, adjust_base=2.0, ways=3, learn_lam=True)
    torch.testing.assert_close(powers(*batch).outputs, plain(*batch).outputs)
    step(powers, batch)
    slope = powers.learned.lam.grad.clone()
    eps, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            powers.learned.lam.fill_(2.0 + sign * eps)
        values.append(powers(*batch).loss.item())
    assert abs((values[0] - values[1]) / (2 * eps) - slope.item()) < 1e-8


def test_what_a_head_learns_is_a_module_of_its_own():
    model, batch = mlp(2, 8, 4), labelled(2)
    learner = learner_of(model)
    assert {n for n, _ in learner.learned.named_parameters()} == {"lam", "scale", "bias"}
    assert learner.learned.lam.dtype == torch.float64
    optimizer = torch.optim.SGD(
        [{"params": model.parameters()}, {"params": learner.learned.parameters(), "lr": 1.0}], 0.1
    )
    _, grads = step(learner, batch)
    assert (grads["learned.bias"].abs() < 1e-15).all()  # exactly zero under cross-entropy, but for roundings
    optimizer.step()
    twin = learner_of(mlp(2, 8, 4))
    twin.load_state_dict(learner.state_dict())
    torch.testing.assert_close(twin(*batch).loss, learner(*batch).loss)
    copied = copy.deepcopy(learner)
    assert copied.head is copied.learned is not learner.learned
    assert copied.network.encoder is copied.module is not model
    _, got = step(copied, batch)
    assert relative(got, step(learner, batch)[1]) < 1e-14
    assert fastmeta.ProtoNet(model).learned is None
    fixed = fastmeta.R2D2(model, learn_scale=False, learn_bias=False)
    assert fixed.learned is None
    assert not list(fixed.head.parameters())
