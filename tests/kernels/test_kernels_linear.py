"""Perceptrons layer by layer on Triton kernels through the public API, against float64 truth."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import (
    DEVICE,
    assert_as_good_as_torch,
    check_any_order,
    check_golden,
    check_smoothed_and_ignored_labels,
    needs_kernels,
    results,
)
from meta_steps import classification, mlp, regression
from perceptrons import CASES, LAYER_OPTIONS, LAYER_SHAPES, float_batch, learner_of
from torch import nn

import fastmeta
from fastmeta.models import siren

pytestmark = needs_kernels


@pytest.fixture
def layer_by_layer(monkeypatch):
    """Runs what the loop would take layer by layer too."""
    from fastmeta.engine.backends import triton as triton_backend

    monkeypatch.setattr(triton_backend, "fits_loop", lambda *_: False)


@pytest.mark.usefixtures("poison", "layer_by_layer")
@pytest.mark.parametrize("name", LAYER_OPTIONS)
def test_regression(name):
    widths, activation, options = CASES[name]
    batch = regression(features=widths[0], outputs=widths[-1])
    assert_as_good_as_torch(mlp(*widths, activation=activation), batch, inner_loss=F.mse_loss, **options)


@pytest.mark.usefixtures("layer_by_layer")
@pytest.mark.golden("[!c]*")  # all but Conv4
def test_golden(golden):
    check_golden(golden)


@pytest.mark.usefixtures("poison", "layer_by_layer")
@pytest.mark.parametrize("name", LAYER_SHAPES)
def test_classification(name):
    shape = LAYER_SHAPES[name]
    assert_as_good_as_torch(mlp(*shape.widths), shape.batch(), **shape.options())


@pytest.mark.usefixtures("layer_by_layer")
def test_smoothed_and_ignored_labels():
    check_smoothed_and_ignored_labels()


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_siren(memory, width):
    """Sitzmann et al.'s network, also at full width, on a few of its pixels."""
    batch = regression(tasks=2, support=30, query=33, features=2, outputs=3)
    model = siren(width=width).double()
    options = {"inner_optimizer": fastmeta.SGD(lr=0.01), "inner_loss": F.mse_loss, "memory": memory}
    assert_as_good_as_torch(model, batch, **options)


@pytest.mark.usefixtures("poison", "layer_by_layer")
def test_bfloat16_stores_operands_in_bfloat16():
    """The error is that of 8 bits, neither none nor more; a linear layer without activation is stored as well."""
    batch = regression(features=3, outputs=2)
    model = nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    truth = results(model, batch, "reference", torch.float64, inner_loss=F.mse_loss)
    got = results(model, batch, "triton", torch.float32, inner_loss=F.mse_loss, precision="bfloat16")
    for name, want in truth.items():
        error = ((got[name].double().cpu() - want).norm() / want.norm()).item()
        assert 1e-5 < error < 3e-2, (name, error)


class BiasFirst(nn.Module):
    """A layer whose bias lies in front of its weight, and an activation behind the last layer."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(5))
        self.weight = nn.Parameter(torch.randn(5, 2))

    def forward(self, x):
        return torch.sigmoid(F.linear(x, self.weight, self.bias))


@pytest.mark.usefixtures("poison", "layer_by_layer")
def test_parameters_in_any_order_and_a_last_activation():
    assert_as_good_as_torch(BiasFirst().double(), regression(outputs=5), inner_loss=F.mse_loss)


@pytest.mark.usefixtures("layer_by_layer")
def test_gradients_of_learners():
    batch = float_batch()
    learner = learner_of()

    def gradient(learner):
        learner.zero_grad()
        (learner.adapt(*batch[:2])(batch[2]) ** 2).sum().backward()
        return torch.cat([p.grad.flatten() for p in learner.module.parameters()])

    got = gradient(learner)
    other = fastmeta.MAML(
        learner.module, inner_loss=F.mse_loss, inner_optimizer=learner.inner_optimizer, inner_steps=2, backend="torch"
    )
    torch.testing.assert_close(got, gradient(other), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("layer_by_layer")
def test_a_diverging_task_is_left_out():
    batch, learner = float_batch(), learner_of()
    batch[0][1] = float("nan")
    warned = pytest.warns(RuntimeWarning, match="non-finite") if DEVICE == "cpu" else contextlib.nullcontext()
    with warned:
        out = learner(*batch)
    assert out.finite.tolist() == [True, False, True]
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in learner.module.parameters())


@pytest.mark.usefixtures("layer_by_layer")
def test_programs_may_run_in_any_order_and_give_the_same_bits(monkeypatch):
    batch = classification(4, tasks=3, support=70, query=70, classes=3, dtype=torch.float32)
    learner = learner_of(inner_loss=F.cross_entropy)
    learner.module = mlp(4, 70, 3).float()
    check_any_order(monkeypatch, learner, batch)


def test_explain_names_the_kernels():
    learner = learner_of()
    learner.module = mlp(2, 129, 1).to(DEVICE, torch.float32)
    learner(*float_batch())
    assert learner.explain().count("Triton kernels of linear") == 8
