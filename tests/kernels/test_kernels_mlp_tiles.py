"""How a perceptron's program is cut into warps and tiles; every cut of it is held to float64 truth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from kernel_runs import DEVICE, assert_as_good_as_torch, needs_kernels
from meta_steps import mlp, regression
from perceptrons import CASES, LOOP_SHAPES
from test_kernels_mlp_loop import Sine
from test_kernels_rates import check as check_rates
from torch import nn

import fastmeta


@pytest.fixture
def one_warp(monkeypatch):
    """Programs of one warp, of however few tasks and large networks."""
    from fastmeta.kernels import tiles

    monkeypatch.setattr(tiles, "FEWEST_WARPS", 1)
    monkeypatch.setattr(tiles, "PROCESSORS", 0)
    monkeypatch.setattr(tiles, "MOST_TILES", 100)


@pytest.mark.parametrize(
    "dims, samples, tasks, warps",
    [
        ((1, 40, 40, 1), 10, 25, 8),  # less than a task for each multiprocessor
        ((1, 40, 40, 1), 10, 132, 8),
        ((1, 40, 40, 1), 10, 133, 4),
        ((1, 40, 40, 1), 10, 264, 4),
        ((1, 40, 40, 1), 10, 265, 1),
        ((1, 40, 40, 1), 10, 10_000, 1),
        ((1, 40, 40, 1), 17, 10_000, 8),  # twice the activations, which one warp does not hold
        ((1, 64, 64, 64, 1), 10, 10_000, 8),
        ((6, 40, 20), 20, 10_000, 8),
        ((3, 9, 2), 5, 25, 2),  # 16 × 16 results at most
        ((3, 9, 2), 5, 10_000, 1),
        ((2, 32, 5), 25, 200, 4),
        ((2, 3), 2, 257, 2),
    ],
)
def test_few_tasks_spread_over_warps_and_many_lie_side_by_side(dims, samples, tasks, warps, monkeypatch):
    from fastmeta.kernels import tiles

    by_default = tiles.loop_warps(dims, samples, tasks)
    assert by_default == tiles.loop_warps(dims, samples, 1) >= warps  # whatever the number of tasks
    monkeypatch.setattr(tiles, "FEWEST_WARPS", 1)
    assert tiles.loop_warps(dims, samples, tasks) == warps
    assert tiles.loop_tiles(dims, samples, 0, tasks).warps == warps


@pytest.mark.parametrize(
    "dims, most, columns",
    [
        ((1, 40, 40, 1), 16, (1, 16, 16, 1)),
        ((1, 40, 40, 1), 64, (1, 64, 64, 1)),
        ((2, 32, 5), 16, (1, 16, 16)),
        ((3, 1, 20), 16, (16, 1, 32)),  # the outputs are one tile
        ((1, 1, 1), 16, (1, 16, 1)),  # no two columns meet: a weight of one value has padding to fill
        ((1, 1), 64, (1, 16)),
    ],
)
def test_tiles_cover_their_layers(dims, most, columns):
    from fastmeta.kernels.tiles import tile_columns

    assert tile_columns(dims, most) == columns
    assert all(i > 1 or o > 1 for i, o in pairwise(columns))
    assert columns[-1] >= dims[-1]


def test_places_of_a_tile_are_those_of_a_warps_results_and_operands():
    """Thread 4 g + t holds the same features as a result, as an operand and as 16 bytes of memory: 4 t … 4 t + 3."""
    place = np.arange(16)
    features = place % 8 * 2 + place // 8  # as `features` in mlp_blocks.py
    for t in range(4):
        results = [8 * a + 2 * t + e for a in (0, 1) for e in (0, 1)]
        assert sorted(features[results]) == [4 * t + r for r in range(4)]
        summed = features.reshape(2, 4, 2).transpose(0, 2, 1).reshape(16)  # as `summed` orders tf32's
        assert sorted(summed[[4 * r + t for r in range(4)]]) == [4 * t + r for r in range(4)]


@needs_kernels
@pytest.mark.usefixtures("poison", "one_warp")
@pytest.mark.parametrize("name", CASES)
def test_regression_by_one_warp(name):
    widths, activation, options = CASES[name]
    batch = regression(features=widths[0], outputs=widths[-1])
    assert_as_good_as_torch(
        mlp(*widths, activation=activation), batch, inner_loss=torch.nn.functional.mse_loss, **options
    )


WIDTHS = {"a bottleneck of one": (3, 20, 1, 18, 2), "columns only": (2, 1, 1), "17 outputs": (5, 17), "odd": (2, 33, 1)}


@needs_kernels
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("warps", ["one warp", "more"])
@pytest.mark.parametrize("name", WIDTHS)
def test_widths_that_fill_no_tile(name, warps, request):
    if warps == "one warp":
        request.getfixturevalue("one_warp")
    widths = WIDTHS[name]
    batch = regression(features=widths[0], outputs=widths[-1])
    options = {"inner_loss": torch.nn.functional.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.1, momentum=0.5)}
    assert_as_good_as_torch(mlp(*widths, activation=nn.Softplus), batch, **options)


@needs_kernels
@pytest.mark.usefixtures("poison", "one_warp")
@pytest.mark.parametrize("name", ["one sample of width 1", "eight layers", "257 tasks", "20 classes"])
def test_classification_by_one_warp(name):
    shape = LOOP_SHAPES[name]
    model = mlp(*shape.widths, activation=Sine if len(shape.widths) < 9 else nn.Tanh)
    assert_as_good_as_torch(model, shape.batch(), **shape.options())


@needs_kernels
@pytest.mark.usefixtures("poison", "one_warp")
@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adam"])
def test_gradients_of_rates_by_one_warp(rule, each):
    check_rates("loop", rule, 3, each=each)


def cut(x):
    """float32 as tf32's matrix units read it: without the last 13 bits."""
    return (np.ascontiguousarray(x).view(np.int32) & np.int32(-8192)).view(np.float32)


def towards_zero(x):
    """float64 in float32, as they add up: without what does not fit."""
    near = x.astype(np.float32)
    return np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def tf32_units(monkeypatch, precision):
    """The interpreter multiplies as matrix units do, eight values at a time, where kernels ask for this precision."""
    from fastmeta.kernels import mlp as launcher
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(_, a, b, total, *__):
        left, right, found = cut(a.data), cut(b.data), total.data
        for k in range(0, left.shape[1], 8):
            found = towards_zero(left[:, k : k + 8].astype(np.float64) @ right[k : k + 8].astype(np.float64) + found)
        return TensorHandle(found, total.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(launcher, "dot_precision", lambda _: precision)


@needs_kernels
@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has matrix units of its own")
@pytest.mark.usefixtures("one_warp")
@pytest.mark.parametrize("name", ["sinusoid", "momentum", "20 classes"])
def test_three_products_of_tf32_are_as_good_as_float32(name, monkeypatch):
    if name == "20 classes":
        widths, activation = LOOP_SHAPES[name].widths, nn.Tanh
        batch, options = LOOP_SHAPES[name].batch(), LOOP_SHAPES[name].options()
    else:
        widths, activation, options = CASES[name]
        batch = regression(features=widths[0], outputs=widths[-1])
        options = {"inner_loss": torch.nn.functional.mse_loss, **options}
    model = mlp(*widths, activation=activation)
    tf32_units(monkeypatch, "tf32x3")
    assert_as_good_as_torch(model, batch, **options)
    tf32_units(monkeypatch, "tf32")
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(model, batch, **options)
