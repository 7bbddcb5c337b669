"""Dtypes of values, tangents and cotangents around a cast."""

from __future__ import annotations

import pytest
import torch

from fastmeta.ops.cast import Cast


@pytest.mark.parametrize("old", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("new", [torch.float32, torch.float64, torch.float16])
def test_between_floating_types(old, new):
    x = torch.randn(3, 5).to(old).requires_grad_()
    y, saved = Cast(new).forward(x)
    dy = torch.randn(3, 5).to(new)
    (expected,) = torch.autograd.grad(x.to(new), x, dy)
    (dx,) = Cast(new).backward(saved, dy, (True,))
    y_dot, saved_dot = Cast(new).forward_dot(saved, (x,))
    (dx_dot,) = Cast(new).backward_dot(saved, saved_dot, dy, dy, (True,))
    assert torch.equal(dx, expected)
    assert torch.equal(dx_dot, expected)
    assert torch.equal(y_dot, x.to(new))
    assert (y.dtype, y_dot.dtype, dx.dtype, dx_dot.dtype) == (new, new, old, old)


def test_of_a_mask():
    y, _ = Cast(torch.float32).forward(torch.tensor([[True, False]]))
    assert torch.equal(y, torch.tensor([[1.0, 0.0]]))
