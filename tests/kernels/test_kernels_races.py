"""No kernel leaves the order of two accesses to one place to chance: watched in Triton's interpreter."""

from __future__ import annotations

import copy

import convolutions
import perceptrons
import pytest
import torch
import torch.nn.functional as F
from meta_steps import classification, mlp, regression
from races import watching

import fastmeta

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")


def single(x):
    """A meta-batch in float32."""
    return [part.float() if part.is_floating_point() else part for part in x]


def run(model, batch, algorithm=fastmeta.MAML, **options):
    """One meta-step on kernels."""
    options = {"inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options
    learner = algorithm(copy.deepcopy(model).float(), backend="triton", **options)
    learner(*single(batch)).loss.backward()


def planted():
    import triton.language as tl

    @triton.jit
    def turned_kernel(p_x, N: tl.constexpr, BARRIER: tl.constexpr, SAME: tl.constexpr):
        """Stores a block and reads it back, turned round or as it lies."""
        at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        tl.store(p_x + at, at.to(tl.float32))
        if BARRIER:
            tl.debug_barrier()
        y = tl.load(p_x + (at if SAME else tl.trans(at)))
        tl.debug_barrier()
        tl.store(p_x + N * N + at, y)

    @triton.jit
    def neighbours_kernel(p_x, N: tl.constexpr, OWN: tl.constexpr):
        """Every program writes its row, and reads its own or the next program's."""
        row = tl.program_id(0) * N + tl.arange(0, N)
        x = tl.load(p_x + (row if OWN else (row + N) % (4 * N)))
        tl.debug_barrier()
        tl.store(p_x + row, x)

    return turned_kernel, neighbours_kernel


@pytest.mark.parametrize(("barrier", "same"), [(True, False), (False, True), (False, False)])
def test_a_planted_race_of_threads_is_found(barrier, same):
    from fastmeta.kernels.launch import launch

    turned, _ = planted()
    with watching() as watch:
        launch(turned, (1,), torch.zeros(512), N=16, BARRIER=barrier, SAME=same)
    assert {race.kinds for race in watch.races} == (set() if barrier or same else {"store, load of one program"})


@pytest.mark.parametrize("own", [True, False])
def test_a_planted_race_of_programs_is_found(own):
    from fastmeta.kernels.launch import launch

    _, neighbours = planted()
    with watching() as watch:
        launch(neighbours, (4,), torch.randn(32), N=8, OWN=own)
    kinds = set() if own else {"load, store of two programs", "store, load of two programs"}
    assert {race.kinds for race in watch.races} == kinds


def perceptron(name):
    widths, activation, options = perceptrons.CASES[name]
    run(mlp(*widths, activation=activation), regression(features=widths[0], outputs=widths[-1], tasks=2),
        inner_loss=F.mse_loss, **options)  # fmt: skip


@pytest.fixture(params=["registers", "scratch"])
def activations(request, monkeypatch):
    """Where perceptrons keep their activations."""
    from fastmeta.kernels import tiles

    monkeypatch.setattr(tiles, "streams", lambda *_: request.param == "scratch")
    return request.param


@pytest.mark.parametrize("name", perceptrons.CASES)
@pytest.mark.usefixtures("activations")
def test_perceptrons(name):
    with watching() as watch:
        perceptron(name)
    assert watch.races == set()


def test_wide_perceptrons():
    """In scratch, by several blocks."""
    with watching() as watch:
        run(mlp(3, 70, 80, 5), classification(3, tasks=2, support=9, query=5, classes=5), inner_loss=F.cross_entropy)
    assert watch.races == set()


@pytest.fixture
def by_layer(monkeypatch):
    """Single layers, whatever the size."""
    from fastmeta.engine.backends import triton as triton_backend

    monkeypatch.setattr(triton_backend, "fits_loop", lambda *_: False)


@pytest.mark.parametrize("name", perceptrons.LAYER_OPTIONS)
@pytest.mark.usefixtures("by_layer")
def test_layers(name):
    with watching() as watch:
        perceptron(name)
    assert watch.races == set()


@pytest.mark.usefixtures("by_layer")
def test_layers_of_several_tiles():
    with watching() as watch:
        run(mlp(3, 67, 5), classification(3, tasks=2, support=9, query=70, classes=5), inner_loss=F.cross_entropy)
    assert watch.races == set()


@pytest.fixture
def small_tiles(monkeypatch):
    """So that there are several programs of everything, and shares of every sum."""
    from fastmeta.kernels import tiles

    monkeypatch.setattr(tiles, "PIXEL_VALUES", 512)
    monkeypatch.setattr(tiles, "ROW_BLOCK", 64)


def convolutional(model, batch, **options):
    with watching() as watch:
        run(model, batch, **({"inner_loss": F.cross_entropy, "inner_steps": 1} | options))
    assert watch.races == set()
    return watch


@pytest.mark.parametrize("name", convolutions.OPTIONS)
@pytest.mark.usefixtures("small_tiles")
def test_convolutions(name):
    model, options = convolutions.OPTIONS[name]
    convolutional(model(), convolutions.batch_of(2, 6, 5, support=3, query=1), **options)


@pytest.mark.parametrize("name", convolutions.SHAPES)
@pytest.mark.usefixtures("small_tiles")
def test_shapes_of_convolutions(name):
    image, support, layers = convolutions.SHAPES[name]
    model = convolutions.net(*layers(), image=image)
    convolutional(model, convolutions.batch_of(*image, support=support, query=2, tasks=1))


def convolutions_with_a_head_of_several_programs():
    model = convolutions.net(*convolutions.conv(2, 32, pool=torch.nn.MaxPool2d(2)), image=(2, 6, 6), classes=5)
    batch = convolutions.batch_of(2, 6, 6, tasks=1, support=5, query=3, classes=5)
    run(model, batch, inner_loss=F.cross_entropy, inner_steps=1)


def test_the_mean_over_more_tasks_than_a_launch_takes():
    from fastmeta.kernels.mlp import mean_over_tasks

    with watching() as watch:
        mean_over_tasks(torch.randn(300, 132), torch.randn(300), torch.ones(300, dtype=torch.uint8))
    assert watch.races == set()


def rows_by_several_programs():
    from fastmeta.kernels import tiles
    from fastmeta.kernels.launch import launch
    from fastmeta.kernels.mean_over_tasks import inputs_kernel

    x, bad = torch.randn(2, 500), torch.zeros(2)
    programs, options = tiles.row_shares(500, 2)
    assert programs > 2
    parts = torch.zeros(2, options["SHARES"])
    launch(inputs_kernel, (programs,), x, bad, parts, torch.zeros(2, dtype=torch.int32), **options)


BARRIERS = {
    "adjoint_kernel": ("registers", lambda: perceptron("sinusoid")),
    "as in `weight_back`": ("registers", lambda: perceptron("sinusoid")),
    "v is read below": ("scratch", lambda: perceptron("adam")),
    "mlp_scratch.layer_forward:": ("scratch", lambda: perceptron("sinusoid")),
    "mlp_scratch.layer_backward:": ("scratch", lambda: perceptron("sinusoid")),
    "also: all have read λ": ("scratch", lambda: perceptron("sinusoid")),
    "the next layer's cotangents overwrite": ("scratch", lambda: perceptron("sinusoid")),
    "dx comes back in another arrangement": ("registers", convolutions_with_a_head_of_several_programs),
    "total.arrived_last": ("registers", rows_by_several_programs),
}
"""Of the barriers that order accesses, by what stands in their line or before it, a meta-step that needs them."""


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.usefixtures("small_tiles")
def test_a_barrier_that_is_taken_out_leaves_a_race(monkeypatch, barrier):
    from fastmeta.kernels import tiles

    place, meta_step = BARRIERS[barrier]
    monkeypatch.setattr(tiles, "streams", lambda *_: place == "scratch")
    with watching(without=barrier) as watch:
        meta_step()
    assert watch.taken_out > 0
    assert watch.races
