"""The query runs the module as it is at the query, whatever it was in `adapt` and whatever shapes had been seen."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_close, regression, relative
from torch import nn
from torch.func import functional_call

import fastmeta

pytestmark = pytest.mark.filterwarnings("ignore:BatchNorm1d '1' tracks running statistics")


class Functional(nn.Module):
    """Dropout as a function, and an attribute that is annealed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(2, 8), nn.Linear(8, 1), {"factor": 1.0}

    def forward(self, x):
        return self.b(F.dropout(torch.tanh(self.a(x)), 0.5, self.training)) * self.scale["factor"]


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        self[1].running_mean.fill_(0.5)
        self[1].running_var.fill_(2.0)


def frozen(m):
    next(m.parameters()).requires_grad_(False)


def another_mean(m):
    m[1].running_mean = torch.full((4,), 0.7, dtype=torch.float64)
    m.eval()


# name -> (the module, what happens to it between `adapt` and the query)
CHANGES = {
    "eval, with nn.Dropout": (
        lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)), nn.Module.eval,
    ),
    "eval, with F.dropout": (Functional, nn.Module.eval),
    "eval, with batch norm": (Normed, nn.Module.eval),
    "eval and a buffer replaced": (Normed, another_mean),
    "an attribute": (lambda: Functional().eval(), lambda m: m.scale.update(factor=3.0)),
    "a frozen parameter": (lambda: Functional().eval(), frozen),
}  # fmt: skip


def query(learner, model, batch, change):
    """Outputs and gradients of the script."""
    model.zero_grad()
    torch.manual_seed(1)
    learners = learner.adapt(*batch[:2])
    phi = {name: p.detach() for name, p in learners.parameters().items()}
    change(model)
    outputs = learners(batch[2])
    F.mse_loss(outputs, batch[3]).backward()
    return outputs.detach(), phi, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("seen", [False, True], ids=["new shapes", "known shapes"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_query_runs_the_module_as_it_is_then(name, seen):
    make, change = CHANGES[name]
    batch, model = regression(), make().double()
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1))
    if seen:
        learner.adapt(*batch[:2])(batch[2])
    outputs, phi, grads = query(learner, model, batch, change)
    want = torch.stack(
        [functional_call(model, {n: p[t] for n, p in phi.items()}, (batch[2][t],)) for t in range(3)]
    ).detach()
    assert relative(outputs, want) < 1e-12
    assert grads.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    fresh = make().double()  # whose shapes nobody has seen
    fresh.load_state_dict(model.state_dict())
    again = fastmeta.MAML(fresh, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1))
    _, _, as_new = query(again, fresh, batch, change)
    assert_close(grads, as_new, 1e-12)


@pytest.mark.parametrize("name", ["an attribute", "eval, with batch norm", "eval and a buffer replaced"])
def test_gradients_are_the_references(name):
    make, change = CHANGES[name]
    batch, model, found = regression(), make().double(), []
    for backend in ("torch", "reference"):
        mine = copy.deepcopy(model)
        learner = fastmeta.MAML(mine, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1), backend=backend)
        found.append(query(learner, mine, batch, change))
    assert relative(found[0][0], found[1][0]) < 1e-12
    assert_close(found[0][2], found[1][2], 1e-11)


def test_train_mode_after_adapting_in_eval_mode_draws_new_numbers():
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double().eval()
    learner, batch = fastmeta.MAML(model, inner_loss=F.mse_loss), regression()
    learners = learner.adapt(*batch[:2])
    plain = learners(batch[2])
    model.train()
    first, second = learners(batch[2]), learners(batch[2])
    assert relative(first, plain) > 1e-3
    assert relative(first, second) > 1e-3


def test_adapting_further_runs_the_module_as_it_is_then():
    batch, model = regression(), CHANGES["an attribute"][0]().double()
    learner, results = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1)), []
    for learner.backend in ("torch", "reference"):
        model.scale["factor"] = 1.0
        learners = learner.adapt(*batch[:2])
        model.scale["factor"] = 3.0
        results.append(learners.adapt_further(*batch[:2]).parameters())
    model.scale["factor"] = 1.0
    unchanged = learner.adapt(*batch[:2]).adapt_further(*batch[:2]).parameters()
    assert relative(*results) < 1e-12
    assert relative(unchanged, results[1]) > 1e-3


def test_parameters_that_are_no_longer_there_are_an_error():
    batch, model = regression(), nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)).double()
    learners = fastmeta.MAML(model, inner_loss=F.mse_loss).adapt(*batch[:2])
    model[0], model[1] = nn.Linear(2, 5).double(), nn.Linear(5, 1).double()
    with pytest.raises(ValueError, match=r"no longer those that were adapted: \['0\.bias', '0\.weight', '1\.weight'\]"):
        learners(batch[2])
    with pytest.raises(ValueError, match="Adapt again"):
        learners.adapt_further(*batch[:2])
