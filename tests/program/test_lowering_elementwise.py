"""Rules of elementary functions, choices and dtypes against PyTorch's own functions, in all four sweeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import randn
from rules import Composed, Sketch, check_rule

from fastmeta.program.lowering import NotKnown, activations, arithmetic, elementwise

T, N = 2, 5

UNARY = {
    "absolute": torch.abs,
    "atan": torch.atan,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "hardswish": F.hardswish,
    "log": torch.log,
    "log1p": torch.log1p,
    "logsigmoid": lambda x: -F.softplus(-x),
    "mish": lambda x: x * F.softplus(x).tanh(),
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "selu": F.selu,
    "sinh": torch.sinh,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "tan": torch.tan,
    "square": torch.square,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "glu": lambda x: x[:, :2] * x[:, 2:].sigmoid(),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_tensor(name):
    check_rule(getattr(elementwise, name), UNARY[name], randn(T, N, 4).abs() / 2 + 0.1)


def test_powers_and_bounds():
    x = randn(T, N)
    check_rule(lambda to, x: elementwise.power(to, x, 3), lambda x: x**3, x)
    check_rule(lambda to, x: elementwise.power(to, x, exponent=0.5), lambda x: x**0.5, x.exp())
    check_rule(lambda to, x: elementwise.clamp(to, x, 0.1), lambda x: x.clamp(0.1), x)
    check_rule(lambda to, x: elementwise.clamp(to, x, max=0.1), lambda x: x.clamp(max=0.1), x)
    check_rule(lambda to, x: elementwise.clamp(to, x, -0.5, 0.5), lambda x: x.clamp(-0.5, 0.5), x)
    check_rule(lambda to, x: elementwise.clamp_min(to, x, min=0.1), lambda x: x.clamp(0.1), x)
    check_rule(lambda to, x: elementwise.clamp_max(to, x, 0.1), lambda x: x.clamp(max=0.1), x)
    check_rule(lambda to, x: elementwise.hardtanh(to, x, 0, 0.3), lambda x: F.hardtanh(x, 0, 0.3), x)


@pytest.mark.parametrize(
    "x, weight", [((N, 3), (3,)), ((N, 3, 2), (3,)), ((N, 3), (1,)), ((N,), (1,)), ((), (1,))], ids=str
)
def test_prelu(x, weight):
    plain = lambda x, w: F.relu(x) - w.view(-1, *(1,) * (x.dim() - 2)).expand(x.shape) * F.relu(-x)  # noqa: E731
    plain = plain if len(x) > 1 else lambda x, w: F.relu(x) - w[0] * F.relu(-x)
    check_rule(activations.prelu, plain, randn(T, *x), randn(T, *weight))


def test_prelu_at_zero():
    x, w = torch.zeros(1, 3, requires_grad=True), torch.full((1,), 0.25, requires_grad=True)
    op = Composed(activations.prelu, x.detach()[None], w.detach()[None])
    _, saved = op.forward(x.detach()[None], w.detach()[None])
    got = op.backward(saved, torch.ones(1, 1, 3), (True, True))
    expected = torch.autograd.grad(F.prelu(x, w).sum(), (x, w))
    assert all(torch.equal(a[0], b) for a, b in zip(got, expected, strict=True))


def test_quotients():
    a, b = randn(T, N, 3), randn(T, 3).exp()
    check_rule(arithmetic.div, torch.div, a, b)
    check_rule(arithmetic.rdiv, lambda a, b: b / a, a.exp(), b)
    check_rule(lambda to, x: arithmetic.div(to, x, other=4), lambda x: x / 4, a)
    check_rule(lambda to, x: arithmetic.rdiv(to, x, 4), lambda x: 4 / x, b)
    with pytest.raises(NotKnown, match="rounded"):
        arithmetic.div(Sketch(), 1.0, 2.0, rounding_mode="floor")


def test_sums_of_products():
    three = randn(T, N), randn(T, 3, 1), randn(T, N).exp()
    check_rule(lambda to, *s: arithmetic.addcmul(to, *s, value=0.5), lambda *s: torch.addcmul(*s, value=0.5), *three)
    check_rule(lambda to, *s: arithmetic.addcdiv(to, *s, value=-2), lambda *s: torch.addcdiv(*s, value=-2), *three)
    check_rule(arithmetic.lerp, torch.lerp, *three)
    check_rule(lambda to, *s: arithmetic.lerp(to, *s, 0.3), lambda *s: torch.lerp(*s, 0.3), *three[:2])


def test_choices():
    condition, a, b = randn(T, N, 1) > 0, randn(T, N, 3), randn(T, 3)
    check_rule(elementwise.where, torch.where, condition, a, b)
    check_rule(lambda to, c, a: elementwise.where(to, c, a, 0), lambda c, a: torch.where(c, a, 0), condition, a)
    check_rule(elementwise.where_method, lambda a, c, b: a.where(c, b), a, condition, b)
    check_rule(
        lambda to, x, m: elementwise.masked_fill(to, x, m, -1e9), lambda x, m: x.masked_fill(m, -1e9), b, condition
    )
    check_rule(elementwise.masked_fill, lambda x, mask, v: torch.where(mask, v, x), a, condition, randn(T))
    check_rule(elementwise.maximum, torch.maximum, a, b)
    check_rule(elementwise.minimum, torch.minimum, a, b)


def test_dtypes():
    x = randn(T, N)
    check_rule(elementwise.as_double, lambda x: x * 1, x)
    for args, kwargs in (((torch.float32,), {}), (("cpu", torch.float32), {}), ((), {"dtype": torch.float32})):
        to = Sketch()
        y = elementwise.cast(to, to.slot(torch.zeros(3, dtype=torch.float64)), *args, **kwargs)
        assert y.like.dtype == torch.float32
    to = Sketch()
    half, single = to.slot(torch.zeros(3, dtype=torch.float16)), to.slot(torch.zeros(3))
    assert elementwise.type_as(to, half, single).like.dtype == torch.float32
    assert elementwise.cast(to, single, "cpu", non_blocking=True) is single
    assert elementwise.as_float(to, to.slot(torch.ones(3, dtype=torch.bool))).like.dtype == torch.float32


FLOATS, INTEGERS, BOOLS = torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
REFUSED = {
    "exp of something that is not a floating tensor": lambda to, f, i, b: elementwise.exp(to, i),
    "exponent is not a plain number": lambda to, f, i, b: elementwise.power(to, f, f),
    "bound that is not a plain number": lambda to, f, i, b: elementwise.clamp(to, f, f),
    "other than a tensor of bools": lambda to, f, i, b: elementwise.where(to, i, f, f),
    "between numbers or between several dtypes": lambda to, f, i, b: elementwise.where(to, b, f, i),
    "a choice between torch.int64 and 0.5": lambda to, f, i, b: elementwise.masked_fill(to, i, b, 0.5),
    "larger or smaller of two dtypes": lambda to, f, i, b: elementwise.maximum(to, f, i),
    "larger or smaller of torch.int64": lambda to, f, i, b: elementwise.maximum(to, i, i),
    "conversion from torch.float32 to torch.int64": lambda to, f, i, b: elementwise.cast(to, f, torch.int64),
    "a copy to cuda:0": lambda to, f, i, b: elementwise.cast(to, f, "cuda:0"),
    "arithmetic of torch.float32 with torch.int64": lambda to, f, i, b: arithmetic.div(to, f, i),
    "division by zero": lambda to, f, i, b: arithmetic.div(to, f, 0),
    "glu of": lambda to, f, i, b: elementwise.glu(to, f),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_calls_that_are_not_known(reason):
    to = Sketch()
    with pytest.raises(NotKnown, match=reason.replace(".", r"\.")):
        REFUSED[reason](to, *(to.slot(x) for x in (FLOATS, INTEGERS, BOOLS)))
