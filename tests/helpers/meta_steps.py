"""What the tests of whole meta-steps share: meta-batches, a step's results by name, and how they are compared."""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta.engine.session import PlanCache


class Batch(NamedTuple):
    """Support and query sets of all tasks."""

    support_x: Any
    support_y: Any
    query_x: Any
    query_y: Any


class Results(NamedTuple):
    """What one meta-step gave."""

    losses: torch.Tensor
    grads: dict[str, torch.Tensor]
    outputs: Any


def mlp(*widths, activation=nn.Tanh):
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def regression(tasks=3, support=7, query=5, features=2, outputs=1, dtype=torch.float64):
    def samples(n):
        return torch.randn(tasks, n, features, dtype=dtype), torch.randn(tasks, n, outputs, dtype=dtype)

    return Batch(*samples(support), *samples(query))


def classification(*shape, tasks=2, support=5, query=3, classes=3, dtype=torch.float64):
    """Images or features of a `shape`; labels that are unlike one another."""

    def samples(n):
        labels = torch.stack([torch.randperm(max(n, classes))[:n] % classes for _ in range(tasks)])
        return torch.randn(tasks, n, *shape, dtype=dtype), labels

    return Batch(*samples(support), *samples(query))


def step(learner, batch):
    """Task losses, meta-gradient by name and outputs of one meta-step."""
    learner.zero_grad()
    out = learner(*batch)
    out.loss.backward()
    grads = {name: p.grad.clone() for name, p in learner.module.named_parameters() if p.grad is not None}
    learned = learner.learned
    if (
        isinstance(learned, fastmeta.PerParameter) and learned.values.grad is not None
    ):  # whose row is padded as its dtype wants it
        grads |= {f"learned.{name}": g.clone() for name, g in learned.named(learned.values.grad).items()}
    elif learned is not None and not isinstance(learned, fastmeta.PerParameter):
        grads |= {f"learned.{name}": p.grad.clone() for name, p in learned.named_parameters() if p.grad is not None}
    return Results(out.task_losses.detach(), grads, out.outputs)


def with_backend(learner, backend, **options):
    """A learner of the same module, learned rule and settings, run in the plainest way of another backend."""
    other = copy.copy(learner)
    other._plans = PlanCache()
    for name, value in ({"compile_step": False, "memory": "save", "task_chunk": None} | options).items():
        setattr(other, name, value)
    other.backend = backend
    return other


def relative(got, expected):
    """‖got − expected‖ / ‖expected‖ of all tensors of two dicts, or of two tensors."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        got, expected = (torch.cat([x.double().flatten() for x in d.values()]) for d in (got, expected))
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_close(got, expected, tolerance):
    """Every tensor of a dict within a relative tolerance; one that is rounding alone is measured by the largest."""
    assert got.keys() == expected.keys()
    largest = max(x.norm() for x in expected.values())
    assert largest > 0
    for name, want in expected.items():
        error = (got[name].double() - want.double()).norm()
        # a bias before a batch norm has no effect: its gradient is rounding
        assert error <= tolerance * max(want.norm(), 1e-4 * largest), (name, (error / want.norm()).item())


def assert_same_step(learner, batch, other, tolerance):
    """Two learners of one module give the same losses, outputs and meta-gradient; returns the first's."""
    got, want = step(learner, batch), step(other, batch)
    assert relative(got.losses, want.losses) < tolerance
    assert_close(got.grads, want.grads, tolerance)
    return got


def assert_agrees_with_reference(
    model, batch, *, loss=F.cross_entropy, tolerance=1e-8, algorithm=fastmeta.MAML, **options
):
    """The torch backend against one task at a time by autograd; the exact gradient against the first-order one.

    Without its second derivatives MAML's gradient is FOMAML's, so the two must be far apart for this to say anything.
    """
    options = {"inner_optimizer": fastmeta.SGD(lr=0.3), "inner_steps": 2} | options
    learner = algorithm(model, inner_loss=loss, backend="torch", **options)
    got = assert_same_step(learner, batch, with_backend(learner, "reference"), tolerance)
    if algorithm is fastmeta.MAML:
        first = step(fastmeta.FOMAML(model, inner_loss=loss, backend="reference", **options), batch)
        assert relative(first.grads, got.grads) > 1e3 * tolerance
        assert relative(first.grads, got.grads) > 1e-2
    return learner
