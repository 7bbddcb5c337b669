"""Arithmetic with broadcasting inside a task, and ops that move elements."""

from __future__ import annotations

import pytest
import torch
from op_harness import check_op, randn

from fastmeta.ops.arithmetic import Add, Mul, Scale, Shift
from fastmeta.ops.divide import Div
from fastmeta.ops.shape import Concatenate, Permute, Reduce, Reshape, Select

T, N = 3, 5
BROADCASTS = [
    ((N, 7), (N, 7)),
    ((N, 7), (7,)),
    ((1, 7), (N, 1)),
    ((4,), (N, 3, 4)),
    ((N, 7), ()),
    ((), (2, 7)),
    ((1,), (1, 1)),
]


@pytest.mark.parametrize("a, b", BROADCASTS, ids=str)
def test_add(a, b):
    check_op(Add(), torch.add, randn(T, *a), randn(T, *b))
    check_op(Add(-0.7), lambda a, b: a - 0.7 * b, randn(T, *a), randn(T, *b))


@pytest.mark.parametrize("a, b", BROADCASTS, ids=str)
def test_mul(a, b):
    check_op(Mul(), torch.mul, randn(T, *a), randn(T, *b))


@pytest.mark.parametrize("a, b", BROADCASTS, ids=str)
def test_div(a, b):
    check_op(Div(), torch.div, randn(T, *a), randn(T, *b) + 3 * torch.randint(0, 2, (T, *b)) - 1.5)


def test_mul_of_a_value_with_itself():
    x, dy, x_dot, dy_dot = (randn(T, N, 7) for _ in range(4))
    op, needs = Mul(), (True, True)
    _, saved = op.forward(x, x)
    _, saved_dot = op.forward_dot(saved, (x_dot, x_dot))
    torch.testing.assert_close(sum(op.backward(saved, dy, needs)), 2 * x * dy)
    both = op.backward_dot(saved, saved_dot, dy, dy_dot, needs)
    torch.testing.assert_close(sum(both), 2 * (x * dy_dot + x_dot * dy))


def test_scale_and_shift():
    check_op(Scale(-2.5), lambda x: -2.5 * x, randn(T, N, 7))
    check_op(Shift(0.5), lambda x: x + 0.5, randn(T, N, 7))


@pytest.mark.parametrize("shape", [(N * 6,), (6, N), (N, 1, 6), (N, 2, 3)], ids=str)
def test_reshape(shape):
    check_op(Reshape(shape), lambda x: x.reshape(shape), randn(T, N, 6))


@pytest.mark.parametrize("dims", [(1, 0, 2), (2, 0, 1), (0, 1, 2)], ids=str)
def test_permute(dims):
    check_op(Permute(dims), lambda x: x.permute(dims), randn(T, N, 4, 7))


@pytest.mark.parametrize(
    "index",
    [(0,), (-1,), (slice(1, 4),), (slice(None), slice(None, None, 2)), (..., 2), (None, 1), (slice(4, None),)],
    ids=str,
)
def test_select(index):
    check_op(Select(index), lambda x: x[index], randn(T, N, 7))


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [(0,), (2,), (0, 2), (2, 1), (0, 1, 2)], ids=str)
def test_reduce(dims, keepdim, mean):
    def plain(x):
        return x.mean(dims, keepdim) if mean else x.sum(dims, keepdim)

    check_op(Reduce(dims, keepdim, mean), plain, randn(T, N, 4, 7))


@pytest.mark.parametrize("dim", [0, 1])
def test_concatenate(dim):
    shapes = [(N, 7), (2, 7), (1, 7)] if dim == 0 else [(N, 7), (N, 1), (N, 2)]
    check_op(Concatenate(dim), lambda *xs: torch.cat(xs, dim), *(randn(T, *shape) for shape in shapes))


@pytest.mark.usefixtures("poison")
def test_shapes_read_no_fresh_memory():
    test_select((slice(1, 4),))
    test_concatenate(1)
