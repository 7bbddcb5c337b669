"""What the tests of the open interface share: learners that say something of their own, held to the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from meta_steps import mlp, relative
from torch import nn

import fastmeta

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "recompute": {"memory": "recompute"},
    "chunked": {"task_chunk": 2},
}
every_way = pytest.mark.parametrize("way", WAYS)


def grads_of(learner, batch, data=()):
    """Losses and the gradients of all parameters of a learner and of some data, by a meta-step."""
    learner.zero_grad(set_to_none=False)
    for x in data:
        x.grad = None
    out = learner(*batch)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    of_data = {f"data {i}": torch.zeros_like(x) if x.grad is None else x.grad.clone() for i, x in enumerate(data)}
    return {"losses": out.task_losses.detach()} | found | of_data


def adapted_grads(learner, batch, loss=F.mse_loss):
    """The same by `adapt` and an outer loss of the user's, which weighs tasks unequally."""
    learner.zero_grad(set_to_none=False)
    learners = learner.adapt(batch[0], batch[1])
    outputs = learners(batch[2])
    losses = torch.stack([(t + 1.0) * loss(outputs[t], batch[3][t]) for t in range(len(outputs))])
    losses.sum().backward()
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    return {"losses": losses.detach()} | found


def check_as_reference(learner, batch, *, data=(), tolerance=1e-10, loss=F.mse_loss, adapt=True):
    """The torch backend against the reference, by both kinds of calls."""
    learner.backend = "torch"
    got = grads_of(learner, batch, data)
    by_adapt = adapted_grads(learner, batch, loss) if adapt else {}
    learner.backend = "reference"
    want = grads_of(learner, batch, data)
    for name, x in want.items():
        assert x.norm() > 0 or got[name].norm() == 0, name
    assert relative(got, want) < tolerance
    if adapt:
        assert relative(by_adapt, adapted_grads(learner, batch, loss)) < tolerance
    learner.backend = "torch"
    return got


def net():
    return mlp(2, 5, 4, 1)


def learner_of(algorithm=fastmeta.MAML, model=None, **options):
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.2), "inner_steps": 3} | options
    return algorithm(net() if model is None else model, **options)


def vary(rates):
    """Rates of many sizes, one of them zero and some negative."""
    with torch.no_grad():
        rates.values.add_(0.1 * torch.randn_like(rates.values))
        rates.values[0, 0] = 0.0


RULES = {
    "sgd": lambda lr: fastmeta.SGD(lr=lr),
    "nesterov": lambda lr: fastmeta.SGD(lr=lr, momentum=0.7, nesterov=True, weight_decay=0.1),
    "adam": lambda lr: fastmeta.Adam(lr=lr, eps=1e-3),
}


def sharing(*shared, algorithm=fastmeta.MAML):
    class Partial(algorithm):
        def adapts(self, name):
            return not name.startswith(shared)

    return Partial


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(),
        nn.AvgPool2d(2), nn.Conv2d(3, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def weighing(*weights, algorithm=fastmeta.MAML):
    class Weighing(algorithm):
        def weights(self, steps):
            return weights

    return Weighing
