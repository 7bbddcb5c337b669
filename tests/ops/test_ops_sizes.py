"""Ops of sizes drawn at random, ones and primes among them, in every memory layout."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from op_harness import check_op, randn

from fastmeta.ops.activation import Activation
from fastmeta.ops.arithmetic import Add, Mul
from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.conv_block import ConvBlock
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.divide import Div
from fastmeta.ops.embedding import Embedding
from fastmeta.ops.group_norm import GroupNorm
from fastmeta.ops.index import Index
from fastmeta.ops.linear import Linear
from fastmeta.ops.matmul import Matmul
from fastmeta.ops.mse import MSE
from fastmeta.ops.norm import batch_norm, layer_norm
from fastmeta.ops.pool import AvgPool2d, MaxPool2d
from fastmeta.ops.shape import Concatenate, Select
from fastmeta.ops.softmax import LogSoftmax, Softmax
from fastmeta.ops.spread import Spread
from fastmeta.ops.where import Where

EPS = 1e-3


def size(draw, top=7):
    """Between 1 and `top`, 1 twice as often as any other."""
    return max(1, draw.randint(0, top))


def affine(tasks, *shape):
    return randn(tasks, *shape) + 1.0, randn(tasks, *shape)


def linear(draw, tasks):
    between = tuple(size(draw, 3) for _ in range(draw.randint(1, 3)))
    ins, outs = size(draw), size(draw)
    bias = (randn(tasks, outs),) if draw.random() < 0.7 else ()
    return Linear(), F.linear, randn(tasks, *between, ins), randn(tasks, outs, ins), *bias


def broadcast(draw, tasks):
    full = [size(draw, 5) for _ in range(draw.randint(0, 3))]
    shapes = []
    for _ in range(2):
        shape = [n if draw.random() < 0.7 else 1 for n in full]
        shapes.append(shape[draw.randint(0, len(shape)) if draw.random() < 0.3 else 0 :])
    op, plain = draw.choice([(Add(), torch.add), (Add(0.3), lambda a, b: a + 0.3 * b), (Mul(), torch.mul)])
    return op, plain, *(randn(tasks, *shape) for shape in shapes)


def batch_normed(draw, tasks):
    channels, samples = size(draw), draw.randint(2, 6)
    positions = tuple(size(draw, 3) for _ in range(draw.randint(0, 2)))
    op = batch_norm(2 + len(positions), channels, EPS, affine=True, fixed=False, rows=None)

    def plain(x, gamma, beta):
        return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)

    return op, plain, randn(tasks, samples, channels, *positions), *affine(tasks, channels)


def layer_normed(draw, tasks):
    shape = [size(draw, 4) for _ in range(draw.randint(1, 3))]
    normalized = (*shape[draw.randint(1, len(shape)) :], draw.randint(2, 5))
    shape = (*shape[: len(shape) + 1 - len(normalized)], *normalized)
    op = layer_norm(len(shape), normalized, EPS, affine=True)
    plain = lambda x, g, b: F.layer_norm(x, normalized, g, b, EPS)  # noqa: E731
    return op, plain, randn(tasks, *shape), *affine(tasks, *normalized)


def group_normed(draw, tasks):
    groups, per_group = size(draw, 3), size(draw, 3)
    positions = (draw.randint(2, 4), *(size(draw, 3) for _ in range(draw.randint(0, 1))))
    channels = groups * per_group
    plain = lambda x, g, b: F.group_norm(x, groups, g, b, EPS)  # noqa: E731
    inputs = randn(tasks, size(draw, 3), channels, *positions), *affine(tasks, channels)
    return GroupNorm(groups, channels, EPS, True), plain, *inputs


def convolution(draw, tasks):
    kernel, stride, padding = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(3))
    padding = tuple(p % k for p, k in zip(padding, kernel, strict=True))
    image = tuple(k + draw.randint(0, 4) for k in kernel)
    groups, ins, outs = size(draw, 2), size(draw, 3), size(draw, 3)
    op = Conv2d(stride, padding, (1, 1), groups)
    plain = lambda x, w: F.conv2d(x, w, None, stride, padding, 1, groups)  # noqa: E731
    x = randn(tasks, size(draw, 3), groups * ins, *image)
    return op, plain, x, randn(tasks, groups * outs, ins, *kernel)


def conv_block(draw, tasks):
    pool, image = draw.random() < 0.5, (draw.randint(2, 6), draw.randint(2, 6))
    ins, outs = size(draw, 3), size(draw, 3)
    op = ConvBlock(Conv2d(padding=(1, 1)), EPS, Activation("tanh"), pool, biased=False)

    def plain(x, w, gamma, beta):
        z = F.conv2d(x, w, padding=1)
        y = torch.tanh(F.batch_norm(z, None, None, gamma, beta, training=True, eps=EPS))
        return F.max_pool2d(y, 2) if pool else y

    inputs = randn(tasks, size(draw, 3), ins, *image), randn(tasks, outs, ins, 3, 3)
    return op, plain, *inputs, *affine(tasks, outs)


def pooled(draw, tasks):
    kernel, stride = (draw.randint(1, 3), draw.randint(1, 3)), (draw.randint(1, 3), draw.randint(1, 3))
    padding, ceil = tuple(draw.randint(0, k // 2) for k in kernel), draw.random() < 0.5
    x = randn(tasks, size(draw, 3), size(draw, 3), *(k + draw.randint(0, 4) for k in kernel))
    if draw.random() < 0.5:
        op = MaxPool2d(kernel, stride, padding, (1, 1), ceil)
        return op, lambda x: F.max_pool2d(x, kernel, stride, padding, 1, ceil), x
    counted = draw.random() < 0.5
    op = AvgPool2d(kernel, stride, padding, ceil, counted, None)
    return op, lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted), x


def concatenated(draw, tasks):
    shape = [size(draw, 4) for _ in range(draw.randint(1, 3))]
    dim = draw.randrange(len(shape))
    shapes = [(*shape[:dim], size(draw, 4), *shape[dim + 1 :]) for _ in range(draw.randint(1, 3))]
    return Concatenate(dim), lambda *xs: torch.cat(xs, dim), *(randn(tasks, *s) for s in shapes)


def selected(draw, tasks):
    shape = [size(draw, 5) for _ in range(draw.randint(1, 3))]
    index = []
    for n in shape:
        start = draw.randrange(n)
        index.append(draw.choice([start, -1 - start, slice(start, None), slice(None, None, draw.randint(1, 3))]))
    index = tuple(index[: draw.randint(1, len(index))])
    return Select(index), lambda x: x[index], randn(tasks, *shape)


def embedded(draw, tasks):
    rows, width = size(draw), size(draw)
    index = torch.randint(0, rows, (tasks, *(size(draw, 4) for _ in range(draw.randint(1, 2)))))
    return Embedding(rows), F.embedding, index, randn(tasks, rows, width)


def cross_entropy(draw, tasks):
    samples, classes = size(draw), draw.randint(2, 5)
    positions = tuple(size(draw, 3) for _ in range(draw.randint(0, 2)))
    labels = torch.randint(0, classes, (tasks, samples, *positions))
    return CrossEntropy(), F.cross_entropy, randn(tasks, samples, classes, *positions), labels


def mse(draw, tasks):
    shape = tuple(size(draw) for _ in range(draw.randint(1, 3)))
    return MSE(), F.mse_loss, randn(tasks, *shape), randn(tasks, *shape)


def matrix_product(draw, tasks):
    batch = [size(draw, 3) for _ in range(draw.randint(0, 2))]
    n, k, m = (size(draw, 5) for _ in range(3))
    x, w = ([b if draw.random() < 0.7 else 1 for b in batch] for _ in range(2))
    x = x[draw.randint(0, len(x)) :] if draw.random() < 0.3 else x
    return Matmul(), torch.matmul, randn(tasks, *x, n, k), randn(tasks, *w, k, m)


def softmaxed(draw, tasks):
    shape = [size(draw, 4) for _ in range(draw.randint(1, 3))]
    dim = draw.randrange(len(shape))
    op, plain = draw.choice([(Softmax(dim), torch.softmax), (LogSoftmax(dim), torch.log_softmax)])
    return op, lambda x: plain(x, dim), randn(tasks, *shape)


def divided(draw, tasks):
    _, _, a, b = broadcast(draw, tasks)
    return Div(), torch.div, a, b.exp()


def chosen(draw, tasks):
    _, _, a, b = broadcast(draw, tasks)
    condition = randn(tasks, *(b.shape[1:] if draw.random() < 0.5 else ())) > 0
    return Where(), torch.where, condition, a, b


def spread(draw, tasks):
    shape = [size(draw, 3) + 1 for _ in range(draw.randint(1, 3))]
    dims = tuple(draw.sample(range(len(shape)), draw.randint(1, len(shape))))
    return Spread(dims, False, True, True, 1), lambda x: x.std(dims), randn(tasks, *shape)


def indexed(draw, tasks):
    shape = [size(draw, 4) for _ in range(3)]
    dims = draw.choice([(0,), (2,), (0, 1), (0, 2), (1, 2)])
    wide = tuple(size(draw, 3) for _ in range(draw.randint(0, 2)))
    indices = [torch.randint(-shape[d], shape[d], (tasks, *wide)) for d in dims]

    def plain(x, *indices):
        each = dict(zip(dims, indices, strict=True))
        return x[tuple(each.get(d, slice(None)) for d in range(3))]

    return Index(dims, 0 if dims == (0, 2) else dims[0]), plain, randn(tasks, *shape), *indices


FAMILIES = [
    matrix_product, softmaxed, divided, chosen, spread, indexed,
    linear, broadcast, batch_normed, layer_normed, group_normed, convolution, conv_block, pooled, concatenated,
    selected, embedded, cross_entropy, mse,
]  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_any_size(family):
    for seed in range(4):
        torch.manual_seed(seed)
        draw = random.Random(seed)
        op, plain, *inputs = family(draw, draw.choice([1, 2, 3, 5]))
        check_op(op, plain, *inputs)
