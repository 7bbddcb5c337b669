"""Whatever the forward or a loss reads beside its arguments may change between two calls, and the new value counts."""

from __future__ import annotations

import copy
import enum
import functools
import pickle
import types
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_close, regression, relative, step, with_backend
from torch import nn
from torch.nn.utils import parametrize

import fastmeta

SCALE, SETTINGS, TENSOR = 1.0, {"scale": 1.0}, torch.tensor(1.0, dtype=torch.float64)


@dataclass
class Record:
    scale: float = 1.0
    inner: dict = field(default_factory=dict)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Config:
    """As Hugging Face's: attributes go by other names than the ones asked for."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def __getattribute__(self, name):
        return super().__getattribute__({"factor": "scale"}.get(name, name))


class OfClass:
    scale = 1.0


class Kind(enum.Enum):
    SINE = 0
    TANH = 1


class Net(nn.Module):
    """A network whose outputs some function of the module scales."""

    def __init__(self, scale, **attributes):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 1)
        self.scale = types.MethodType(scale, self)
        for name, value in attributes.items():
            setattr(self, name, value)
        self.double()

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) * self.scale())


def through_helper(net):
    return net.setting["scale"]


def scaled(value, factor=1.0):
    return value * factor


def set_global(name, value):
    globals()[name] = value


def in_place(array, value):
    array[...] = value


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def closure():
    value = 1.0

    def read(_):
        return value

    def write(new):
        nonlocal value
        value = new

    return read, write


READ, WRITE = closure()
# name -> (the scale that the module applies, its attributes, the change between the calls)
IN_MODULE = {
    "a dictionary's entry": (lambda m: m.c["x"], lambda: {"c": {"x": 1.0}}, lambda m: m.c.update(x=3.0)),
    "a nested dictionary": (
        lambda m: m.c["x"]["y"], lambda: {"c": {"x": {"y": 1.0}}}, lambda m: m.c["x"].update(y=3.0),
    ),
    "another dictionary": (lambda m: m.c["x"], lambda: {"c": {"x": 1.0}}, lambda m: setattr(m, "c", {"x": 3.0})),
    "an ordered dictionary": (
        lambda m: m.c["x"], lambda: {"c": OrderedDict(x=1.0)}, lambda m: m.c.update(x=3.0),
    ),
    "a list's item": (lambda m: m.c[0], lambda: {"c": [1.0]}, lambda m: m.c.__setitem__(0, 3.0)),
    "a longer list": (lambda m: len(m.c), lambda: {"c": [0]}, lambda m: m.c.append(1)),
    "a tuple's list": (lambda m: m.c[0][0], lambda: {"c": ([1.0],)}, lambda m: m.c[0].__setitem__(0, 3.0)),
    "a set": (lambda m: 3.0 if "big" in m.c else 1.0, lambda: {"c": set()}, lambda m: m.c.add("big")),
    "1 and True in a set": (
        lambda m: 3.0 if any(x is True for x in m.c) else 1.0, lambda: {"c": {1}}, lambda m: setattr(m, "c", {True}),
    ),
    "a namespace": (
        lambda m: m.c.x, lambda: {"c": types.SimpleNamespace(x=1.0)}, lambda m: setattr(m.c, "x", 3.0),
    ),
    "a dataclass": (lambda m: m.c.scale, lambda: {"c": Record()}, lambda m: setattr(m.c, "scale", 3.0)),
    "a dataclass's dictionary": (
        lambda m: m.c.inner.get("x", 1.0), lambda: {"c": Record()}, lambda m: m.c.inner.update(x=3.0),
    ),
    "an object with slots": (lambda m: m.c.scale, lambda: {"c": Slotted(1.0)}, lambda m: setattr(m.c, "scale", 3.0)),
    "a config object": (lambda m: m.c.factor, lambda: {"c": Config(scale=1.0)}, lambda m: setattr(m.c, "scale", 3.0)),
    "a default of a class": (lambda m: m.c.scale, lambda: {"c": OfClass()}, lambda m: setattr(m.c, "scale", 3.0)),
    "an enum": (
        lambda m: 1.0 if m.c is Kind.SINE else 3.0, lambda: {"c": Kind.SINE}, lambda m: setattr(m, "c", Kind.TANH),
    ),
    "1 and True": (lambda m: 3.0 if m.c is True else 1.0, lambda: {"c": 1}, lambda m: setattr(m, "c", True)),
    "0.0 and -0.0": (
        lambda m: 3.0 if np.signbit(m.c) else 1.0, lambda: {"c": 0.0}, lambda m: setattr(m, "c", -0.0),
    ),
    "a dtype": (
        lambda m: torch.ones((), dtype=m.c).div(3), lambda: {"c": torch.float64},
        lambda m: setattr(m, "c", torch.float32),
    ),
    "an array changed in place": (lambda m: float(m.c[0]), lambda: {"c": np.ones(2)}, lambda m: in_place(m.c, 3.0)),
    "a number of NumPy's": (
        lambda m: float(m.c), lambda: {"c": np.float64(1)}, lambda m: setattr(m, "c", np.float64(3)),
    ),
    "a plain tensor replaced": (lambda m: m.c, lambda: {"c": tensor(1.0)}, lambda m: setattr(m, "c", tensor(3.0))),
    "a plain tensor changed in place": (lambda m: m.c, lambda: {"c": tensor(1.0)}, lambda m: m.c.fill_(3.0)),
    "a tensor in a list replaced": (
        lambda m: m.c[0], lambda: {"c": [tensor(1.0)]}, lambda m: m.c.__setitem__(0, tensor(3.0)),
    ),
    "a function": (lambda m: m.c(m), lambda: {"c": lambda _: 1.0}, lambda m: setattr(m, "c", lambda _: 3.0)),
    "a variable of a closure": (lambda m: m.c(m), lambda: {"c": READ}, lambda _: WRITE(3.0)),
    "a partial function": (
        lambda m: m.c(2.0), lambda: {"c": functools.partial(scaled, factor=1.0)},
        lambda m: m.c.keywords.update(factor=3.0),
    ),
    "a function's default": (
        lambda m: m.c(), lambda: {"c": lambda x=1.0: x}, lambda m: setattr(m.c, "__defaults__", (3.0,)),
    ),
    "another object's method": (
        lambda m: m.c(), lambda: {"c": types.MethodType(lambda r: r.scale, Record())},
        lambda m: setattr(m.c.__self__, "scale", 3.0),
    ),
    "a module in a list": (
        lambda m: m.c[0].negative_slope, lambda: {"c": [nn.LeakyReLU(1.0)]},
        lambda m: setattr(m.c[0], "negative_slope", 3.0),
    ),
    "an attribute by a made-up name": (
        lambda m: getattr(m, "".join(["sc", "le2"])), lambda: {"scle2": 1.0}, lambda m: setattr(m, "scle2", 3.0),
    ),
    "a helper's dictionary": (
        through_helper, lambda: {"setting": {"scale": 1.0}}, lambda m: m.setting.update(scale=3.0),
    ),
    "a global number": (lambda _: SCALE, dict, lambda _: set_global("SCALE", SCALE + 2.0)),
    "a global dictionary": (lambda _: SETTINGS["scale"], dict, lambda _: SETTINGS.update(scale=SETTINGS["scale"] + 2)),
    "a global tensor": (lambda _: TENSOR, dict, lambda _: set_global("TENSOR", TENSOR + 2.0)),
    "a global class's attribute": (
        lambda _: OfClass.scale, dict, lambda _: setattr(OfClass, "scale", OfClass.scale + 2.0),
    ),
}  # fmt: skip


class AnnealedLoss:
    """A loss that is an object."""

    def __init__(self):
        self.beta, self.unread = 0.1, 0

    def __call__(self, outputs, targets):
        return F.mse_loss(outputs, targets) + self.beta * outputs.square().mean()

    def method(self, outputs, targets):
        return self(outputs, targets)


@dataclass
class DataclassLoss:
    """One without a hash."""

    beta: float = 0.1

    def __call__(self, outputs, targets):
        return F.mse_loss(outputs, targets) + self.beta * outputs.square().mean()


class ModuleLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta, self.options = 0.1, {"power": 2}
        self.register_buffer("weight", tensor([1.0]))

    def forward(self, outputs, targets):
        return (self.weight * (outputs - targets) ** self.options["power"]).mean() + self.beta * outputs.square().mean()


def penalised(outputs, targets, *, beta=0.1, box=None):
    beta = beta if box is None else box["beta"]
    return F.mse_loss(outputs, targets) + beta * outputs.square().mean()


def by_global(outputs, targets):
    return SCALE * F.mse_loss(outputs, targets)


def copied(f):
    new = types.FunctionType(f.__code__, globals(), f.__name__, f.__defaults__, f.__closure__)
    new.__kwdefaults__ = dict(f.__kwdefaults__)
    return new


def by_closure():
    box = [0.1]

    def loss(outputs, targets):
        return penalised(outputs, targets, beta=box[0])

    loss.box = box
    return loss


IN_LOSS = {
    "an object's attribute": (AnnealedLoss, lambda f: setattr(f, "beta", 2.0)),
    "a dataclass's": (DataclassLoss, lambda f: setattr(f, "beta", 2.0)),
    "a method's object": (lambda: AnnealedLoss().method, lambda f: setattr(f.__self__, "beta", 2.0)),
    "a module's attribute": (ModuleLoss, lambda f: setattr(f, "beta", 2.0)),
    "a module's dictionary": (ModuleLoss, lambda f: f.options.update(power=4)),
    "a module's tensor replaced": (ModuleLoss, lambda f: setattr(f, "weight", tensor([3.0]))),
    "a module's tensor in place": (ModuleLoss, lambda f: f.weight.fill_(3.0)),
    "nn.HuberLoss": (lambda: nn.HuberLoss(delta=0.1), lambda f: setattr(f, "delta", 2.0)),
    "a known loss's reduction": (nn.MSELoss, lambda f: setattr(f, "reduction", "sum")),
    "a partial's keyword": (lambda: functools.partial(penalised, beta=0.1), lambda f: f.keywords.update(beta=2.0)),
    "a partial's dictionary": (
        lambda: functools.partial(penalised, box={"beta": 0.1}), lambda f: f.keywords["box"].update(beta=2.0),
    ),
    "a closure": (by_closure, lambda f: f.box.__setitem__(0, 2.0)),
    "a global": (lambda: by_global, lambda _: set_global("SCALE", SCALE + 2.0)),
    "a keyword's default": (
        lambda: copied(penalised), lambda f: setattr(f, "__kwdefaults__", {"beta": 2.0, "box": None}),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before():
    yield
    set_global("SCALE", 1.0)
    set_global("TENSOR", tensor(1.0))
    SETTINGS.update(scale=1.0)
    OfClass.scale = 1.0
    WRITE(1.0)


def assert_a_change_counts(learner, batch, change):
    """The call after the change is the reference's, and that is not the one before."""
    before = step(learner, batch)
    change()
    got, want = step(learner, batch), step(with_backend(learner, "reference"), batch)
    assert relative(got.losses, want.losses) < 1e-12
    assert_close(got.grads, want.grads, 1e-11)
    assert relative(got.losses, before.losses) > 1e-9


@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("name", IN_MODULE)
def test_what_a_forward_reads_may_change(name, algorithm):
    scale, attributes, change = IN_MODULE[name]
    model = Net(scale, **attributes())
    learner = algorithm(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.3))
    assert_a_change_counts(learner, regression(), lambda: change(model))


@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("name", IN_LOSS)
def test_what_a_loss_reads_may_change(name, algorithm):
    make, change = IN_LOSS[name]
    loss, model = make(), Net(lambda _: 1.0)
    learner = algorithm(model, inner_loss=loss, inner_optimizer=fastmeta.SGD(lr=0.05))
    assert_a_change_counts(learner, regression(), lambda: change(loss))


def test_an_outer_loss_of_its_own_may_change():
    loss, model = AnnealedLoss(), Net(lambda _: 1.0)
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss, outer_loss=loss)
    assert_a_change_counts(learner, regression(), lambda: setattr(loss, "beta", 2.0))


def test_label_smoothing_and_class_weights_may_change():
    batch = regression(outputs=3)
    batch = batch._replace(support_y=batch.support_y.argmax(-1), query_y=batch.query_y.argmax(-1))
    loss, model = nn.CrossEntropyLoss(label_smoothing=0.3), nn.Linear(2, 3).double()
    learner = fastmeta.MAML(model, inner_loss=loss, inner_optimizer=fastmeta.SGD(lr=0.3))
    assert_a_change_counts(learner, batch, lambda: setattr(loss, "label_smoothing", 0.0))
    assert_a_change_counts(learner, batch, lambda: setattr(loss, "weight", tensor([1.0, 5.0, 0.2])))
    assert_a_change_counts(learner, batch, lambda: loss.weight.mul_(tensor([3.0, 0.1, 1.0])))


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


@pytest.mark.parametrize(
    "change",
    [
        lambda m: parametrize.register_parametrization(m.b, "weight", Doubled()),
        lambda m: m.a.register_forward_hook(lambda _m, _x, y: 2 * y),
        lambda m: m.a.register_forward_pre_hook(lambda _m, x: (3 * x[0],)),
    ],
    ids=["a parametrisation", "a forward hook", "a forward pre-hook"],
)
def test_what_is_added_to_a_module_counts(change):
    model = Net(lambda _: 1.0)
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.3))
    assert_a_change_counts(learner, regression(), lambda: change(model))


def test_what_no_code_reads_makes_no_new_plan():
    loss, model = AnnealedLoss(), Net(lambda _: 1.0)
    learner = fastmeta.MAML(model, inner_loss=loss)
    batch, history = regression(), []
    model.unread, model.trainer = 0, types.SimpleNamespace(history=history)
    learner(*batch)
    for count in range(3):
        model.unread, loss.unread = count, count
        history.append(count)
        learner(*batch)
    assert len(learner._plans._programs) == len(learner._plans._backends) == 1


def test_learners_are_copied_and_pickled_with_their_state():
    loss = AnnealedLoss()
    learner = fastmeta.MAML(nn.Linear(2, 1).double(), inner_loss=loss)
    batch = regression()
    before = step(learner, batch)
    for other in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert step(other, batch).losses.equal(before.losses)
        other.inner_loss.beta = 2.0
        other.outer_loss.beta = 2.0
        assert relative(step(other, batch).losses, before.losses) > 1e-3
    assert step(learner, batch).losses.equal(before.losses)
