"""Compiled code reads the tensors that a loss or module holds at each call, and says what it cannot take."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_close, regression, relative, step, with_backend
from torch import nn

import fastmeta
from fastmeta.engine.backends.compiled import Compiled


class Solves(nn.Module):
    """Tensors made in the forward, and one held by the module."""

    def __init__(self):
        super().__init__()
        self.linear, self.temperature = nn.Linear(2, 3), torch.tensor(2.0, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x) @ torch.eye(3, dtype=x.dtype) / self.temperature + torch.arange(3)


def labelled():
    batch = regression(outputs=3)
    return batch._replace(support_y=batch.support_y.argmax(-1), query_y=batch.query_y.argmax(-1))


def weights(*values):
    return torch.tensor(values, dtype=torch.float64)


class Boxed:
    """A loss with a tensor in a list."""

    def __init__(self):
        self.box = [torch.tensor(0.1, dtype=torch.float64)]

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets) + self.box[0] * outputs.square().mean()


CHANGES = {
    "class weights in place": (
        lambda: nn.CrossEntropyLoss(weight=weights(1, 3, 0.5)), lambda _, f: f.weight.mul_(weights(1, 4, 0.1)), 1,
    ),
    "class weights replaced": (
        lambda: nn.CrossEntropyLoss(weight=weights(1, 3, 0.5)), lambda _, f: setattr(f, "weight", weights(5, 1, 1)), 2,
    ),
    "a tensor in a list in place": (Boxed, lambda _, f: f.box[0].fill_(2.0), 1),
    "a tensor in a list replaced": (Boxed, lambda _, f: f.box.__setitem__(0, torch.tensor(2.0)), 2),
    "a number": (lambda: nn.CrossEntropyLoss(label_smoothing=0.3), lambda _, f: setattr(f, "label_smoothing", 0.1), 2),
    "a module's plain tensor in place": (lambda: F.cross_entropy, lambda m, _: m.temperature.fill_(0.5), 1),
}  # fmt: skip


def check(name):
    """The number of graphs that were made."""
    make, change, _ = CHANGES[name]
    loss, model, batch = make(), Solves().double(), labelled()
    learner = fastmeta.MAML(model, inner_loss=loss, inner_optimizer=fastmeta.SGD(lr=0.3), compile=True)
    before = step(learner, batch)
    change(model, loss)
    got, want = step(learner, batch), step(with_backend(learner, "reference"), batch)
    assert relative(got.losses, want.losses) < 1e-12
    assert_close(got.grads, want.grads, 1e-11)
    assert relative(got.losses, before.losses) > 1e-3


@pytest.mark.parametrize("name", CHANGES)
def test_captured_tensors_are_read_at_each_call(name, traced):
    check(name)
    assert len(traced) == CHANGES[name][2]


def test_captured_tensors_through_the_compiler():
    check("class weights in place")


def test_compiling_again_and_again_is_warned_of_once(traced):
    loss, batch = nn.CrossEntropyLoss(label_smoothing=0.0), labelled()
    learner = fastmeta.MAML(nn.Linear(2, 3).double(), inner_loss=loss, compile=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for count in range(8):
            loss.label_smoothing = count / 100
            learner(*batch)
    assert ["Pass it as a tensor" in str(w.message) for w in found] == [True]
    assert len(traced) == 8


def test_errors_of_the_compiler_say_what_was_compiled():
    def meta_step(x):
        return x * x.sum().item()

    with pytest.raises(RuntimeError, match=r"PyTorch cannot compile the meta-step \(.*Use compile=False") as error:
        Compiled(meta_step).prepare(torch.ones(2))
    assert error.value.__cause__ is not None


def test_errors_in_what_a_user_gave_pass_as_they_are():
    def meta_step(_):
        raise ValueError("inner_loss must return a scalar")

    with pytest.raises(ValueError, match=r"^inner_loss must return a scalar$"):
        Compiled(meta_step).prepare(torch.ones(2))
