"""Learners: adapting further, the network of one task, what they and their outputs look like."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from interface import (
    conv,
    grads_of,
    learner_of,
    sharing,
)
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Identity, Unrolled

GOING_ON = {
    "sgd": lambda: fastmeta.SGD(lr=0.2),
    "schedule": lambda: fastmeta.SGD(lr=lambda k: 0.3 / (k + 1)),
    "nesterov": lambda: fastmeta.SGD(lr=0.1, momentum=0.7, nesterov=True),
    "adam": lambda: fastmeta.Adam(lr=0.1, eps=1e-3),
    "learned": lambda: fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1), momentum=0.5),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, sharing("2")], ids=["maml", "fomaml", "shared"])
@pytest.mark.parametrize("rule", GOING_ON)
def test_adapting_further_is_adapting_for_longer(rule, algorithm, backend):
    learner = learner_of(
        algorithm, inner_optimizer=GOING_ON[rule](), inner_steps=5, inner_batch_size=3, backend=backend, task_chunk=2
    )
    batch, results = regression(tasks=3, support=7), []
    for parts in ((5,), (2, 3), (1, 0, 2, 2)):
        learner.zero_grad(set_to_none=False)
        learners = learner.adapt(*batch[:2], steps=parts[0])
        for steps in parts[1:]:
            learners = learners.adapt_further(*batch[:2], steps=steps)
        F.mse_loss(learners(batch[2]), batch[3]).backward()
        grads = {name: p.grad.clone() for name, p in learner.named_parameters()}
        results.append(grads | {f"φ {name}": p.detach() for name, p in learners.parameters().items()})
    for got in results[1:]:
        assert relative(got, results[0]) < 1e-10


def test_adapting_further_on_other_data():
    learner, batch, other = learner_of(), regression(), regression(support=4)
    results = []
    for learner.backend in ("torch", "reference"):
        learner.zero_grad()
        learners = learner.adapt(*batch[:2]).adapt_further(*other[:2])
        F.mse_loss(learners(batch[2]), batch[3]).backward()
        results.append({name: p.grad.clone() for name, p in learner.named_parameters()})
    assert relative(*results) < 1e-11
    with pytest.raises(ValueError, match=r"support_x must hold the 3 tasks that the learners were adapted to, got 2"):
        learner.adapt(*batch[:2]).adapt_further(*regression(tasks=2)[:2])
    with torch.no_grad():
        assert not learner.adapt(*batch[:2]).adapt_further(*other[:2])(batch[2]).requires_grad


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
@pytest.mark.parametrize("shared", [("none",), ("0",)])
def test_the_module_of_a_task(bn_statistics, shared):
    model = conv()
    model[4].weight.requires_grad_(False)
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    learner = learner_of(sharing(*shared), model, inner_loss=F.cross_entropy, bn_statistics=bn_statistics)
    learners = learner.adapt(*batch[:2])
    outputs = learners(batch.query_x)
    before = copy.deepcopy(model.state_dict())
    for t in (0, 2, -1):
        alone = learners.module(t)
        torch.testing.assert_close(alone(batch.query_x[t]), outputs[t].detach(), rtol=1e-11, atol=1e-11)
        assert not any(p.grad is not None for p in alone.parameters())
        assert alone.state_dict().keys() >= before.keys()
        one_by_one = [alone(x.unsqueeze(0)) for x in batch.query_x[t]]
        if bn_statistics == "support":  # a sample's own result, whatever it comes with
            torch.testing.assert_close(torch.cat(one_by_one), outputs[t].detach(), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(IndexError, match="task must be one of the 3 adapted ones, from 0 to 2, got 3"):
        learners.module(3)


def test_a_module_that_cannot_hold_support_statistics_is_refused():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            return F.batch_norm(self.layer(x), None, None, training=True)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, x):
            return self.norm(torch.tanh(self.norm(self.layer(x))))

    batch = classification(2)
    for model, message in (
        (Functional(), "outside of nn.BatchNorm layers"),
        (Twice(), "'norm' is called more than once"),
    ):
        learner = learner_of(model=model.double(), inner_loss=F.cross_entropy, bn_statistics="support")
        learners = learner.adapt(*batch[:2])
        learners(batch.query_x)
        with pytest.raises(RuntimeError, match=message):
            learners.module(0)


def test_outputs_and_learners_have_a_short_repr():
    learner, batch = learner_of(), regression()
    out, learners = learner(*batch), learner.adapt(*batch[:2])
    assert len(repr(out)) < 200
    assert "3 tasks" in repr(out)
    assert "[3, 5, 1]" in repr(out)
    assert len(repr(learners)) < 200
    assert "3 tasks" in repr(learners)
    loss, losses, outputs, finite = out
    assert loss is out.loss
    assert (losses.shape, outputs.shape, finite.tolist()) == ((3,), (3, 5, 1), [True] * 3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the compiler's own looking
def test_a_compiler_of_the_user_s_breaks_its_graph_at_the_learner():
    """Conv2d has tuples among its attributes, which once broke the guards of torch.compile."""
    batch = [x.float() if x.is_floating_point() else x for x in classification(1, 4, 4, tasks=2, support=6, query=5)]
    learner = learner_of(model=conv().float(), inner_loss=F.cross_entropy, inner_steps=1)
    want = grads_of(learner, batch)

    def step(*batch):
        out = learner(*batch)
        return out.loss * 2.0

    def adapted(*batch):
        return F.cross_entropy(learner.adapt(*batch[:2])(batch[2]).flatten(0, 1), batch[3].flatten())

    for function, factor in (
        (torch.compile(learner, backend="eager"), 1.0),
        (torch.compile(step, backend="eager"), 2.0),
    ):
        learner.zero_grad()
        out = function(*batch)
        (out if isinstance(out, torch.Tensor) else out.loss).backward()
        got = {name: p.grad / factor for name, p in learner.named_parameters()}
        assert relative(got, {name: want[name] for name in got}) < 1e-5
    learner.zero_grad()
    torch.compile(adapted, backend="eager")(*batch).backward()
    got = {name: p.grad for name, p in learner.named_parameters()}
    assert relative(got, {name: want[name] for name in got}) < 1e-5


def test_every_rule_and_adjoint_is_hashable_and_equal_where_it_is_alike():
    for make in (
        lambda: fastmeta.SGD(lr=[0.1, 0.2]),
        lambda: fastmeta.Adam(lr=0.1, betas=[0.9, 0.99]),
        Unrolled,
        Identity,
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    assert fastmeta.SGD(lr=0.1).structure() == fastmeta.SGD(lr=0.7).structure()
    for a, b in itertools.combinations(
        (fastmeta.SGD(lr=0.1), fastmeta.SGD(lr=0.2), fastmeta.SGD(lr=0.1, momentum=0.1)), 2
    ):
        assert a != b
