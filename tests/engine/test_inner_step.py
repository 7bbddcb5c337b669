"""A module that reads in a buffer `inner_step` in which inner step it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interface import WAYS, check_as_reference, every_way, grads_of
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta
from fastmeta import reference
from fastmeta.engine import objective
from fastmeta.engine.adjoint import Implicit
from fastmeta.engine.prior import Proximal
from fastmeta.models import PerStepBatchNorm
from fastmeta.program.program import Program

K = 3


class Scaled(nn.Module):
    """Two layers, with a scale for every step between them that all tasks share, and one that they move."""

    def __init__(self, steps=K):
        super().__init__()
        self.first, self.head = nn.Linear(2, 4), nn.Linear(4, 1)
        self.shared = nn.Parameter(1.0 + 0.3 * torch.randn(steps, 4))
        self.moved = nn.Parameter(1.0 + 0.3 * torch.randn(steps, 4))
        self.register_buffer("inner_step", torch.eye(steps)[0])

    def read(self, values):
        return self.inner_step @ values

    def forward(self, x):
        return self.head(torch.tanh(self.first(x) * self.read(self.shared)) * self.read(self.moved))


class Opaque(Scaled):
    """Reads its step in a call that has no op."""

    def read(self, values):
        return torch.linalg.solve(torch.eye(4, dtype=values.dtype), self.inner_step @ values)


class Branching(Scaled):
    """Reads its step as a number, which only a run of the module itself can."""

    def read(self, values):
        return values[int(self.inner_step.argmax().item())]


def learner_of(model=None, algorithm=fastmeta.MAML, **options):
    class Some(algorithm):
        def adapts(self, name):
            return name != "shared"

    options = {"inner_loss": F.mse_loss, "inner_steps": K, "inner_optimizer": fastmeta.SGD(lr=0.2)} | options
    return Some((Scaled() if model is None else model).double(), **options)


def by_hand(model, batch, steps, first_order=False):
    """The query losses of a plain loop that sets the buffer itself."""
    losses = []
    for x, y, qx, qy in zip(*batch, strict=True):
        phi = dict(model.named_parameters())
        for k in range(steps):
            held = {"inner_step": torch.eye(len(model.inner_step), dtype=x.dtype)[k]}
            loss = F.mse_loss(torch.func.functional_call(model, phi | held, (x,)), y)
            names = [n for n in phi if n != "shared"]
            grads = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=not first_order)
            phi = phi | {n: phi[n] - 0.2 * g for n, g in zip(names, grads, strict=True)}
        held = {"inner_step": torch.eye(len(model.inner_step), dtype=x.dtype)[max(steps - 1, 0)]}
        losses.append(F.mse_loss(torch.func.functional_call(model, phi | held, (qx,)), qy))
    return torch.stack(losses)


@pytest.mark.parametrize("steps", [0, 1, K])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_step_reads_its_number_and_queries_that_of_the_last(backend, steps):
    batch = regression()
    learner = learner_of(backend=backend, inner_steps=steps)
    losses = by_hand(learner.module, batch, steps)
    names, params = zip(*learner.module.named_parameters(), strict=True)
    grads = torch.autograd.grad(losses.mean(), params)
    got = grads_of(learner, batch)
    want = {"losses": losses.detach()} | {f"module.{n}": g for n, g in zip(names, grads, strict=True)}
    assert relative(got, want) < 1e-13
    assert learner.module.inner_step.tolist() == [1.0, 0.0, 0.0]


@every_way
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("kind", [Scaled, Opaque])
def test_as_the_reference(kind, algorithm, way):
    check_as_reference(learner_of(kind(), algorithm, **WAYS[way]), regression())


def test_losses_along_the_way():
    class Weighing(fastmeta.MAML):
        def weights(self, steps):
            return [0.1, 0.2, 0.3, 0.4]

    check_as_reference(learner_of(algorithm=Weighing), regression(), adapt=False)


@pytest.mark.proof
def test_what_is_compiled_reads_it_too(traced):
    learner, batch = learner_of(compile=True), regression()
    got = grads_of(learner, batch)
    learner.backend = "reference"
    assert relative(got, grads_of(learner, batch)) < 1e-12
    assert traced


def test_a_module_that_runs_task_by_task():
    batch = regression()
    branching = learner_of(Branching())
    got = grads_of(branching, batch)
    assert "task by task under plain autograd" in branching.explain()
    plain = Scaled()
    plain.load_state_dict(branching.module.state_dict())
    assert relative(got, grads_of(learner_of(plain), batch)) < 1e-12


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_adaptation_that_goes_on(backend):
    batch, learner = regression(), learner_of(backend=backend)
    whole = learner.adapt(*batch[:2], steps=3)
    parts = learner.adapt(*batch[:2], steps=1).adapt_further(*batch[:2], steps=2)
    assert relative(parts.parameters(), whole.parameters()) < 1e-13
    assert relative(parts(batch.query_x), whole(batch.query_x)) < 1e-13
    out = learner(*batch)
    assert relative(whole(batch.query_x), out.outputs) < 1e-13
    alone = whole.module(1)
    assert alone.inner_step.tolist() == [0.0, 0.0, 1.0]
    assert relative(alone(batch.query_x[1]), out.outputs[1]) < 1e-13


def test_support_loss_at_the_last_fast_weights_reads_the_last_place(monkeypatch):
    class Minimum(fastmeta.MAML):
        adjoint = Implicit(2.0, 30)
        prior = Proximal(2.0)

    batch, learner = regression(), learner_of(algorithm=Minimum, backend="torch")
    got = grads_of(learner, batch)
    read = objective.Context.reading
    asked: list[int] = []

    def clipped(self, step, plan):
        asked.append(step)
        return read(self, min(step, K - 1), plan)

    monkeypatch.setattr(objective.Context, "reading", clipped)
    assert relative(grads_of(learner, batch), got) == 0.0
    assert max(asked) == K


def test_one_plan_serves_all_steps(monkeypatch):
    planned = []
    plan = Program.plan
    monkeypatch.setattr(Program, "plan", lambda self, *a, **o: planned.append(1) or plan(self, *a, **o))
    learner = learner_of(backend="torch")
    learner(*regression())
    assert len(planned) == 2  # the support and the query set
    assert learner.explain().count("inner step: the model reads it in inner_step") == 1


def test_batch_norm_by_the_support_set():
    model = nn.Sequential(nn.Linear(4, 5), PerStepBatchNorm(5, K), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        model[1].weight.add_(0.3 * torch.randn_like(model[1].weight))
    learner = learner_of(model, inner_loss=F.cross_entropy, bn_statistics="support")
    check_as_reference(learner, classification(4), loss=F.cross_entropy)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_more_steps_than_it_has_places_for(backend):
    batch = regression()
    message = "buffer 'inner_step', which has places for 3, and 4 inner steps were asked for"
    with pytest.raises(ValueError, match=message):
        learner_of(backend=backend, inner_steps=4)(*batch)
    learner = learner_of(backend=backend)
    with pytest.raises(ValueError, match=message):
        learner.adapt(*batch[:2], steps=2).adapt_further(*batch[:2], steps=2)
    with pytest.raises(ValueError, match=message):
        reference.adapt(
            learner.module, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1), steps=4,
            support_x=batch.support_x, support_y=batch.support_y,
        )  # fmt: skip


def test_other_buffers_of_the_name_are_the_users_own():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(2, 1)
            self.register_buffer("inner_step", torch.tensor(7))

        def forward(self, x):
            return super().forward(x) * self.inner_step

    learner = fastmeta.MAML(Counting().double(), inner_loss=F.mse_loss, inner_steps=9, backend="torch")
    assert learner.module.inner_step.item() == 7
    assert torch.isfinite(learner(*regression()).loss)
    assert "inner step:" not in learner.explain()


def test_kernels_do_not_take_it():
    with pytest.raises(RuntimeError, match="reads in which inner step it is"):
        learner_of(backend="triton").float()(*regression(dtype=torch.float32))


def test_the_step_matters(monkeypatch):
    """Neither a step that is always the first, nor a query pass that reads the next one, passes for right."""
    batch, learner = regression(), learner_of(backend="torch")
    right = grads_of(learner, batch)
    at = objective.inner_step_at
    with monkeypatch.context() as patch:
        patch.setattr(objective, "inner_step_at", lambda like, step: at(like, 0))
        assert relative(grads_of(learner, batch), right) > 1e-2
    reading = objective.Context.at

    def next_step(self, step, plan, *, query=False):  # noqa: ARG001  as it is called
        return reading(self, min(step, K - 1), plan)

    learner.inner_steps = 2
    right = grads_of(learner, batch)
    monkeypatch.setattr(objective.Context, "at", next_step)
    assert relative(grads_of(learner, batch), right) > 1e-2
