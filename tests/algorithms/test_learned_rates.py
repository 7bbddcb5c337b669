"""Learned and scheduled inner rates, every way against one task at a time by autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from interface import (
    RULES,
    WAYS,
    check_as_reference,
    every_way,
    grads_of,
    learner_of,
    net,
    vary,
)
from meta_steps import mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.optim import Rates


class OneRate(Rates):
    """A parametrisation of a user's own: one positive rate for all."""

    def build(self, rows, steps):
        self.log = nn.Parameter(torch.tensor(-2.0, dtype=rows.dtype))

    def forward(self, rows, steps):
        return self.log.exp().view(1, 1)


class OneRateAStep(Rates):
    def build(self, rows, steps):
        self.values = nn.Parameter(torch.linspace(0.05, 0.2, steps, dtype=rows.dtype).view(-1, 1))

    def forward(self, rows, steps):
        return self.values[:steps]


RATES = {
    "per parameter": lambda: fastmeta.PerParameter(0.1),
    "per tensor and step": lambda: fastmeta.PerLayerPerStep(0.1),
    "per module and step": lambda: fastmeta.PerLayerPerStep(0.1, by="module"),
    "one, positive": OneRate,
    "one a step": OneRateAStep,
}


@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rates", RATES)
def test_learned_rates(algorithm, rule, rates):
    learner = learner_of(algorithm, inner_optimizer=RULES[rule](RATES[rates]()))
    if hasattr(learner.learned, "names"):
        vary(learner.learned)
    got = check_as_reference(learner, regression())
    assert any(name.startswith("learned.") for name in got)


@every_way
def test_learned_rates_in_every_way(way):
    learner = learner_of(
        inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1)), inner_batch_size=3, **WAYS[way]
    )
    vary(learner.learned)
    check_as_reference(learner, regression(tasks=5, support=7))


def test_rates_are_parameters_of_the_learner_that_an_optimiser_moves_and_a_file_holds():
    learner = learner_of(inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)))
    batch = regression()
    groups = [{"params": learner.module.parameters()}, {"params": learner.learned.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    before = learner.learned.values.detach().clone()
    learner(*batch).loss.backward()
    optimizer.step()
    assert not torch.equal(learner.learned.values, before)
    other = learner_of(inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.5)))
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.learned.values, learner.learned.values)
    assert relative(grads_of(other, batch), grads_of(learner, batch)) == 0.0
    copied = copy.deepcopy(learner)
    assert copied.learned is copied.inner_optimizer.lr
    assert relative(grads_of(copied, batch), grads_of(learner, batch)) == 0.0


def test_rates_saved_in_one_dtype_are_loaded_in_another():
    """Rows are padded to whole 16 bytes, so that those of float32 and float64 have other lengths."""
    narrow, wide = (
        fastmeta.MetaSGD(mlp(2, 9, 7, 1).to(dtype), lr=(0.1, 0.2), inner_loss=nn.functional.mse_loss)
        for dtype in (torch.float32, torch.float64)
    )
    assert narrow.learned.values.shape != wide.learned.values.shape
    for saved, into in ((narrow, wide), (wide, narrow)):
        with torch.no_grad():
            saved.learned.values.uniform_(0.1, 0.2)
        into.load_state_dict(saved.state_dict())
        for name, rates in saved.learned.named().items():
            assert torch.equal(into.learned.named()[name].float(), rates.float())
    other = fastmeta.MetaSGD(mlp(2, 9, 8, 1), inner_loss=nn.functional.mse_loss)
    with pytest.raises(RuntimeError, match=r"size mismatch for learned\.values"):
        narrow.load_state_dict(other.state_dict(), strict=False)


def test_constant_rates_are_plain_sgd():
    batch, model = regression(), net()
    plain = grads_of(learner_of(model=model), batch)
    for rates in (fastmeta.PerParameter(0.2), fastmeta.PerLayerPerStep(0.2)):
        got = grads_of(learner_of(model=model, inner_optimizer=fastmeta.SGD(lr=rates)), batch)
        assert relative({name: got[name] for name in plain}, plain) < 1e-14


@pytest.mark.parametrize("lr", [(0.3, 0.2, 0.1), lambda k: 0.3 - 0.1 * k], ids=["numbers", "function"])
@pytest.mark.parametrize("rule", RULES)
def test_a_schedule_of_the_inner_rate(rule, lr):
    learner = learner_of(inner_optimizer=RULES[rule](lr))
    got = check_as_reference(learner, regression())
    constant = learner_of(model=learner.module, inner_optimizer=RULES[rule](0.3))
    assert relative(grads_of(constant, regression()), got) > 1e-3


def test_wrong_rates_are_named():
    short = learner_of(inner_optimizer=fastmeta.SGD(lr=(0.1, 0.2)))
    with pytest.raises(ValueError, match="lr holds a step size for each of 2 inner steps, and 3 are asked for"):
        short(*regression())
    learner = learner_of(inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1)))
    with pytest.raises(ValueError, match=r"PerLayerPerStep has rates for 3 inner steps, .* step 5 was asked for"):
        learner.adapt(*regression()[:2], steps=5)
    with pytest.raises(ValueError, match="lr of step 1 must be a number"):
        learner_of(inner_optimizer=fastmeta.SGD(lr=lambda k: -0.1 * k))(*regression())
    rates = fastmeta.PerParameter(0.1)
    learner_of(inner_optimizer=fastmeta.SGD(lr=rates))
    with pytest.raises(ValueError, match=r"PerParameter was made for the fast weights .* rates of its own"):
        learner_of(model=mlp(2, 1), inner_optimizer=fastmeta.SGD(lr=rates))

    class Odd(OneRate):
        def forward(self, rows, steps):
            return self.log.expand(7, 7)

    with pytest.raises(ValueError, match=r"Odd\.forward must give rates \[3 or 1, .*\], got \[7, 7\]"):
        learner_of(inner_optimizer=fastmeta.SGD(lr=Odd()))(*regression())


def test_annealing_a_step_size_plans_and_compiles_nothing(monkeypatch):
    from fastmeta.program.program import Program

    plans = []
    plan = Program.plan
    monkeypatch.setattr(Program, "plan", lambda *args, **options: plans.append(1) or plan(*args, **options))
    learner, batch = learner_of(), regression()
    first = grads_of(learner, batch)
    made = len(plans)
    assert made > 0
    for lr in (0.19, 0.18, (0.1, 0.05, 0.01)):
        learner.inner_optimizer = fastmeta.SGD(lr=lr)
        again = grads_of(learner, batch)
        assert relative(again, first) > 1e-4
    # one number a step is another shape of tensor, the numbers themselves are not looked at
    learner.inner_optimizer = fastmeta.SGD(lr=(0.3, 0.2, 0.1))
    learner(*batch)
    assert len(plans) == 2 * made


def test_what_is_kept_is_bounded():
    from fastmeta.engine import recent

    learner = learner_of(inner_steps=1)
    for support in range(1, recent.MOST + 6):
        learner(*regression(tasks=1, support=support, query=1))
    assert len(learner._plans._backends) == recent.MOST
