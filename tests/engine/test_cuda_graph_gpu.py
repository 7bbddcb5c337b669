"""Meta-steps recorded and replayed by a GPU: `pytest -m gpu`."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from graphed import ALGORITHMS, assert_equal, assert_trains_alike, gradient, pair, replaying
from meta_steps import Batch, classification, mlp, regression
from torch import nn

import fastmeta

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(batch):
    return Batch(*(x.cuda().float() if x.is_floating_point() else x.cuda() for x in batch))


@pytest.mark.parametrize("options", [
    {}, pytest.param({"compile": True}, marks=pytest.mark.gpu_full), {"outer_loss": F.l1_loss},
    {"inner_optimizer": fastmeta.Adam(lr=0.01)},
], ids=lambda options: next(iter(options), "plain"))  # fmt: skip
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_graph_on_a_gpu_trains_as_the_ordinary_learner_does(algorithm, backend, options):
    learners = pair(algorithm, mlp(2, 16, 1).float(), device="cuda", backend=backend, **options)
    assert_trains_alike(learners, [on_gpu(regression()) for _ in range(5)], exactly=False)
    assert "CUDA graphs: 1 recorded" in learners[0].explain()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_graph_on_a_gpu_takes_images_and_labels(backend):
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16, track_running_stats=False), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip
    learners = pair("maml", model, device="cuda", inner_loss=F.cross_entropy, backend=backend)
    assert_trains_alike(learners, [on_gpu(classification(1, 8, 8)) for _ in range(4)], exactly=False)
    assert "CUDA graphs: 1 recorded" in learners[0].explain()


def test_a_graph_on_a_gpu_draws_dropout_anew():
    model = nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.Linear(9, 1))
    learners = pair("maml", model, device="cuda")
    assert_trains_alike(learners, [on_gpu(regression())] * 4, exactly=False)
    assert "CUDA graphs: 1 recorded" in learners[0].explain()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_meta_step_on_a_gpu_never_makes_the_host_wait(backend):
    """With labels, so that their check is among it; neither as a graph nor without one."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    learners = pair("maml", model, device="cuda", inner_loss=F.cross_entropy, backend=backend)
    batch = on_gpu(classification(4))
    for learner in learners:
        replaying(learner, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            learner(*batch).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert "CUDA graphs: 1 recorded" in learners[0].explain()


def test_a_loss_on_a_gpu_that_waits_is_named_by_its_line():
    def loss(outputs, y):
        torch.ones((), device="cuda").item()
        return (outputs - y).square().mean()

    learners = pair("maml", mlp(2, 5, 1).float(), device="cuda", inner_loss=loss)
    with pytest.warns(UserWarning, match=rf"{__file__}:\d+ makes the host wait for the GPU"):
        assert_trains_alike(learners, [on_gpu(regression()) for _ in range(4)], exactly=False)
    assert torch.rand(2, device="cuda").isfinite().all(), "the generator is in order"


def test_task_losses_on_a_gpu_are_differentiable_until_the_next_replay():
    learners, batch = pair("maml", mlp(2, 5, 1).float(), device="cuda"), on_gpu(regression())
    replaying(learners[0], on_gpu(regression()))
    for learner in learners:
        learner(*batch).task_losses.square().sum().backward()
    assert_equal(gradient(learners[0]), gradient(learners[1]), exactly=False)
    stale = learners[0](*batch)
    learners[0](*batch)
    with pytest.raises(RuntimeError, match="differentiate task_losses before the next call"):
        stale.task_losses.sum().backward()


def test_a_parameter_that_moves_on_a_gpu_is_recorded_anew():
    learner, ordinary = pair("maml", mlp(2, 5, 1).float(), device="cuda")
    replaying(learner, on_gpu(regression()))
    for either in (learner, ordinary):
        weight = either.module[0].weight
        weight.data = weight.data.clone() + 1.0
    for _ in range(3):
        batch = on_gpu(regression())
        assert_equal(learner(*batch).loss, ordinary(*batch).loss, exactly=False)
    assert "CUDA graphs: 2 recorded" in learner.explain()
