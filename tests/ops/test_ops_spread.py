"""Variance, standard deviation and norm, at zero, too."""

from __future__ import annotations

import pytest
import torch
from op_harness import check_op, randn

from fastmeta.ops.spread import Spread

T, N = 3, 5


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [(0,), (2,), (2, 0), (0, 1, 2)], ids=str)
def test_spread(dims, keepdim):
    x = randn(T, N, 1, 7) + 0.5
    for correction in (0, 1, 2):
        options = {"correction": correction, "keepdim": keepdim}
        op = Spread(dims, keepdim, True, False, correction)
        check_op(op, lambda x, o=options: x.var(dims, **o), x)
    check_op(Spread(dims, keepdim, True, True, 1), lambda x: x.std(dims, keepdim=keepdim), x)
    norm = lambda x: torch.linalg.vector_norm(x, dim=dims, keepdim=keepdim)  # noqa: E731
    check_op(Spread(dims, keepdim, False, True), norm, x)


@pytest.mark.parametrize("name", ["norm", "std"])
def test_at_zero_the_gradient_is_pytorchs_and_no_sweep_gives_a_nan(name):
    op, plain = {
        "norm": (Spread((1,), False, False, True), lambda x: torch.linalg.vector_norm(x, dim=2)),
        "std": (Spread((1,), False, True, True, 1.0), lambda x: x.std(2)),
    }[name]
    x, dy, x_dot, dy_dot = randn(T, N, 4), randn(T, N), randn(T, N, 4), randn(T, N)
    x[:, :2] = 0
    leaf = x.clone().requires_grad_()
    y, saved = op.forward(x)
    (expected,) = torch.autograd.grad(plain(leaf), leaf, dy)
    torch.testing.assert_close(op.backward(saved, dy, (True,))[0], expected, rtol=1e-12, atol=1e-14)
    y_dot, saved_dot = op.forward_dot(saved, (x_dot,))
    (dx_dot,) = op.backward_dot(saved, saved_dot, dy, dy_dot, (True,))
    assert torch.equal(y_dot[:, :2], torch.zeros(T, 2))
    assert torch.equal(dx_dot[:, :2], torch.zeros(T, 2, 4))
    assert y[:, 2:].all()
