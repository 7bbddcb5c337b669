"""Clipped inner gradients: as torch clips them, and differentiated through."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from interface import (
    RULES,
    check_as_reference,
    grads_of,
    learner_of,
    net,
)
from meta_steps import regression, relative
from torch import nn

import fastmeta


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, fastmeta.Reptile])
def test_clipped_inner_gradients(algorithm, rule):
    batch = regression(tasks=4)
    free = learner_of(algorithm, inner_optimizer=RULES[rule](0.2))
    learner = learner_of(algorithm, free.module, inner_optimizer=RULES[rule](0.2), inner_clip_norm=0.3)
    got = check_as_reference(learner, batch, adapt=algorithm is not fastmeta.Reptile)
    assert relative(grads_of(free, batch), got) > 1e-3
    loose = learner_of(algorithm, free.module, inner_optimizer=RULES[rule](0.2), inner_clip_norm=1e6)
    assert relative(grads_of(loose, batch), grads_of(free, batch)) < 1e-13


def test_clipping_is_torch_s_own():
    model, batch = net(), regression(tasks=1)
    learner = learner_of(model=model, inner_clip_norm=0.3, inner_steps=1)
    phi = learner.adapt(*batch[:2]).parameters()
    alone = copy.deepcopy(model)
    F.mse_loss(alone(batch.support_x[0]), batch.support_y[0]).backward()
    assert nn.utils.clip_grad_norm_(alone.parameters(), 0.3) > 0.3
    torch.optim.SGD(alone.parameters(), lr=0.2).step()
    for name, p in alone.named_parameters():
        torch.testing.assert_close(phi[name][0], p, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_zero_is_not_clipped_to_nan():
    x = torch.zeros(2, 3, 2, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    y = torch.zeros(2, 3, 1, dtype=torch.float64)
    learner = learner_of(model=model, inner_clip_norm=0.1)
    out = learner(x, y, x + 1.0, y)
    out.loss.backward()
    assert model.weight.grad.isfinite().all()
