"""Batch, layer and group norm: all four sweeps, with own, fixed and borrowed statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import check_op, randn

from fastmeta.ops.group_norm import GroupNorm
from fastmeta.ops.norm import batch_norm, layer_norm

T, N, C = 3, 5, 7
EPS = 1e-3


def affine_inputs(*shape):
    return randn(T, *shape) + 1.0, randn(T, *shape)


def by_hand(x, mean, var, gamma=None, beta=None):
    """Batch norm with given statistics: F.batch_norm has no derivative along them."""

    def wide(p):
        return p.reshape(-1, *(1,) * (x.dim() - 2))

    xh = (x - wide(mean)) / (wide(var) + EPS).sqrt()
    return xh if gamma is None else xh * wide(gamma) + wide(beta)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("positions", [(), (3,), (3, 5)], ids=str)
def test_batch_norm(positions, affine):
    op = batch_norm(2 + len(positions), C, EPS, affine=affine, fixed=False, rows=None)

    def plain(x, gamma=None, beta=None):
        return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)

    check_op(op, plain, randn(T, N, C, *positions) * 2 + 1, *(affine_inputs(C) if affine else ()))


def test_batch_norm_of_one_channel():
    op = batch_norm(4, 1, EPS, affine=True, fixed=False, rows=None)

    def plain(x, gamma, beta):
        return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)

    check_op(op, plain, randn(T, N, 1, 3, 3), *affine_inputs(1))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_with_fixed_statistics(affine):
    op = batch_norm(4, C, EPS, affine=affine, fixed=True, rows=None)

    def plain(x, *rest):
        return by_hand(x, *rest[-2:], *rest[:-2])

    statistics = randn(T, C), torch.rand(T, C, dtype=torch.float64) + 0.5
    inputs = randn(T, N, C, 3, 5), *(affine_inputs(C) if affine else ()), *statistics
    check_op(op, plain, *inputs, active=range(len(inputs) - 2))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("positions, rows", [((), 4), ((3, 5), 3), ((3, 5), 1)], ids=str)
def test_batch_norm_with_the_statistics_of_the_first_rows(positions, rows, affine):
    """Support rows normalise themselves and the query rows behind them; gradients flow back into the support rows."""
    op = batch_norm(2 + len(positions), C, EPS, affine=affine, fixed=False, rows=rows)

    def plain(x, gamma=None, beta=None):
        support, query = x[:rows], x[rows:]
        dims = (0, *range(2, x.dim()))
        mean, var = support.mean(dims), support.var(dims, correction=0)
        return torch.cat([by_hand(part, mean, var, gamma, beta) for part in (support, query)])

    check_op(op, plain, randn(T, 6, C, *positions), *(affine_inputs(C) if affine else ()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape, normalized", [((N, C), (C,)), ((N, 3, C), (C,)), ((N, 3, C), (3, C))], ids=str)
def test_layer_norm(shape, normalized, affine):
    op = layer_norm(len(shape), normalized, EPS, affine=affine)

    def plain(x, gamma=None, beta=None):
        return F.layer_norm(x, normalized, gamma, beta, EPS)

    check_op(op, plain, randn(T, *shape), *(affine_inputs(*normalized) if affine else ()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups, shape", [(2, (N, 6)), (3, (N, 6, 5)), (1, (N, 3, 3, 5)), (6, (N, 6, 3, 1))], ids=str)
def test_group_norm(groups, shape, affine):
    channels = shape[1]
    op = GroupNorm(groups, channels, EPS, affine)

    def plain(x, gamma=None, beta=None):
        return F.group_norm(x, groups, gamma, beta, EPS)

    check_op(op, plain, randn(T, *shape), *(affine_inputs(channels) if affine else ()))


@pytest.mark.usefixtures("poison")
def test_norms_read_no_fresh_memory():
    test_batch_norm_with_the_statistics_of_the_first_rows((), 4, True)
    test_group_norm(3, (N, 6, 5), True)


def test_statistics_on_other_devices_are_those_of_a_cpu(monkeypatch):
    """The form for GPUs, here on a CPU."""

    class Elsewhere(torch.Tensor):
        """A tensor that claims another device."""

    x = randn(T, N, 3, 4, 5)
    for rows in (None, 2):
        op = batch_norm(4, 3, EPS, affine=False, fixed=False, rows=rows)
        here = op.forward(x)[0]
        with monkeypatch.context() as patch:
            patch.setattr(Elsewhere, "device", torch.device("meta"), raising=False)
            there = op.forward(x.as_subclass(Elsewhere))[0]
        torch.testing.assert_close(there.as_subclass(torch.Tensor), here, rtol=1e-12, atol=1e-12)
