"""Gradients of inputs and targets, and tasks that diverge, which reach nobody."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interface import (
    WAYS,
    check_as_reference,
    conv,
    every_way,
    grads_of,
    learner_of,
)
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta


@every_way
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
def test_gradients_of_data(algorithm, which, way):
    learner, batch = learner_of(algorithm, inner_batch_size=4, **WAYS[way]), regression(tasks=5, support=7)
    data = [batch[i].requires_grad_() for i in which]
    check_as_reference(learner, batch, data=data)


def test_gradients_of_images_by_support_statistics():
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    data = [batch.support_x.requires_grad_(), batch.query_x.requires_grad_()]
    learner = learner_of(model=conv(), inner_loss=F.cross_entropy, bn_statistics="support", inner_steps=2)
    check_as_reference(learner, batch, data=data, loss=F.cross_entropy)


def test_an_encoder_outside_of_the_module_learns():
    encoder = nn.Linear(3, 2).double()
    raw = regression(features=3)
    learner = learner_of()
    results = []
    for learner.backend in ("torch", "reference"):
        encoder.zero_grad()
        learner.zero_grad()
        out = learner(encoder(raw[0]), raw[1], encoder(raw[2]), raw[3])
        out.loss.backward()
        results.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    assert relative(*results) < 1e-12
    assert results[0]["weight"].abs().min() > 0


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("bad", [(1,), (0, 2), (0, 1, 2)])
def test_tasks_that_diverge_reach_no_gradient(backend, bad):
    class Partial(fastmeta.MAML):
        def adapts(self, name):
            return not name.startswith("2")

    learner = learner_of(Partial, inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1)), backend=backend)
    batch = regression(tasks=3)
    good = [t for t in range(3) if t not in bad]
    batch.support_x[list(bad), 0] = torch.inf
    data = [x.requires_grad_() for x in batch]
    with pytest.warns(RuntimeWarning, match="non-finite"):
        got = grads_of(learner, batch, data)
    got.pop("losses")
    by_adapt = None
    if good:
        with pytest.warns(RuntimeWarning, match="non-finite"):
            learners = learner.adapt(*batch[:2])
        learner.zero_grad(set_to_none=False)
        outputs = learners(batch[2])
        F.mse_loss(outputs[good], batch[3][good]).backward()
        by_adapt = {name: p.grad.clone() for name, p in learner.named_parameters()}
    assert all(x.isfinite().all() for x in got.values())
    if not good:
        assert all((x == 0).all() for x in got.values())
        with pytest.warns(RuntimeWarning, match="non-finite"):
            assert learner(*batch).loss.item() == 0.0
        return
    rest = [x.detach()[good].requires_grad_() for x in batch]
    want = grads_of(learner, rest, rest)
    for i in range(4):
        assert (got[f"data {i}"][list(bad)] == 0).all()
        got[f"data {i}"] = got[f"data {i}"][good]
    want.pop("losses")
    assert relative(got, want) < 1e-12
    names = [name for name, _ in learner.named_parameters()]
    assert relative(by_adapt, {name: want[name] for name in names}) < 1e-12
