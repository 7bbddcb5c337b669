"""Rules of losses inside of a larger one against PyTorch's own functions, in all four sweeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import randn
from rules import Sketch, check_rule

from fastmeta.program.lowering import NotKnown, residuals

T, N = 2, 5


def huber(x, y, delta=1.0, **options):
    """PyTorch's own has no derivative in forward mode."""
    d = (x - y).abs()
    each = torch.where(d < delta, d * d / 2, delta * (d - delta / 2))
    return {"none": lambda e: e, "sum": torch.sum, "mean": torch.mean}[options.get("reduction", "mean")](each)


def soft_margin(x, y, reduction):
    """vmap has no rule for PyTorch's own."""
    each = F.softplus(-x * y)
    return each if reduction == "none" else getattr(each, reduction)()


LOSSES = {
    "mse_loss": (F.mse_loss, {}),
    "l1_loss": (F.l1_loss, {}),
    "huber_loss": (huber, {"delta": 0.7}),
    "smooth_l1_loss": (F.smooth_l1_loss, {"beta": 0.7}),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, {}),
    "soft_margin_loss": (soft_margin, {}),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, reduction):
    plain, options = LOSSES[name]
    rule, options = getattr(residuals, name), options | {"reduction": reduction}
    x, y = randn(T, N, 3), randn(T, N, 3)
    check_rule(lambda to, x, y: rule(to, x, y, **options), lambda x, y: plain(x, y, **options), x, y)


def test_a_beta_of_zero():
    rule = lambda to, x, y: residuals.smooth_l1_loss(to, x, y, beta=0.0)  # noqa: E731
    check_rule(rule, F.l1_loss, randn(T, N), randn(T, N))


@pytest.mark.parametrize("positions", [(), (2,)], ids=str)
def test_cross_entropy(positions):
    x, y = randn(T, N, 3, *positions), torch.randint(0, 3, (T, N, *positions))
    for options in ({}, {"label_smoothing": 0.1, "ignore_index": 1}):
        y[:, 0] = 0  # one at least that is not ignored
        rule = lambda to, x, y, o=options: residuals.cross_entropy(to, x, y, **o)  # noqa: E731
        check_rule(rule, lambda x, y, o=options: F.cross_entropy(x, y, **o), x, y)


@pytest.mark.parametrize("name", ["huber_loss", "smooth_l1_loss", "l1_loss"])
def test_at_kinks_as_pytorchs_double_backward(name):
    to, function = Sketch(), getattr(F, name)
    x = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    slots = [to.slot(v) for v in (x[0], x[0])]
    getattr(residuals, name)(to, *slots, reduction="none")
    op = to.nodes[1][0]
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf, 0 * x, reduction="none").sum(), leaf, create_graph=True)
    assert torch.equal(op.times_slope(x, torch.ones_like(x)), slope.detach())
    assert op.curved == (name != "l1_loss")
    if op.curved:
        (curvature,) = torch.autograd.grad(slope.sum(), leaf)
        assert torch.equal(op.times_curvature(x, torch.ones_like(x)), curvature)


REFUSED = {
    "weights": lambda to, x, y, i: residuals.mse_loss(to, x, x, weight=x),
    "former names": lambda to, x, y, i: residuals.mse_loss(to, x, x, size_average=True),
    "or summed": lambda to, x, y, i: residuals.cross_entropy(to, x, i, reduction="sum"),
    "of an unbatched value": lambda to, x, y, i: residuals.cross_entropy(to, x, i),
    "[3] against [1]": lambda to, x, y, i: residuals.l1_loss(to, x, y),
    "torch.float32 against torch.int64": lambda to, x, y, i: residuals.binary_cross_entropy_with_logits(to, x, i),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_calls_that_are_not_known(reason):
    to = Sketch()
    with pytest.raises(NotKnown) as caught:
        REFUSED[reason](to, *(to.slot(x) for x in (torch.zeros(3), torch.zeros(1), torch.zeros(3).long())))
    assert reason in str(caught.value)
