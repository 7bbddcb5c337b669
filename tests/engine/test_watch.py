"""What a plan depends on is noticed when it changes between two calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_close, regression, relative, step
from torch import nn

import fastmeta
from fastmeta.engine import recent
from fastmeta.engine.watch import Watch


class Tempered(nn.Module):
    """Reads a plain attribute of its own."""

    def __init__(self):
        super().__init__()
        self.linear, self.temperature = nn.Linear(2, 1), 1.0

    def forward(self, x):
        return self.linear(x) / self.temperature


def make(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), middle, nn.Linear(5, 1)).double()


def swap(model):
    model[1] = nn.Sigmoid()


CHANGES = {
    "an activation's slope": (lambda: make(nn.LeakyReLU(0.1)), lambda m: setattr(m[1], "negative_slope", 0.7)),
    "a norm's eps": (lambda: make(nn.LayerNorm(5)), lambda m: setattr(m[1], "eps", 0.5)),
    "a submodule": (lambda: make(nn.Tanh()), swap),
    "a frozen parameter": (lambda: make(nn.Tanh()), lambda m: m[0].weight.requires_grad_(False)),
    "the user's own number": (lambda: Tempered().double(), lambda m: setattr(m, "temperature", 3.0)),
    "a tied parameter": (lambda: make(nn.Linear(5, 5)), lambda m: setattr(m[1], "bias", m[0].bias)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_calls_is_noticed(name):
    build, change = CHANGES[name]
    batch, model = regression(), build()
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.3))
    before = step(learner, batch)
    change(model)
    got = step(learner, batch)
    want = step(fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.3)), batch)
    assert got.losses.equal(want.losses)
    assert_close(got.grads, want.grads, 1e-14)
    assert relative(got.losses, before.losses) > 1e-3 or got.grads.keys() != before.grads.keys()


NOTICED = {
    **{name: change for name, (_, change) in CHANGES.items()},
    "a dropout's rate": lambda m: setattr(m[1], "p", 0.6),
    "eval mode": nn.Module.eval,
    "another type in the same parameters": nn.Module.float,
    "a buffer": lambda m: m[0].register_buffer("more", torch.ones(1)),
    "a hook": lambda m: m[0].register_forward_hook(lambda *_: None),
    "an attribute of its own": lambda m: setattr(m[1], "new", 3),
    "an attribute that went": lambda m: delattr(m[0], "in_features"),
}


@pytest.mark.parametrize("name", NOTICED)
def test_a_watch_gives_the_last_survey_until_something_changes(name):
    model = CHANGES[name][0]() if name in CHANGES else make(nn.Dropout(0.1))
    watch = Watch()
    before = watch.look(model)
    assert watch.look(model) is before
    assert Watch().look(model).key == before.key
    NOTICED[name](model)
    after = watch.look(model)
    assert after.key != before.key
    assert after.key == Watch().look(model).key
    assert watch.look(model) is after


def test_a_watch_notices_another_module():
    watch, first, second = Watch(), make(nn.Tanh()), make(nn.Tanh())
    assert watch.look(first).key != watch.look(second).key
    assert watch.look(second).trainable[0] is second[0].weight


def test_parameters_come_in_the_modules_order_and_tied_ones_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU())
    model[2].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(Watch().look(model).trainable, wanted, strict=True))


def test_old_programs_are_forgotten(monkeypatch):
    monkeypatch.setattr(recent, "MOST", 3)
    learner = fastmeta.MAML(Tempered().double(), inner_loss=F.mse_loss)
    batch = regression()
    for temperature in (1.0, 2.0, 3.0, 4.0, 1.0):
        learner.module.temperature = temperature
        learner(*batch)
        assert len(learner._plans._programs) <= 3
