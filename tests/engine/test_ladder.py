"""The ladder: what cannot run on all tasks at once runs task by task, and says why."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from interface import learner_of
from meta_steps import assert_close, assert_same_step, regression, relative, step, with_backend
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Adjoint
from fastmeta.program.program import Program
from fastmeta.program.trace import Untraceable

pytestmark = pytest.mark.proof


@pytest.fixture
def untraceable(monkeypatch):
    def plan(*_, **__):
        raise Untraceable("it calls torch.autograd.grad")

    monkeypatch.setattr(Program, "plan", plan)


@pytest.mark.usefixtures("untraceable")
def test_what_cannot_be_traced_runs_task_by_task():
    learner = learner_of()
    batch = regression()
    assert_same_step(learner, batch, with_backend(learner, "reference"), 1e-10)
    assert "task by task under plain autograd: it calls torch.autograd.grad" in learner.explain()
    learners = learner.adapt(*regression()[:2])
    assert learners(regression().query_x).shape == (3, 5, 1)


@pytest.mark.usefixtures("untraceable")
def test_an_implicit_meta_gradient_task_by_task():
    learner, batch = learner_of(fastmeta.IMAML), regression()
    assert_same_step(learner, batch, with_backend(learner, "reference"), 1e-10)
    assert "task by task under plain autograd" in learner.explain()
    assert learner.residual.shape == (3,)


@pytest.mark.usefixtures("untraceable")
def test_options_that_the_last_rung_does_not_have():
    batch = regression()
    with pytest.raises(RuntimeError, match=r'backend="triton".*\(it calls torch.autograd.grad\)'):
        learner_of(backend="triton")(*batch)
    with pytest.raises(ValueError, match=r"precision='bfloat16' needs a program.*it calls torch.autograd.grad"):
        learner_of(precision="bfloat16")(*batch)

    class OfTheUsers(Adjoint):
        def pull(self, *_, **__):
            raise AssertionError("nothing is run")

    class Otherwise(fastmeta.MAML):
        adjoint = OfTheUsers()

    with pytest.raises(ValueError, match=r"adjoint=.*needs a program.*it calls torch.autograd.grad"):
        learner_of(Otherwise)(*batch)
    for name in ("compile", "cuda_graph"):
        learner = learner_of(**{name: True})
        with pytest.warns(UserWarning, match=f"{name}=True does nothing here.*it calls torch.autograd.grad"):
            learner(*batch)
        for tasks in (2, 3):  # warnings are errors: nothing is said twice
            learner(*(x[:tasks] for x in batch))


class Slow(nn.Linear):
    """Waits in the second forward of a thread of that name, when it holds fast weights."""

    def __init__(self, forwards, holds):
        super().__init__(2, 1, dtype=torch.float64)
        self.count, self.holds = forwards.append, holds
        self.forwards = lambda: len(forwards)

    def forward(self, x):
        if threading.current_thread().name == "slow":
            self.count(1)
            if self.forwards() == 2:
                self.holds.set()
                time.sleep(0.5)
        return super().forward(x).tanh()


def test_nobody_looks_at_a_module_while_another_thread_runs_it_under_fast_weights():
    holds = threading.Event()
    model, batch = Slow([], holds), regression()
    make = partial(fastmeta.MAML, model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.3), inner_steps=2)
    want = step(make(backend="reference"), batch)
    thread = threading.Thread(target=lambda: make(backend="reference")(*batch), name="slow")
    learner = make(backend="torch")
    model.zero_grad()
    thread.start()
    assert holds.wait(10)
    out = learner(*batch)
    thread.join()
    out.loss.backward()
    assert relative(out.task_losses, want.losses) < 1e-12
    assert_close({name: p.grad for name, p in model.named_parameters()}, want.grads, 1e-10)


def test_outputs_that_are_no_numbers_or_none_at_all_are_compared_too():
    class Signs(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return y, y > 0, y[:, :0]

    model = Signs(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Tanh(), nn.Linear(3, 1)).double()

    def loss(outputs, y):
        return F.mse_loss(outputs[0], y)

    learner, batch = fastmeta.MAML(model, inner_loss=loss, bn_statistics="support", backend="torch"), regression()
    _, signs, nothing = learner(*batch).outputs
    assert signs.dtype == torch.bool
    assert nothing.shape == (*batch.query_y.shape[:2], 0)
    assert "own sweeps" in learner.explain()
