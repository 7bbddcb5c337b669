"""Softmax, matrix products and the attention that they make up."""

from __future__ import annotations

import pytest
import torch
from op_harness import check_op, randn

from fastmeta.ops.matmul import Matmul
from fastmeta.ops.softmax import LogSoftmax, LogSumExp, Softmax

T, N = 3, 5


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax(dim):
    check_op(Softmax(dim), lambda x: x.softmax(dim), randn(T, N, 1, 7))
    check_op(Softmax(dim, safe=True), lambda x: x.softmax(dim), randn(T, N, 1, 7))
    check_op(LogSoftmax(dim), lambda x: x.log_softmax(dim), randn(T, N, 1, 7))


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [(0,), (2,), (2, 0), (0, 1, 2)], ids=str)
def test_logsumexp(dims, keepdim):
    check_op(LogSumExp(dims, keepdim), lambda x: x.logsumexp(dims, keepdim), randn(T, N, 1, 7))


def test_softmax_of_a_masked_row():
    x = randn(T, N, 4)
    x[:, 0], x[:, 1, 1:] = -torch.inf, -torch.inf
    y, saved = Softmax(1, safe=True).forward(x)
    assert torch.equal(y[:, 0], torch.zeros(T, 4))
    assert torch.equal(y[:, 1], torch.eye(4)[:1].expand(T, 4).double())
    (dx,) = Softmax(1, safe=True).backward(saved, randn(T, N, 4), (True,))
    assert torch.equal(dx[:, :2], torch.zeros(T, 2, 4))
    assert Softmax(1).forward(x)[0][:, 0].isnan().all()


PRODUCTS = [
    ((N, 4), (4, 7)),
    ((2, N, 4), (2, 4, 7)),
    ((2, N, 4), (4, 7)),
    ((N, 4), (2, 4, 7)),
    ((2, 1, N, 4), (3, 4, 1)),
    ((2, 3, 1, 4), (2, 3, 4, N)),
    ((1, N, 4), (2, 4, 7)),
]


@pytest.mark.parametrize("x, w", PRODUCTS, ids=str)
def test_matmul(x, w):
    check_op(Matmul(), torch.matmul, randn(T, *x), randn(T, *w))
