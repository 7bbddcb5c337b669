"""What a run of the module sees: hooks, outputs, counters, errors; and how explain() tells of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_agrees_with_reference, classification, mlp, regression, relative
from torch import nn

import fastmeta


def test_hooks_are_honoured_from_the_call_on_that_follows_them():
    model, batch = mlp(2, 5, 1), regression()
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1))
    plain = learner(*batch).outputs
    for layer in (model, model[0]):
        handle = layer.register_forward_hook(lambda _, __, y: 2 * y)
        assert relative(learner(*batch).outputs, plain) > 0.1
        assert_agrees_with_reference(model, batch, loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1))
        handle.remove()
    assert torch.equal(learner(*batch).outputs, plain)


def test_outputs_may_hold_none_and_nothing_else_but_tensors():
    class Pair(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x), "pair": (x, self.extra)}

    model, batch = Pair(2, 1).double(), regression()
    model.extra = None
    learner = assert_agrees_with_reference(
        model, batch, loss=lambda out, t: (out["y"] - t).square().mean() + out["pair"][0].mean()
    )
    out = learner(*batch).outputs
    assert out["pair"][1] is None
    assert torch.equal(out["pair"][0], batch.query_x)
    model = Pair(2, 1).double()
    model.extra = "text"
    with pytest.raises(TypeError, match="model must return tensors, or tuples or dicts of them, got a str"):
        fastmeta.MAML(model, inner_loss=lambda out, t: out["y"].mean())(*batch)


# --- explain --------------------------------------------------------------------------------------------------------


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12, 3), nn.LogSoftmax(-1),
    ).double()  # fmt: skip


def test_explain_says_op_by_op_how_a_model_runs():
    learner = fastmeta.MAML(conv_net(), inner_loss=F.cross_entropy, outer_loss=F.nll_loss, memory="recompute")
    before = learner.explain()
    assert "backend: torch (the module is on cpu, and Triton kernels run on GPUs)" in before
    assert "1 inner step(s), SGD(lr=0.01" in before
    assert "the plan is made for the shapes of the first batch" in before
    learner(*classification(2, 4, 4))
    after = learner.explain().splitlines()
    assert any("conv_block" in line and "own sweeps" in line for line in after)
    assert any("linear" in line and "own sweeps" in line for line in after)
    assert any("softmax" in line and "own sweeps" in line for line in after)
    assert "  loss: CrossEntropy, own sweeps" in after
    assert "  loss: nll_loss, opaque through torch.func: nll_loss_nd" in after
    assert "memory: recompute" in after
    assert not any("the plan is made for" in line for line in after)


def test_explain_says_what_is_opaque_why_a_module_runs_task_by_task_and_what_is_frozen():
    class Other(nn.Linear):
        def forward(self, x):
            return torch.fft.rfft(super().forward(x)).abs()

    model, batch = nn.Sequential(Other(4, 5), nn.Linear(3, 3)).double(), classification(4)
    learner = fastmeta.MAML(model, backend="torch")
    learner(*batch)
    assert "opaque through torch.func: no op of its own" in learner.explain()
    learner = fastmeta.MAML(model)
    learner(*batch)
    assert "would run through torch.func, slower than a loop over 2 task(s)" in learner.explain()

    class Hooked(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            y.register_hook(lambda g: 2 * g)
            return y

    learner = fastmeta.MAML(Hooked(4, 3).double())
    learner(*classification(4))
    assert "task by task under plain autograd: it registers a hook on a tensor" in learner.explain()
    model = mlp(4, 5, 3)
    model[0].requires_grad_(False)
    learner = fastmeta.MAML(model)
    learner(*classification(4))
    assert "constant (no trainable parameter before it)" in learner.explain()
    reference = fastmeta.MAML(model, backend="reference").explain()
    assert "backend: reference (asked for)" in reference
    assert "one task at a time" in reference


class Counting(nn.Linear):
    """Counts its forwards, and perhaps warms up."""

    def __init__(self, steps):
        super().__init__(2, 1)
        self.calls, self.steps = 0, steps

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * min(1.0, self.calls / self.steps)


def test_a_counter_in_forward_is_harmless_where_nothing_depends_on_it():
    model, batch = Counting(1).double(), regression()
    learner = assert_agrees_with_reference(model, batch, loss=F.mse_loss)
    assert model.calls == 0
    assert "own sweeps" in learner.explain()
    with pytest.raises(ValueError, match="changes its attribute 'calls' and computes something else"):
        fastmeta.MAML(Counting(10).double(), inner_loss=F.mse_loss)(*batch)


def test_an_error_of_the_model_says_which_module_it_is_and_what_was_tried():
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(5, 1)).double()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        fastmeta.MAML(model, inner_loss=F.mse_loss)(*regression())
    (note,) = error.value.__notes__
    assert "task by task under plain autograd, because: it does not run on tensors without data: 2: " in note


def test_an_autocast_around_the_call_is_none_of_the_modules():
    model, batch = mlp(2, 5, 1), regression()
    learner = fastmeta.MAML(model, inner_loss=F.mse_loss)
    plain = learner(*batch).loss
    other = fastmeta.MAML(model, inner_loss=F.mse_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(other(*batch).loss, plain)
    assert "own sweeps" in other.explain()
