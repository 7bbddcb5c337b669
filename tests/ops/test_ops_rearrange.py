"""Linear maps that rearrange elements, and selection by indices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import check_op, randn

from fastmeta.ops.index import Gather, Index
from fastmeta.ops.rearrange import CumulativeSum, Expand, Flip, Pad, Repeat, Roll, Triangle

T, N = 3, 5


@pytest.mark.parametrize("x, shape", [((1, 7), (N, 7)), ((7,), (2, N, 7)), ((), (2,)), ((N, 1), (N, 4))], ids=str)
def test_expand(x, shape):
    check_op(Expand(shape), lambda x: x.expand(shape), randn(T, *x))


@pytest.mark.parametrize("x, times", [((N,), (2,)), ((N, 2), (3, 1)), ((N,), (2, 3)), ((), (4,))], ids=str)
def test_repeat(x, times):
    check_op(Repeat(times), lambda x: x.repeat(times), randn(T, *x))


def test_flip_and_roll():
    check_op(Flip((0, 2)), lambda x: x.flip(0, 2), randn(T, N, 2, 7))
    check_op(Roll((2, -1), (0, 2)), lambda x: x.roll((2, -1), (0, 2)), randn(T, N, 2, 7))


@pytest.mark.parametrize("diagonal", [-2, 0, 1])
def test_triangles(diagonal):
    check_op(Triangle(True, diagonal), lambda x: x.triu(diagonal), randn(T, 2, N, 4))
    check_op(Triangle(False, diagonal), lambda x: x.tril(diagonal), randn(T, N, 4))


@pytest.mark.parametrize("dim", [0, 1])
def test_cumulative_sum(dim):
    check_op(CumulativeSum(dim), lambda x: x.cumsum(dim), randn(T, N, 4))


@pytest.mark.parametrize("widths", [(1, 2), (0, 1, 2, 0), (-1, 2), (3, -2, -1, -1)], ids=str)
def test_pad(widths):
    check_op(Pad(widths), lambda x: F.pad(x, widths), randn(T, N, 4))


def integers(below, *shape):
    return torch.randint(-below, below, (T, *shape))


INDICES = {
    "rows": ((0,), 0, lambda x, i: x[i], (6, (4,))),
    "columns": ((1,), 1, lambda x, i: x[:, i], (N, (4,))),
    "a table of rows": ((0,), 0, lambda x, i: x[i], (6, (2, 3))),
    "one": ((1,), 1, lambda x, i: x[:, i], (N, ())),
    "pairs": ((0, 1), 0, lambda x, i, j: x[i, j], (6, (4,)), (N, (4,))),
    "pairs of the last": ((1, 2), 1, lambda x, i, j: x[:, i, j], (N, (4, 1)), (2, (3,))),
    "pairs apart": ((0, 2), 0, lambda x, i, j: x[i, :, j], (6, (3,)), (2, (3,))),
    "triples": ((0, 1, 2), 0, lambda x, i, j, k: x[i, j, k], (6, (4,)), (N, (4,)), (2, ())),
}


@pytest.mark.parametrize("name", INDICES)
def test_index(name):
    dims, at, plain, *indices = INDICES[name]
    check_op(Index(dims, at), plain, randn(T, 6, N, 2), *(integers(below, *shape) for below, shape in indices))


@pytest.mark.parametrize("dim", [0, 1])
def test_gather(dim):
    index = torch.randint(0, 4, (T, 3, 2))
    check_op(Gather(dim), lambda x, i: x.gather(dim, i), randn(T, N, 4), index)
