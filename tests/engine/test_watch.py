"""What a plan depends on is noticed when it changes between two calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_close, regression, relative, step
from torch import nn

import fastmeta
from fastmeta.engine import recent, state
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


HOOKS = {
    "a backward hook": lambda m, f: m.register_full_backward_hook(f),
    "a backward pre-hook": lambda m, f: m.register_full_backward_pre_hook(f),
    "a forward hook": lambda m, f: m.register_forward_hook(f),
    "a forward pre-hook": lambda m, f: m.register_forward_pre_hook(f),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_are_noticed_when_they_come_go_or_are_others(name):
    model, watch = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), Watch()
    keys = [watch.look(model).key]
    handle = HOOKS[name](model[0], lambda *_: None)
    keys.append(watch.look(model).key)
    handle.remove()
    again = watch.look(model).key
    HOOKS[name](model[0], lambda *_: None)
    keys.append(watch.look(model).key)
    assert again == keys[0]
    assert len(set(keys)) == 3


class Reads(nn.Module):
    """Reads attributes in a function of its own."""

    def __init__(self, read, **attributes):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(2, 5), nn.Linear(5, 1), read
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.b(self.a(x)) * self.read(self)


def test_a_forward_of_the_object_itself_is_noticed():
    model, watch = Reads(lambda _: 1.0), Watch()
    before = watch.look(model).key
    model.forward = lambda x: model.b(model.a(x))
    assert watch.look(model).key != before


def test_equal_values_in_other_objects_are_the_same_state():
    model, watch = Reads(lambda m: m.c["x"], c={"x": 1.0, "y": [float("nan")]}), Watch()
    first = watch.look(model)
    model.c = {"x": 1.0, "y": [float("nan")]}
    assert watch.look(model) is first
    model.c = {"x": 1, "y": [float("nan")]}
    assert watch.look(model) is not first


class Raises:
    def __getattr__(self, name):
        raise RuntimeError(name)

    def __eq__(self, other):
        raise RuntimeError("no equality")

    __hash__ = None


def test_objects_that_raise_or_hold_themselves_count():
    loop: dict = {}
    loop["self"] = loop
    chain: list = []
    for _ in range(5000):
        chain = [chain]
    model = Reads(lambda m: 1.0 if (m.c, m.d, m.e) else 2.0, c=Raises(), d=loop, e=chain)
    watch = Watch()
    first = watch.look(model)
    assert watch.look(model) is first
    model.c.more = 1
    assert watch.look(model).key != first.key


def test_more_values_than_are_looked_into_count_as_one(monkeypatch):
    monkeypatch.setattr(state, "MOST", 100)
    model, watch = Reads(lambda m: m.c[0], c=[*map(float, range(1000))]), Watch()
    first = watch.look(model)
    model.c = list(model.c)
    assert watch.look(model).key != first.key
    model.a.weight.requires_grad_(False)
    assert len(watch.look(model).trainable) == 3


def test_a_users_own_python_module_counts(tmp_path, monkeypatch):
    (tmp_path / "settings_of_a_test.py").write_text("scale = 1.0\nunread = 0\ndef read():\n    return scale\n")
    monkeypatch.syspath_prepend(tmp_path)
    import settings_of_a_test as settings  # pyright: ignore[reportMissingImports]

    for read in (lambda _: settings.scale, lambda _: settings.read()):
        model, watch = Reads(read), Watch()
        settings.scale = 1.0
        first = watch.look(model)
        settings.unread += 1
        assert watch.look(model) is first
        settings.scale = 2.0
        assert watch.look(model).key != first.key
