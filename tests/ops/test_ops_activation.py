"""Activations: value, slope and curvature against autograd, PyTorch's conventions at the kinks, and the sweeps."""

from __future__ import annotations

import pytest
import torch
from activations import CASES, ON_AN_INTERVAL
from op_harness import check_op, randn
from torch.func import jvp, vjp, vmap

from fastmeta.ops.activation import KINDS, Activation


def derivatives(f, x):
    """f', and f'' as the tangent of what backward gives."""

    def slope(v):
        return vjp(f, v)[1](torch.ones_like(v))[0]

    return jvp(slope, (x,), (torch.ones_like(x),))


def test_every_kind_is_tested():
    assert {op.kind for op, *_ in (*CASES.values(), *ON_AN_INTERVAL.values())} == set(KINDS)


@pytest.mark.parametrize("name", CASES)
def test_value_slope_and_curvature(name):
    op, f = CASES[name]
    x = torch.linspace(-9.0, 9.0, 1802, dtype=torch.float64)  # an even number: zero itself is not among them
    slope, curvature = derivatives(f, x)
    ones = torch.ones_like(x)
    torch.testing.assert_close(op.value(x), f(x), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(op.times_slope(x, ones), slope, rtol=1e-10, atol=1e-13)
    bend = op.times_curvature(x, ones)
    torch.testing.assert_close(torch.zeros_like(x) if bend is None else bend, curvature, rtol=1e-10, atol=1e-13)
    assert op.curved == (bend is not None)


@pytest.mark.parametrize("name", CASES)
def test_at_zero_as_pytorch(name):
    op, f = CASES[name]
    x = torch.tensor([0.0, -0.0], dtype=torch.float64)
    slope, curvature = derivatives(f, x)
    bend = op.times_curvature(x, torch.ones_like(x))
    assert torch.equal(op.times_slope(x, torch.ones_like(x)), slope)
    torch.testing.assert_close(torch.zeros_like(x) if bend is None else bend, curvature, rtol=1e-12, atol=0)


def test_relu_has_slope_zero_at_zero():
    op = Activation("relu")
    assert op.times_slope(torch.zeros(3), torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", CASES)
def test_sweeps(name):
    op, f = CASES[name]
    x = randn(3, 5, 7)
    x = x + 0.01 * x.sign()  # away from the kinks
    check_op(op, f, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_dtype_is_kept(name, dtype):
    op, _ = CASES[name]
    x = torch.randn(3, 5, dtype=dtype)
    y, saved = op.forward(x)
    (dx,) = op.backward(saved, y, (True,))
    y_dot, saved_dot = op.forward_dot(saved, (x,))
    (dx_dot,) = op.backward_dot(saved, saved_dot, y, y, (True,))
    assert {v.dtype for v in (y, dx, y_dot, dx_dot)} == {dtype}


@pytest.mark.parametrize("name", CASES)
def test_monotone_activations_never_fall(name):
    op, f = CASES[name]
    rising = bool((f(torch.linspace(-9.0, 9.0, 1801, dtype=torch.float64)).diff() >= 0).all())
    assert op.monotone == rising


@pytest.mark.parametrize("name", CASES)
def test_extreme_inputs_stay_finite(name):
    op, f = CASES[name]
    x = torch.tensor([-1e4, -100.0, 100.0, 1e4])
    ones = torch.ones_like(x)
    bend = op.times_curvature(x, ones)
    slope, curvature = vmap(lambda v: torch.stack(derivatives(f, v)))(x.double()).unbind(1)
    torch.testing.assert_close(op.times_slope(x, ones).double(), slope, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((x * 0 if bend is None else bend).double(), curvature, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ON_AN_INTERVAL)
def test_value_slope_curvature_and_sweeps_on_an_interval(name):
    op, f, (low, high) = ON_AN_INTERVAL[name]
    x = torch.linspace(low, high, 401, dtype=torch.float64)
    slope, curvature = derivatives(f, x)
    ones = torch.ones_like(x)
    torch.testing.assert_close(op.value(x), f(x), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(op.times_slope(x, ones), slope, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(op.times_curvature(x, ones), curvature, rtol=1e-10, atol=1e-13)
    assert not op.monotone or bool((f(x).diff() >= 0).all())
    check_op(op, f, low + (high - low) * torch.rand(3, 5, 7, dtype=torch.float64))


AT_KINKS = {
    "hardtanh": [-0.5, 2.0],
    "relu6": [0.0, 6.0],
    "clamp": [-0.5, 2.0],
    "clamp from below": [0.0, torch.inf],
    "hardswish": [-3.0, 3.0],
    "softsign": [0.0],
    "abs": [0.0],
    "cube": [0.0],
    "power 0": [0.0],
    "sqrt": [0.0],
    "rsqrt": [0.0],
    "reciprocal": [0.0],
    "log": [0.0],
    "power 1.5": [0.0],
    "power 0.5": [0.0],
    "power -1": [0.0],
}


@pytest.mark.parametrize("name", AT_KINKS)
def test_at_kinks_as_pytorchs_double_backward(name):
    op, f, *_ = (CASES | ON_AN_INTERVAL)[name]
    x = torch.tensor(AT_KINKS[name], dtype=torch.float64, requires_grad=True)
    ones = torch.ones_like(x)
    (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    curvature = None
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
    curvature = torch.zeros_like(x) if curvature is None else curvature
    bend = op.times_curvature(x.detach(), ones)
    assert torch.equal(op.times_slope(x.detach(), ones), slope.detach())
    assert torch.equal(torch.zeros_like(x) if bend is None else bend, curvature)
