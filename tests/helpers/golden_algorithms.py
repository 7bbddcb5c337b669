"""Holds a learner against a golden case of `tests/golden/algorithms`, in every way of running it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import ALGORITHMS, cases, names

WAYS: dict[str, dict[str, Any]] = {
    "eager": {"backend": "torch"},
    "recompute": {"backend": "torch", "memory": "recompute"},
    "chunked": {"backend": "torch", "task_chunk": 2},
    "reference": {"backend": "reference"},
    "compiled": {"backend": "torch", "compile": True},
}


def golden_in_every_way(*patterns, compiled=()):
    """Every case of the patterns in every way; compiled, which takes seconds, those that are named."""
    found = [name for pattern in patterns for name in names(pattern, ALGORITHMS)]
    assert found
    return pytest.mark.parametrize(
        "name, way", [(name, way) for name in found for way in WAYS if way != "compiled" or name in compiled]
    )


def case_of(name):
    (case,) = cases(name, ALGORITHMS)
    return case


def batch_of(case):
    return [case[name].clone() for name in ("support_x", "support_y", "query_x", "query_y")]


def deviation(got, want):
    """‖got − want‖ / ‖want‖ over all tensors together."""
    assert got.keys() == want.keys()
    difference = torch.cat([(got[name].double() - want[name]).flatten() for name in want])
    return (difference.norm() / torch.cat([x.flatten() for x in want.values()]).norm()).item()


def check_case(case, learner, batch, *, names=None, tolerance=1e-10):
    """Loss, meta-gradient and fast weights of a meta-step, and the gradient by `adapt` and an outer loss of the user's.

    `names`: the case's name of each parameter; None: as the module has it.
    """
    names = {name: name for name in case.params} if names is None else names

    def grads():
        found = {theirs: learner.module.get_parameter(ours).grad.clone() for ours, theirs in names.items()}
        learner.zero_grad()
        return found

    out = learner(*batch)
    assert abs(out.loss.item() - case["loss"].item()) < tolerance
    torch.testing.assert_close(out.task_losses.detach().double(), case["task_losses"], rtol=tolerance, atol=tolerance)
    out.loss.backward()
    assert deviation(grads(), case.grad) < tolerance, "gradient"
    learners = learner.adapt(*batch[:2])
    ours = {theirs: ours for ours, theirs in names.items()}
    phi = {name: learners.parameters()[ours.get(name, name)] for name in case.adapted}
    assert deviation(phi, case.adapted) < tolerance
    outputs = learners(batch[2])
    losses = [learner.outer_loss(outputs[t], batch[3][t]) for t in range(len(outputs))]
    torch.stack(losses).mean().backward()
    assert deviation(grads(), case.grad) < tolerance, "gradient by adapt"
