"""Choices between values: where, maximum, minimum."""

from __future__ import annotations

import pytest
import torch
from op_harness import check_op, randn

from fastmeta.ops.where import Extremum, Where

T, N = 3, 5
SHAPES = [
    ((N, 7), (N, 7), (N, 7)),
    ((N, 1), (7,), (N, 7)),
    ((7,), (N, 7), ()),
    ((2, N, 7), (7,), (1, 7)),
    ((), (N, 7), (7,)),
]


@pytest.mark.parametrize("condition, a, b", SHAPES, ids=str)
def test_where(condition, a, b):
    chosen = randn(T, *condition) > 0
    check_op(Where(), torch.where, chosen, randn(T, *a), randn(T, *b))
    check_op(Where(a=-2.0), lambda c, b: torch.where(c, -2.0, b), chosen, randn(T, *b))
    check_op(Where(b=-2.0), lambda c, a: torch.where(c, a, -2.0), chosen, randn(T, *a))


def test_where_of_two_numbers():
    chosen = randn(T, N) > 0
    y, _ = Where(1.0, -torch.inf, torch.float64).forward(chosen)
    assert torch.equal(y, torch.where(chosen, 1.0, -torch.inf).double())


@pytest.mark.parametrize("_, a, b", SHAPES, ids=str)
def test_maximum_and_minimum(_, a, b):
    check_op(Extremum(True), torch.maximum, randn(T, *a), randn(T, *b))
    check_op(Extremum(False), torch.minimum, randn(T, *a), randn(T, *b))


@pytest.mark.parametrize("f", [torch.maximum, torch.minimum])
def test_equal_values_share_the_gradient(f):
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0]])
    _, saved = Extremum(f is torch.maximum).forward(a, b)
    dy = randn(1, 3).float()
    a.requires_grad_(), b.requires_grad_()
    expected = torch.autograd.grad(f(a, b), (a, b), dy)
    for got, want in zip(Extremum(f is torch.maximum).backward(saved, dy, (True, True)), expected, strict=True):
        assert torch.equal(got, want)
