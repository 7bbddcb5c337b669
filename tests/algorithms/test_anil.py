"""ANIL and BOIL: which parameters are the head's, what the inner loop moves, and the golden cases' mistakes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from golden_cases import ALGORITHMS, LOSSES, cases, names
from interface import conv, grads_of, learner_of, net
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta

CASES = [*names("anil*", ALGORITHMS), *names("boil*", ALGORITHMS)]


def case_of(name):
    (case,) = cases(name, ALGORITHMS)
    return case


def meta_gradient(algorithm, case, dtype=torch.float64, **options):
    """The meta-gradient that an algorithm gives on a golden case, by parameter."""
    learner = algorithm(
        case.model().to(dtype), inner_optimizer=fastmeta.SGD(lr=case.spec["inner"]["lr"]), backend="torch",
        inner_loss=LOSSES[case.spec["loss"]], inner_steps=case.spec["steps"], **options,
    )  # fmt: skip
    batch = [case[name] for name in ("support_x", "support_y", "query_x", "query_y")]
    learner(*(x.to(dtype) if x.is_floating_point() else x for x in batch)).loss.backward()
    return {name: p.grad for name, p in learner.module.named_parameters()}


def named_algorithm(case):
    return {"anil": fastmeta.ANIL, "boil": fastmeta.BOIL}[case.spec["algorithm"]]


@pytest.mark.parametrize("name", CASES)
def test_golden_cases_in_float32(name):
    case = case_of(name)
    assert relative(meta_gradient(named_algorithm(case), case, torch.float32), case.grad) < 5e-5


@pytest.mark.parametrize("name", CASES)
def test_no_golden_case_passes_under_its_mistakes(name):
    case = case_of(name)
    without_hessian = relative(meta_gradient(named_algorithm(case), case, first_order=True), case.grad)
    everything = relative(meta_gradient(fastmeta.MAML, case), case.grad)
    assert without_hessian > 0.9 * case.spec["mistakes"]["hessian dropped"]
    assert everything > 0.9 * case.spec["mistakes"]["everything adapted"]


def test_detached_features_are_another_gradient():
    """The common mistake: the inner loop on features that are cut off from the body."""
    case = case_of("anil_mlp_k3")
    truth = meta_gradient(fastmeta.ANIL, case)

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.support = case.model(), case.spec["support"]

        def forward(self, x):
            features = self.net[:-1](x)
            return self.net[-1](features.detach() if len(x) == self.support else features)

    learner = fastmeta.ANIL(
        Detached(), inner_optimizer=fastmeta.SGD(lr=case.spec["inner"]["lr"]), inner_steps=3, backend="torch",
    )  # fmt: skip
    learner(*(case[name] for name in ("support_x", "support_y", "query_x", "query_y"))).loss.backward()
    got = {name.removeprefix("net."): p.grad for name, p in learner.module.named_parameters()}
    body = [name for name in truth if name not in case.spec["adapted"]]
    assert relative({name: got[name] for name in body}, {name: truth[name] for name in body}) > 1e-2


@pytest.mark.parametrize("model, names", [(net, ["0", "2", "4"]), (conv, ["0", "1", "4", "5", "8"])])
def test_anil_of_all_names_is_maml_to_the_bit(model, names):
    model = model()
    images = isinstance(model[0], nn.Conv2d)
    loss = F.cross_entropy if images else F.mse_loss
    batch = classification(1, 4, 4, support=6) if images else regression()
    anil, maml = learner_of(fastmeta.ANIL, model, head=names, inner_loss=loss), learner_of(model=model, inner_loss=loss)
    assert relative(grads_of(anil, batch), grads_of(maml, batch)) == 0.0


def test_boil_without_the_head_and_anil_of_the_rest_are_one():
    model, batch = net(), regression()
    boil, anil = learner_of(fastmeta.BOIL, model, head="4"), learner_of(fastmeta.ANIL, model, head=("0", "2"))
    assert relative(grads_of(boil, batch), grads_of(anil, batch)) == 0.0


@pytest.mark.parametrize("algorithm", [fastmeta.ANIL, fastmeta.BOIL])
def test_first_order_is_the_query_gradient_at_adapted_weights(algorithm):
    learner, batch = learner_of(algorithm, first_order=True, backend="torch"), regression(tasks=2)
    got = grads_of(learner, batch)
    want = {name: torch.zeros_like(p) for name, p in learner.module.named_parameters()}
    phis = learner.adapt(*batch[:2]).parameters()
    for t in range(2):
        adapted = dict(learner.module.named_parameters()) | {n: p[t].detach() for n, p in phis.items()}
        adapted = {name: p.detach().requires_grad_() for name, p in adapted.items()}
        loss = F.mse_loss(torch.func.functional_call(learner.module, adapted, batch.query_x[t]), batch.query_y[t])
        for name, g in zip(adapted, torch.autograd.grad(loss, list(adapted.values())), strict=True):
            want[name] += g / 2
    assert relative({name: got[f"module.{name}"] for name in want}, want) < 1e-12


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.header, self.scale = nn.Linear(3, 1), nn.Linear(2, 3), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * self.head(torch.tanh(self.header(x)))


def test_names_are_taken_by_their_parts():
    learner, batch = learner_of(fastmeta.ANIL, Named().double(), head="head"), regression()
    assert set(learner.adapt(*batch[:2]).parameters()) == {"head.weight", "head.bias"}
    learner = learner_of(fastmeta.ANIL, Named().double(), head=["head.bias", "scale"])
    assert set(learner.adapt(*batch[:2]).parameters()) == {"head.bias", "scale"}
    learner = learner_of(fastmeta.BOIL, Named().double(), head="header")
    assert set(learner.adapt(*batch[:2]).parameters()) == {"head.weight", "head.bias", "scale"}


def test_the_head_is_the_last_layer_that_trains():
    assert learner_of(fastmeta.ANIL).head == ("4",)
    model = conv()
    model[8].requires_grad_(False)
    assert learner_of(fastmeta.ANIL, model, inner_loss=F.cross_entropy).head == ("5",)
    normed = nn.Sequential(nn.Linear(2, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 1)))
    learner, batch = learner_of(fastmeta.ANIL, normed.double()), regression()
    assert learner.head == ("1",)
    assert len(learner.adapt(*batch[:2]).parameters()) == 3
    tied = nn.ModuleDict({"first": nn.Linear(2, 2), "middle": nn.Linear(2, 2), "last": nn.Linear(2, 2, bias=False)})
    tied["last"].weight = tied["first"].weight
    assert learner_of(fastmeta.ANIL, tied).head == ("middle",)  # the last layer has no name of its own


def test_the_head_is_said():
    learner, batch = learner_of(fastmeta.ANIL, backend="torch"), regression()
    assert "head='4'" in repr(learner)
    learner(*batch)
    first, *rest = learner.explain().splitlines()
    assert first.startswith("ANIL, 3 inner step(s)")
    assert first.endswith("head '4'")
    assert any("of which 39 are shared by all tasks" in line for line in rest)
    both = copy.deepcopy(learner_of(fastmeta.BOIL, head=("2", "4.bias")))
    assert "head='2', '4.bias'" in repr(both)
    assert relative(grads_of(copy.deepcopy(learner), batch), grads_of(learner, batch)) == 0.0


@pytest.mark.parametrize("algorithm, options, error, message", [
    (fastmeta.ANIL, {"head": "heads"}, ValueError, "got 'heads'; the parameters are"),
    (fastmeta.ANIL, {"head": ["4", "5"]}, ValueError, "head must name .* got '5'"),
    (fastmeta.ANIL, {"head": "4.weig"}, ValueError, "got '4.weig'"),
    (fastmeta.ANIL, {"head": ""}, ValueError, "got ''"),
    (fastmeta.ANIL, {"head": []}, ValueError, "at least one submodule or parameter"),
    (fastmeta.ANIL, {"head": 4}, TypeError, "head must be a name, several, or None"),
    (fastmeta.ANIL, {"head": [4]}, TypeError, "head must be a name, several, or None"),
    (fastmeta.ANIL, {"model": nn.Linear(2, 1)}, ValueError, "there is no body"),
    (fastmeta.BOIL, {"model": nn.Sequential(nn.Linear(2, 1))}, ValueError, "there is no body"),
    (fastmeta.BOIL, {"head": ("0", "2", "4")}, ValueError, "head must leave parameters that the inner loop of BOIL"),
    (fastmeta.ANIL, {"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
])  # fmt: skip
def test_wrong_heads(algorithm, options, error, message):
    with pytest.raises(error, match=message):
        learner_of(algorithm, **options)
