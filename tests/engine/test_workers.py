"""Slices of tasks side by side: the same results as one after the other, and threads left as they were."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_same_step, classification, mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.backends import torch_ops as backends
from fastmeta.engine.backends.workers import side_by_side

pytestmark = pytest.mark.usefixtures("three_threads")


def test_calls_run_on_several_threads_of_one_thread_each():
    meet = threading.Barrier(3, timeout=60)  # passes only where three calls run at once

    def call(i):
        meet.wait()
        return i, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    results = side_by_side([lambda i=i: call(i) for i in range(6)])
    assert [i for i, *_ in results] == list(range(6))
    assert {(threads, grad) for _, threads, grad, _ in results} == {(1, False)}
    assert len({ident for *_, ident in results}) == 3
    assert torch.get_num_threads() == 3
    assert torch.is_grad_enabled()


def test_an_error_reaches_the_caller_after_all_calls_ended():
    done = []

    def call(i):
        if i == 3:
            raise ValueError("the fourth call")
        done.append(i)

    with pytest.raises(ValueError, match="the fourth call"):
        side_by_side([lambda i=i: call(i) for i in range(5)])
    assert sorted(done) == [0, 1, 2, 4]
    assert torch.get_num_threads() == 3


def conv(algorithm, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(), nn.Flatten(),
        nn.Linear(48, 3),
    ).double()  # fmt: skip
    return algorithm(model, inner_optimizer=fastmeta.SGD(lr=0.3), inner_steps=2, **options)


@pytest.fixture
def small_slices_count(monkeypatch):
    monkeypatch.setattr(backends, "_COMPILED_THREAD_BYTES", 0)
    monkeypatch.setattr(backends, "_EAGER_THREAD_BYTES", 0)


@pytest.mark.usefixtures("small_slices_count")
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, fastmeta.Reptile])
def test_a_meta_step_side_by_side(algorithm):
    batch = classification(1, 4, 4, tasks=7)
    learner = conv(algorithm)
    got = assert_same_step(learner, batch, conv(algorithm, task_chunk=7), tolerance=1e-12)
    assert got.losses.shape == (7,)
    backend = learner._plans.latest
    assert backend is not None
    assert backend.threads == 3
    assert [s.stop - s.start for s in backend.slices] == [2, 2, 3]


@pytest.mark.usefixtures("small_slices_count")
@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["eager", "compiled"])
def test_learners_side_by_side(options):
    batch = classification(1, 4, 4, tasks=4)
    gradients = []
    for learner in (conv(fastmeta.MAML, **options), conv(fastmeta.MAML, task_chunk=4)):
        outputs = learner.adapt(batch.support_x, batch.support_y)(batch.query_x)
        outputs.square().sum().backward()
        gradients.append({name: p.grad for name, p in learner.module.named_parameters()})
    assert relative(*gradients) < 1e-12


def test_little_work_stays_on_one_thread():
    learner = conv(fastmeta.MAML)
    learner(*classification(1, 4, 4, tasks=7))
    backend = learner._plans.latest
    assert backend is not None
    assert backend.threads == 1
    assert len(backend.slices) == 1


@pytest.mark.parametrize("kind, limit", [("conv", "_EAGER_CONVOLUTION_SLICE_BYTES"), ("mlp", "_EAGER_SLICE_BYTES")])
def test_slices_hold_so_many_bytes_one_after_another(kind, limit, monkeypatch):
    monkeypatch.setattr(backends, limit, 0)
    monkeypatch.setattr(backends, "_EAGER_NODE_BYTES", 0)
    if kind == "conv":
        make, batch = partial(conv, fastmeta.MAML), classification(1, 4, 4, tasks=7)
    else:
        make, batch = partial(fastmeta.MAML, mlp(2, 5, 1), inner_loss=F.mse_loss), regression(tasks=7)
    learner = make()
    assert_same_step(learner, batch, make(task_chunk=7), tolerance=1e-12)
    backend = learner._plans.latest
    assert backend is not None
    assert backend.threads == 1
    assert [s.stop - s.start for s in backend.slices] == [1] * 7


@pytest.mark.usefixtures("small_slices_count")
def test_opaque_ops_are_called_by_one_thread_at_a_time():
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardshrink(), nn.Linear(3, 1)).double()
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss, backend="torch")
    learner(*regression(tasks=6))
    backend = learner._plans.latest
    assert backend is not None
    assert backend.threads == 1
