"""Linear layers, convolutions and embeddings: all four sweeps against PyTorch's functions of one task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import check_op, randn

from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.embedding import Embedding
from fastmeta.ops.linear import Linear

T, N = 3, 5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("between", [(), (4,), (2, 3)], ids=str)
def test_linear(between, bias):
    inputs = [randn(T, N, *between, 7), randn(T, 6, 7), randn(T, 6)]
    check_op(Linear(), F.linear, *inputs[: 3 if bias else 2])


@pytest.mark.parametrize("features, outputs, samples", [(1, 1, 1), (1, 5, 3), (7, 1, 1)])
def test_linear_of_one_feature_output_or_sample(features, outputs, samples):
    check_op(Linear(), F.linear, randn(T, samples, features), randn(T, outputs, features), randn(T, outputs))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "channels, outputs, kernel, options",
    [
        (7, 4, (3, 3), {"padding": (1, 1)}),
        (1, 4, (3, 3), {"padding": (1, 1)}),
        (4, 1, (3, 3), {}),
        (2, 3, (3, 2), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
        (4, 6, (3, 3), {"padding": (1, 1), "groups": 2}),
        (3, 3, (3, 3), {"stride": (2, 2), "groups": 3}),
        (5, 3, (1, 1), {}),
        (4, 6, (1, 1), {"stride": (2, 3)}),
        (4, 6, (1, 1), {"stride": (2, 2), "groups": 2}),
        (5, 3, (1, 1), {"stride": (2, 2), "padding": (1, 1)}),
    ],
    ids=[
        "same",
        "one channel",
        "one output",
        "uneven",
        "groups",
        "depthwise",
        "1x1",
        "1x1 in strides",
        "1x1 in strides, groups",
        "1x1 in strides, padded",
    ],
)
def test_conv2d(channels, outputs, kernel, options, bias):
    op = Conv2d(**options)
    inputs = [randn(T, N, channels, 5, 7), randn(T, outputs, channels // op.groups, *kernel), randn(T, outputs)]

    def plain(x, w, b=None):
        return F.conv2d(x, w, b, op.stride, op.padding, op.dilation, op.groups)

    check_op(op, plain, *inputs[: 3 if bias else 2])


@pytest.mark.parametrize("channels", [3, 4, 5, 7])
def test_few_channels_through_strided_1x1_filters_in_float32(channels):
    """oneDNN's own gradient of the weight corrupts the heap here, which kills the process some calls later."""
    op, dy = Conv2d(stride=(2, 2)), torch.randn(T, 4, 8, 7, 7)
    x, w = torch.randn(T, 4, channels, 14, 14), torch.randn(T, 8, channels, 1, 1)
    for _ in range(20):
        dx, dw = op.product_backward(dy, x, w, True, True)
    want_dx, want_dw = op.product_backward(dy.double(), x.double(), w.double(), True, True)
    torch.testing.assert_close(dx.double(), want_dx, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dw.double(), want_dw, rtol=1e-4, atol=1e-4)


def test_conv2d_of_one_sample_and_an_odd_image():
    check_op(
        Conv2d(padding=(1, 1)), lambda x, w: F.conv2d(x, w, padding=1), randn(2, 1, 3, 21, 21), randn(2, 2, 3, 3, 3)
    )


@pytest.mark.usefixtures("poison")
def test_conv2d_and_linear_read_no_fresh_memory():
    check_op(Conv2d(padding=(1, 1)), lambda x, w, b: F.conv2d(x, w, b, padding=1), *_small_conv())
    check_op(Linear(), F.linear, randn(T, N, 2, 7), randn(T, 6, 7), randn(T, 6))


def _small_conv():
    return randn(T, 2, 3, 5, 5), randn(T, 4, 3, 3, 3), randn(T, 4)


def test_conv2d_on_other_devices_folds_the_tasks_into_groups(monkeypatch):
    """The form for GPUs, here on a CPU: its results must not depend on the device."""

    class Elsewhere(torch.Tensor):
        """A tensor that claims another device."""

    x, w, _ = _small_conv()
    dy = randn(T, 2, 4, 5, 5)
    op = Conv2d(padding=(1, 1))
    here = op.product(x, w), *op.product_backward(dy, x, w, True, True)
    monkeypatch.setattr(Elsewhere, "device", torch.device("meta"), raising=False)
    x, w, dy = (v.as_subclass(Elsewhere) for v in (x, w, dy))
    assert x.device.type != "cpu"
    there = op.product(x, w), *op.product_backward(dy, x, w, True, True)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.as_subclass(torch.Tensor), a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("shape", [(N,), (N, 4)], ids=str)
def test_embedding(shape, padding):
    index = torch.randint(0, 6, (T, *shape))
    index[:, 0] = 3  # the padding row is met, and met by every task
    check_op(Embedding(6, padding), lambda i, w: F.embedding(i, w, padding_idx=padding), index, randn(T, 6, 5))


def test_embedding_takes_int32_indices_as_pytorch_does():
    index = torch.randint(0, 6, (T, N), dtype=torch.int32)
    check_op(Embedding(6), F.embedding, index, randn(T, 6, 5))
