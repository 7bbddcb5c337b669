"""Pooling, the 2x2 windows inside conv blocks in both forms, and conv blocks against the chain they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from activations import CASES
from op_harness import check_op, randn
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta.ops import window
from fastmeta.ops.activation import Activation
from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.conv_block import ConvBlock
from fastmeta.ops.pool import AvgPool2d, MaxPool2d

T, N, C = 3, 5, 7
ONE, NONE = (1, 1), (0, 0)

MAX_POOLS = {
    "2x2": MaxPool2d((2, 2), (2, 2), NONE, ONE, False),
    "overlapping, padded": MaxPool2d((3, 3), (2, 2), ONE, ONE, False),
    "ceil": MaxPool2d((2, 2), (2, 2), NONE, ONE, True),
    "uneven, dilated": MaxPool2d((2, 3), (1, 2), (0, 1), (2, 1), False),
}


@pytest.mark.parametrize("image", [(5, 7), (21, 21)], ids=str)
@pytest.mark.parametrize("name", MAX_POOLS)
def test_max_pool2d(name, image):
    op = MAX_POOLS[name]

    def plain(x):
        return F.max_pool2d(x, op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)

    check_op(op, plain, randn(T, 2, C if image == (5, 7) else 1, *image))


def test_max_pool2d_takes_the_first_of_equal_elements():
    op = MAX_POOLS["2x2"]
    x = torch.tensor([[0.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]).view(1, 1, 1, 2, 4)
    y, saved = op.forward(x)
    (dx,) = op.backward(saved, torch.ones_like(y), (True,))
    assert dx.flatten().tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    y_dot, _ = op.forward_dot(saved, (torch.arange(8.0).view_as(x),))
    assert y_dot.flatten().tolist() == [1, 2]


@pytest.mark.parametrize(
    "op",
    [
        AvgPool2d((2, 2), (2, 2), NONE, False, True, None),
        AvgPool2d((3, 2), (2, 1), (1, 1), False, True, None),
        AvgPool2d((3, 3), (2, 2), (1, 1), True, False, None),
        AvgPool2d((2, 2), (2, 2), NONE, True, True, 3),
    ],
    ids=["2x2", "padded", "ceil, padding not counted", "divisor"],
)
def test_avg_pool2d(op):
    def plain(x):
        return F.avg_pool2d(x, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad, op.divisor)

    check_op(op, plain, randn(T, N, C, 5, 7))


@pytest.mark.usefixtures("poison")
def test_pools_read_no_fresh_memory():
    test_max_pool2d("overlapping, padded", (5, 7))
    test_avg_pool2d(AvgPool2d((3, 2), (2, 1), (1, 1), False, True, None))


# --- windows ---------------------------------------------------------------------------------------------------------


def window_results(z, sign, g):
    winner, picked = window.pool(z, sign)
    return picked, window.gather(g, winner), window.scatter(picked, winner, z)


def window_inputs(kind):
    z = randn(T, 2, 5, 7, 4)
    if kind == "ties":
        z = torch.randint(0, 2, z.shape).double()
    if kind == "nan":
        z[torch.rand(z.shape) < 0.2] = torch.nan
    sign = torch.tensor([1.0, -1.0, 0.0, -1.0], dtype=torch.float64).expand(T, 4).contiguous()
    sign[1] = 1.0
    return z, sign[:, None, None, None], randn(*z.shape)


@pytest.mark.parametrize("kind", ["distinct", "ties", "nan"])
def test_both_forms_of_a_window_agree(kind):
    z, sign, g = window_inputs(kind)
    eager = window_results(z, sign, g)
    compiled = make_fx(window_results)(z, sign, g)(z, sign, g)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a.nan_to_num(nan=99.0), b.nan_to_num(nan=99.0))


def test_a_trace_holds_no_pooling_operator():
    graph = make_fx(window_results)(*window_inputs("distinct")).graph
    assert not [n for n in graph.nodes if "max_pool2d" in str(n.target)]


@pytest.mark.parametrize("kind", ["distinct", "ties", "nan"])
def test_a_window_picks_what_pytorch_picks(kind):
    z, sign, g = window_inputs(kind)
    _, picked_g, _ = window_results(z, sign, g)
    flat = (z * sign).flatten(0, 1).permute(0, 3, 1, 2)
    _, index = F.max_pool2d(flat, 2, return_indices=True)
    planes = g.flatten(0, 1).permute(0, 3, 1, 2).flatten(2)
    expected = planes.gather(2, index.flatten(2)).view(index.shape).permute(0, 2, 3, 1).unflatten(0, z.shape[:2])
    assert torch.equal(picked_g, expected)


# --- conv blocks -----------------------------------------------------------------------------------------------------

EPS = 1e-5
SAME = Conv2d(padding=(1, 1))


def chain(op, f):
    """The unfused chain in PyTorch's functions."""

    def plain(x, w, *rest):
        bias = rest[0] if op.biased else None
        gamma, beta = rest[-2:]
        z = F.conv2d(x, w, bias, op.conv.stride, op.conv.padding, op.conv.dilation, op.conv.groups)
        y = f(F.batch_norm(z, None, None, gamma, beta, training=True, eps=op.eps))
        return F.max_pool2d(y, 2) if op.pool else y

    return plain


def block_inputs(op, channels=2, outputs=4, image=(5, 7)):
    gamma = torch.tensor([1.3, -0.8, 0.6, -1.1], dtype=torch.float64)[:outputs] * (1 + 0.1 * randn(T, outputs))
    bias = (randn(T, outputs),) if op.biased else ()
    weight = randn(T, outputs, channels // op.conv.groups, 3, 3)
    return randn(T, N, channels, *image), weight, *bias, gamma, randn(T, outputs)


MONOTONE = [name for name, (op, _) in CASES.items() if op.monotone]


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("name", MONOTONE)
def test_conv_block_with_every_monotone_activation(name, pool):
    activation, f = CASES[name]
    op = ConvBlock(SAME, EPS, activation, pool, biased=False)
    check_op(op, chain(op, f), *block_inputs(op))


@pytest.mark.parametrize("name", ["gelu", "sin", "leaky_relu, negative slope"])
def test_conv_block_without_pool_takes_any_activation(name):
    activation, f = CASES[name]
    op = ConvBlock(SAME, EPS, activation, False, biased=True)
    check_op(op, chain(op, f), *block_inputs(op))


@pytest.mark.parametrize("conv", [Conv2d((2, 1), (0, 1), ONE, 2), Conv2d(ONE, NONE, ONE, 1)], ids=["uneven", "valid"])
@pytest.mark.parametrize("pool", [True, False])
def test_conv_block_with_bias_and_other_convolutions(conv, pool):
    op = ConvBlock(conv, EPS, Activation("tanh"), pool, biased=True)
    check_op(op, chain(op, torch.tanh), *block_inputs(op))


def test_conv_block_without_pytorchs_batch_norm(monkeypatch):
    """The form for GPUs and for compiled code."""
    monkeypatch.setattr(ConvBlock, "_by_pytorch", lambda self, z: False)
    op = ConvBlock(SAME, EPS, Activation("sin"), False, biased=True)
    check_op(op, chain(op, torch.sin), *block_inputs(op))


def test_conv_block_of_one_channel_images():
    op = ConvBlock(SAME, EPS, Activation("relu"), True, biased=True)
    check_op(op, chain(op, F.relu), *block_inputs(op, channels=1, image=(21, 21)))


@pytest.mark.parametrize("pool", [True, False])
def test_conv_block_with_gamma_zero(pool):
    """All elements of a window are then equal, and the first one's z is what counts."""
    op = ConvBlock(SAME, EPS, Activation("elu", (1.0,)), pool, biased=False)
    x, w, gamma, beta = block_inputs(op)
    gamma[:, 1] = 0.0
    check_op(op, chain(op, F.elu), x, w, gamma, beta)


@pytest.mark.usefixtures("poison")
def test_conv_block_reads_no_fresh_memory():
    op = ConvBlock(SAME, EPS, Activation("relu"), True, biased=True)
    check_op(op, chain(op, F.relu), *block_inputs(op))


def sweep(op, inputs, dots, dy, dy_dot):
    needs = (True,) * len(inputs)
    y, saved = op.forward(*inputs)
    ds = op.backward(saved, dy, needs)
    y_dot, saved_dot = op.forward_dot(saved, dots)
    return y, *ds, y_dot, *op.backward_dot(saved, saved_dot, dy, dy_dot, needs)


def autograd(plain, inputs, dots, dy, dy_dot):
    """The same values by double backward over the tasks' own graphs."""

    def pull(args):
        return torch.func.vjp(plain, *args[:-1])[1](args[-1])

    def one(args, along):
        y, y_dot = torch.func.jvp(plain, args[:-1], along[:-1])
        ds, ds_dot = torch.func.jvp(lambda *a: pull(a), args, along)
        return y, *ds, y_dot, *ds_dot

    return torch.func.vmap(one)((*inputs, dy), (*dots, dy_dot))


@pytest.mark.parametrize("pool", [True, False])
def test_conv_block_in_float32_is_as_exact_as_pytorch(pool):
    """Error against float64 at most twice PyTorch's own. tanh: without kinks the truth is well conditioned."""
    op = ConvBlock(SAME, EPS, Activation("tanh"), pool, biased=False)
    inputs = block_inputs(op, image=(9, 11))
    shape = op.forward(*inputs)[0].shape
    dots, dy, dy_dot = tuple(map(torch.randn_like, inputs)), randn(*shape), randn(*shape)
    truth = sweep(op, inputs, dots, dy, dy_dot)
    single = [tuple(x.float() for x in some) for some in (inputs, dots)], dy.float(), dy_dot.float()
    fast = sweep(op, *single[0], *single[1:])
    torchs = autograd(chain(op, torch.tanh), *single[0], *single[1:])
    for exact, got, expected in zip(truth, fast, torchs, strict=True):
        assert (got - exact).norm() <= 2 * (expected - exact).norm() + 1e-6 * exact.norm()
