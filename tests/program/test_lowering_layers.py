"""Rules of norms, layers and recurrent cells against PyTorch's own functions, in all four sweeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import randn
from rules import Sketch, check_rule

from fastmeta.program.lowering import NotKnown, layers, norms, pooling

T, N, C = 2, 3, 4


def normed(x, weight=None, bias=None, rows=None):
    """Batch norm in train mode, written out: PyTorch's own is wrong in forward mode over reverse mode."""
    dims = (0, *range(2, x.dim()))
    var, mean = torch.var_mean(x[:rows], dims, correction=0, keepdim=True)
    y = (x - mean) / (var + 1e-3).sqrt()
    wide = (C, *(1,) * (x.dim() - 2))
    y = y if weight is None else y * weight.view(wide)
    return y if bias is None else y + bias.view(wide)


@pytest.mark.parametrize("positions", [(), (2,), (3, 2)], ids=str)
@pytest.mark.parametrize("rows", [None, 2])
def test_batch_norm_in_train_mode(positions, rows):
    x, weight, bias = randn(T, N, C, *positions), randn(T, C), randn(T, C)
    rule = lambda to, x, *p: norms.batch_norm_rule(to, x, None, None, *p, training=True, eps=1e-3)  # noqa: E731
    check_rule(rule, lambda *v: normed(*v, rows=rows), x, weight, bias, rows=rows)
    check_rule(rule, lambda *v: normed(*v, rows=rows), x, rows=rows)
    check_rule(rule, lambda *v: normed(*v, rows=rows), x, weight, rows=rows)
    only_bias = lambda to, x, b: norms.batch_norm_rule(to, x, None, None, None, b, True, eps=1e-3)  # noqa: E731
    check_rule(only_bias, lambda x, b: normed(x, None, b, rows), x, bias, rows=rows)


def test_batch_norm_in_eval_mode():
    mean, var = randn(C), randn(C).exp()
    check_rule(
        lambda to, *v: norms.batch_norm_rule(to, v[0], to.constant(mean), to.constant(var), *v[1:], eps=1e-3),
        lambda *v: F.batch_norm(v[0], mean, var, *v[1:], eps=1e-3),
        *(randn(T, N, C, 2), randn(T, C), randn(T, C)),
        rows=2,
    )


def test_the_other_norms():
    x, weight, bias = randn(T, N, C, 5), randn(T, C), randn(T, C)
    check_rule(norms.instance_norm_rule, F.instance_norm, x)
    check_rule(
        lambda to, x, w, b: norms.instance_norm_rule(to, x, weight=w, bias=b, eps=1e-3),
        lambda x, w, b: F.group_norm(x, C, w, b, 1e-3),
        *(x, weight, bias),
    )
    x, weight = randn(T, N, 2, C), randn(T, 2, C)
    check_rule(
        lambda to, *v: norms.layer_norm_rule(to, v[0], (2, C), *v[1:]),
        lambda x, w: F.layer_norm(x, (2, C), w),
        x,
        weight,
    )
    check_rule(
        lambda to, x, b: norms.layer_norm_rule(to, x, (2, C), bias=b),
        lambda x, b: F.layer_norm(x, (2, C)) + b,
        *(x, weight),
    )
    check_rule(
        lambda to, *v: norms.rms_norm_rule(to, v[0], (2, C), *v[1:]), lambda x, w: F.rms_norm(x, (2, C), w), x, weight
    )
    check_rule(lambda to, x: norms.rms_norm_rule(to, x, (C,), eps=0.1), lambda x: F.rms_norm(x, (C,), eps=0.1), x)
    check_rule(
        lambda to, x, w: norms.group_norm_rule(to, x, 2, w),
        lambda x, w: F.group_norm(x, 2, w),
        *(randn(T, N, C, 5), randn(T, C)),
    )


def test_linear_of_one_sample():
    check_rule(layers.linear, F.linear, randn(T, 5), randn(T, C, 5), randn(T, C))
    to = Sketch()
    with pytest.raises(NotKnown, match=r"torch\.float16 with torch\.float32"):
        layers.linear(to, to.slot(torch.zeros(2, 3).half()), to.slot(torch.zeros(4, 3)))


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": (1,)}, {"padding": "same", "dilation": [2]}, {"groups": 2}]
)
def test_conv1d(options):
    groups = options.get("groups", 1)
    check_rule(
        lambda to, *v: layers.conv1d(to, *v, **options),
        lambda *v: F.conv1d(*v, **options),
        *(randn(T, N, 2, 9), randn(T, C, 2 // groups, 3), randn(T, C)),
    )


def test_pooling_of_rows():
    x = randn(T, N, 2, 8)
    check_rule(lambda to, x: pooling.max_pool1d(to, x, 2), lambda x: F.max_pool1d(x, 2), x)
    check_rule(lambda to, x: pooling.max_pool1d(to, x, 3, 2, 1), lambda x: F.max_pool1d(x, 3, 2, 1), x)
    check_rule(lambda to, x: pooling.avg_pool1d(to, x, 3, 2, 1), lambda x: F.avg_pool1d(x, 3, 2, 1), x)
    check_rule(lambda to, x: pooling.adaptive_avg_pool1d(to, x, 1), lambda x: F.adaptive_avg_pool1d(x, 1), x)
    check_rule(lambda to, x: pooling.adaptive_avg_pool1d(to, x, 4), lambda x: F.adaptive_avg_pool1d(x, 4), x)


def cell(gates):
    return randn(T, N, 3), randn(T, N, C), randn(T, gates * C, 3), randn(T, gates * C, C), randn(T, gates * C)


def test_recurrent_cells():
    x, h, w_x, w_h, bias = cell(4)

    def lstm(x, h, c, w_x, w_h, b):
        take, forget, value, show = (F.linear(x, w_x, b) + F.linear(h, w_h, b)).chunk(4, 1)
        c = forget.sigmoid() * c + take.sigmoid() * value.tanh()
        return show.sigmoid() * c.tanh(), c

    check_rule(
        lambda to, x, h, c, w, v, b: layers.lstm_cell(to, x, (h, c), w, v, b, b), lstm, x, h, h * 2, w_x, w_h, bias
    )
    torch.testing.assert_close(
        torch.lstm_cell(x[0], (h[0], h[0]), w_x[0], w_h[0], bias[0], bias[0]),
        lstm(*(v[0] for v in (x, h, h, w_x, w_h, bias))),
    )

    def gru(x, h, w_x, w_h, b):
        a, b = F.linear(x, w_x, b).chunk(3, 1), F.linear(h, w_h, b).chunk(3, 1)
        reset, keep = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
        new = (a[2] + reset * b[2]).tanh()
        return new + keep * (h - new)

    x, h, w_x, w_h, bias = cell(3)
    check_rule(lambda to, x, h, w, v, b: layers.gru_cell(to, x, h, w, v, b, b), gru, x, h, w_x, w_h, bias)
    one = [v[0] for v in (x, h, w_x, w_h, bias)]
    torch.testing.assert_close(torch.gru_cell(*one, one[-1]), gru(*one))

    inputs = cell(1)[:4]
    check_rule(layers.rnn_tanh_cell, lambda x, h, w, v: (F.linear(x, w) + F.linear(h, v)).tanh(), *inputs)
    check_rule(layers.rnn_relu_cell, lambda x, h, w, v: (F.linear(x, w) + F.linear(h, v)).relu(), *inputs)
