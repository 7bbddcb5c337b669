"""The proof: a plan that does not compute what PyTorch does is found out, named and not used; a right one passes."""

from __future__ import annotations

import copy
import pickle
import random
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interface import learner_of, net
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine import ladder as ladder_module
from fastmeta.engine import proof as proof_module
from fastmeta.ops.activation import Activation
from fastmeta.ops.dropout import Dropout
from fastmeta.ops.linear import Linear
from fastmeta.ops.mse import MSE

pytestmark = pytest.mark.proof

WRONG = "are not used, because they are wrong"


def gradients(learner, batch):
    """Losses and meta-gradients of a meta-step."""
    learner.zero_grad(set_to_none=False)
    out = learner(*batch)
    out.loss.backward()
    return {"losses": out.task_losses.detach()} | {n: p.grad.clone() for n, p in learner.named_parameters()}


def proof_of(learner):
    (line,) = [line for line in learner.explain().splitlines() if line.startswith("proof: ")]
    return line


def as_reference(learner, batch, tolerance=1e-10):
    got = gradients(learner, batch)
    line = learner.explain()
    other = type(learner)(
        learner.module, inner_loss=learner.inner_loss, inner_optimizer=learner.inner_optimizer,
        inner_steps=learner.inner_steps, bn_statistics=learner.bn_statistics,
        inner_batch_size=learner.inner_batch_size, inner_clip_norm=learner.inner_clip_norm, backend="reference",
    )  # fmt: skip
    assert relative(got, gradients(other, batch)) < tolerance
    return line


# Wrong sweeps. ------------------------------------------------------------------------------------------------------


def _wrong_sign(monkeypatch, op, sweep, place=0):
    right = getattr(op, sweep)

    def wrong(self, *args):
        found = list(right(self, *args))
        if found[place] is not None:
            found[place] = -found[place]
        return tuple(found)

    monkeypatch.setattr(op, sweep, wrong)


def _without_hessian(monkeypatch):
    """A linear op that forgets how its own cotangents move."""
    right = Linear.backward_dot

    def wrong(self, saved, saved_dot, dy, dy_dot, needs):
        return right(self, saved, saved_dot, dy * 0.0, dy_dot, needs)

    monkeypatch.setattr(Linear, "backward_dot", wrong)


@pytest.mark.parametrize(
    "fault, quantity",
    [
        (lambda m: _wrong_sign(m, MSE, "backward"), "inner gradient"),
        (lambda m: _wrong_sign(m, Activation, "backward"), "inner gradient"),
        (lambda m: _wrong_sign(m, Activation, "backward_dot"), "meta-gradient"),
        (_without_hessian, "meta-gradient"),
    ],
    ids=["loss", "activation", "second order", "dropped term"],
)
def test_a_wrong_sweep_is_named_and_not_used(monkeypatch, fault, quantity):
    batch = regression(tasks=3)
    learner = learner_of(inner_steps=2)
    fault(monkeypatch)
    with pytest.warns(UserWarning, match=rf"{WRONG}: {quantity}: \d.*off plain autograd in float64") as seen:
        text = as_reference(learner, batch)
    assert len(seen) == 1
    assert f"task by task under plain autograd: {quantity}: " in text
    gradients(learner, batch)  # and nothing is said twice
    learner.inner_steps = 3
    gradients(learner, batch)


def test_a_wrong_forward_is_found(monkeypatch):
    right = Activation.forward
    monkeypatch.setattr(Activation, "forward", lambda self, x: (right(self, x)[0] * (1 + 1e-5), right(self, x)[1]))
    with pytest.warns(UserWarning, match=WRONG):
        as_reference(learner_of(), regression())


def test_a_wrong_second_order_does_not_matter_to_first_order(monkeypatch):
    batch = regression()
    _without_hessian(monkeypatch)
    for algorithm in (fastmeta.FOMAML, fastmeta.Reptile):
        as_reference(learner_of(algorithm), batch)


def test_wrong_outputs_of_learners_are_found(monkeypatch):
    batch = regression()
    learner = learner_of()
    learners = learner.adapt(*batch[:2])
    right = Activation.backward
    monkeypatch.setattr(Activation, "backward", lambda self, *args: tuple(2 * d for d in right(self, *args)))
    with pytest.warns(UserWarning, match=f"{WRONG}: meta-gradient"):
        outputs = learners(batch.query_x)
    F.mse_loss(outputs, batch.query_y).backward()
    got = {name: p.grad.clone() for name, p in learner.module.named_parameters()}
    learner.zero_grad()
    learner.backend = "reference"
    F.mse_loss(learner.adapt(*batch[:2])(batch.query_x), batch.query_y).backward()
    assert relative(got, {name: p.grad for name, p in learner.module.named_parameters()}) < 1e-10


def test_a_sweep_that_raises_is_not_used(monkeypatch):
    def broken(*_):
        raise RuntimeError("no rule for this")

    batch = regression()
    monkeypatch.setattr(Activation, "backward_dot", broken)
    text = as_reference(learner_of(), batch)
    assert "task by task under plain autograd: its sweeps raise RuntimeError: no rule for this" in text


def test_proof_off_looks_at_nothing(monkeypatch):
    monkeypatch.setattr(ladder_module, "prove", None)
    learner = learner_of(proof="off")
    gradients(learner, regression())
    assert proof_of(learner) == "proof: off"
    assert learner.proof == "off"
    with pytest.raises(ValueError, match="proof must be one of 'first', 'off', got 'last'"):
        learner_of(proof="last")


# Right plans. -------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Takes a dict and gives one."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, scale):
        return {"y": self.net(x), "scale": scale}


class Heads(fastmeta.MAML):
    def adapts(self, name):
        return name.startswith("2")


def norms(dtype=torch.float64):
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 1)).to(
        dtype
    )


@pytest.mark.parametrize(
    "algorithm, model, options",
    [
        (fastmeta.MAML, net, {}),
        (fastmeta.FOMAML, net, {}),
        (fastmeta.Reptile, net, {}),
        (fastmeta.MAML, net, {"inner_steps": 0}),
        (fastmeta.MAML, net, {"inner_batch_size": 3}),
        (fastmeta.MAML, net, {"inner_optimizer": fastmeta.Adam(lr=0.1)}),
        (fastmeta.MAML, net, {"inner_clip_norm": 0.1, "memory": "recompute", "task_chunk": 2}),
        (fastmeta.MAML, norms, {"bn_statistics": "support"}),
        (fastmeta.MAML, norms, {"bn_statistics": "support", "inner_batch_size": 3}),
        (fastmeta.MAML, norms, {}),
        (Heads, net, {}),
    ],
)  # fmt: skip
def test_right_plans_pass(algorithm, model, options):
    learner, batch = learner_of(algorithm, model(), **options), regression()
    as_reference(learner, batch)
    assert "off plain autograd in float64, 2 tasks" in proof_of(learner)
    assert relative_errors(learner) < 1e-12


def relative_errors(learner):
    """The largest error that explain() tells."""
    words = proof_of(learner).partition(" off ")[0].removeprefix("proof: ").split(", ")
    return max(float(word.split()[-1]) for word in words)


@pytest.mark.parametrize("wanted", [False, True])
def test_right_plans_of_data_with_gradients_pass(wanted):
    batch = regression()
    data = [x.requires_grad_(wanted) for x in batch]
    learner = learner_of(Heads)
    gradients(learner, data)
    assert ("gradient of support data 1" in proof_of(learner)) == wanted
    assert "gradient of shared parameters" in proof_of(learner)


def test_learned_rates_and_dicts_pass():
    x, y, qx, qy = regression()
    scale = torch.ones(3, 7, 1, dtype=torch.float64)

    def loss(out, target):
        return (out["scale"] * (out["y"] - target["y"])).square().mean()

    batch = ({"x": x, "scale": scale}, {"y": y}, {"x": qx, "scale": scale[:, :5]}, {"y": qy})
    learner = learner_of(model=Named(), inner_loss=loss, inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)))
    gradients(learner, batch)
    assert "off plain autograd in float64" in proof_of(learner)


def test_adapt_and_learners_are_proved_by_themselves():
    batch = regression()
    learner = learner_of()
    learners = learner.adapt(*batch[:2])
    assert proof_of(learner).startswith("proof: inner gradient")
    assert "outputs" not in proof_of(learner)
    learners(batch.query_x)
    assert proof_of(learner).startswith("proof: outputs")


def test_float32_modules_are_proved_in_float64():
    learner = learner_of(model=net().float())
    gradients(learner, regression(dtype=torch.float32))
    assert "float64" in proof_of(learner)
    assert relative_errors(learner) < 1e-12
    assert {p.dtype for p in learner.module.parameters()} == {torch.float32}


def test_a_float32_constant_is_proved_in_float32():
    weight = torch.tensor([0.3, 1.0, 2.0])
    learner = learner_of(
        model=nn.Linear(2, 3), inner_loss=lambda out, y: F.cross_entropy(out, y, weight=weight), inner_steps=1,
        backend="torch",
    )  # fmt: skip
    gradients(learner, classification(2, dtype=torch.float32))
    assert "float32" in proof_of(learner)
    assert relative_errors(learner) < 1e-4


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
def test_dropout_is_proved_with_its_masks(algorithm, bn_statistics):
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)).double()
    learner = learner_of(algorithm, model, bn_statistics=bn_statistics)
    batch = regression()
    gradients(learner, batch)
    assert "off plain autograd" in proof_of(learner)
    assert relative_errors(learner) < 1e-12
    assert ("without dropout" in proof_of(learner)) == (bn_statistics == "support")
    learners = learner.adapt(*batch[:2])
    learners(batch.query_x)
    assert "outputs" in proof_of(learner)


def test_a_dropout_that_forgets_its_mask_is_found(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.4), nn.Linear(8, 1)).double()
    monkeypatch.setattr(Dropout, "backward", lambda self, saved, dy, needs: (dy, None))
    with pytest.warns(UserWarning, match=WRONG):
        gradients(learner_of(model=model), regression())


class Noise(nn.Module):
    """Draws numbers that no op of fastmeta's own has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 6).double(), nn.Linear(6, 1).double()

    def forward(self, x):
        x = F.dropout(self.first(x), 0.3)
        return self.last(torch.tanh(x + 0.1 * torch.rand_like(x)))


def test_other_random_numbers_are_those_of_the_plan():
    learner = learner_of(model=Noise())
    gradients(learner, regression())
    assert relative_errors(learner) < 1e-12
    learner.bn_statistics = "support"
    gradients(learner, regression())
    assert "proof: none, as " in proof_of(learner)


# What surrounds it. -------------------------------------------------------------------------------------------------


def test_a_plan_is_proved_once(monkeypatch):
    calls = []
    right = ladder_module.prove
    monkeypatch.setattr(ladder_module, "prove", lambda *a, **k: calls.append(1) or right(*a, **k))
    learner, batch = learner_of(), regression(tasks=4)
    for _ in range(2):
        gradients(learner, batch)
    learner.inner_steps, learner.memory, learner.task_chunk = 2, "recompute", 2
    gradients(learner, batch)
    gradients(learner, [x[:3] for x in batch])  # the last, smaller batch of an epoch
    assert len(calls) == 1
    gradients(learner, [x[:, :4] for x in batch])
    assert len(calls) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_random_streams_modes_and_the_module_stay_as_they_are(mode):
    model = nn.Sequential(
        nn.Linear(2, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Dropout(0.5), nn.Linear(6, 1)
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    own = {name: id(x) for name, x in [*model.named_parameters(), *model.named_buffers()]}
    before = copy.deepcopy(model.state_dict())
    batch = regression(dtype=torch.float32)
    streams = []
    for proof in ("first", "off"):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        learner = learner_of(model=model, proof=proof)
        with mode():
            learner(*(x.clone() for x in batch))
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        streams.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    assert streams[0] == streams[1]
    assert {name: id(x) for name, x in [*model.named_parameters(), *model.named_buffers()]} == own
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert model.training
    pickle.dumps(model)


def test_threads_share_a_module():
    model, batch = net().float(), regression(dtype=torch.float32)
    found, learners = [], [learner_of(model=model) for _ in range(3)]

    def work(learner):
        found.append(learner(*batch).task_losses.detach())

    workers = [threading.Thread(target=work, args=(learner,)) for learner in learners]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    assert all(x.dtype == torch.float32 and torch.equal(x, found[0]) for x in found)


def test_tasks_that_are_not_finite_are_left_out():
    batch = regression(tasks=4)
    batch.support_x[0, 0, 0] = torch.nan
    learner = learner_of()
    with pytest.warns(RuntimeWarning, match="non-finite"):
        gradients(learner, batch)
    assert "2 tasks" in proof_of(learner)
    batch.support_x[:, 0, 0] = torch.inf
    learner = learner_of()
    with pytest.warns(RuntimeWarning, match="non-finite"):
        learner(*batch)
    assert "off plain autograd" in proof_of(learner)


def test_a_task_without_labels_is_no_fault_of_a_plan():
    batch = classification(2, tasks=3)
    batch.support_y[0] = -100
    learner = learner_of(model=nn.Linear(2, 3).double(), inner_loss=F.cross_entropy)
    with pytest.warns(RuntimeWarning, match="non-finite"):
        out = learner(*batch)
    assert out.finite.tolist() == [False, True, True]
    assert "1 of them without a finite support loss" in proof_of(learner)


def test_what_the_loop_raises_reaches_the_user():
    def refused(out, y):
        return F.multi_margin_loss(out, y)  # PyTorch has no second derivative of it

    batch = classification(2)
    with pytest.raises(RuntimeError) as error:
        learner_of(model=nn.Linear(2, 3).double(), inner_loss=refused, inner_steps=1, backend="torch")(*batch)
    assert any("that loop raised" in note for note in error.value.__notes__)
    assert gradients(learner_of(fastmeta.FOMAML, nn.Linear(2, 3).double(), inner_loss=refused), batch)


@pytest.mark.parametrize("size", [None, 4])
def test_dear_programs_are_proved_on_fewer_samples(monkeypatch, size):
    monkeypatch.setattr(proof_module, "_SECONDS", 1e-5)
    learner = learner_of(model=norms(), bn_statistics="support", inner_batch_size=size)
    as_reference(learner, regression(support=20, query=30))
    assert "2 of 20 support and 2 of 30 query samples" in proof_of(learner)
    assert relative_errors(learner) < 1e-12


def test_a_model_of_just_so_many_samples_is_proved_on_all(monkeypatch):
    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3).double()

        def forward(self, x):
            return self.layer(x.view(2, 5, 2)).mean(1)

    monkeypatch.setattr(proof_module, "_SECONDS", 1e-5)
    x, y = torch.randn(2, 10, 2).double(), torch.randn(2, 10, 3).double()
    learner = learner_of(model=Prototypes(), inner_loss=lambda out, y: F.mse_loss(out, y[:2]))
    gradients(learner, (x, y, x, y))
    assert "samples" not in proof_of(learner)


def test_the_first_call_on_omniglot_takes_a_second_more_at_most():
    model = fastmeta_conv4()
    batch = classification(1, 28, 28, tasks=8, support=5, query=25, classes=5, dtype=torch.float32)
    learner = learner_of(model=model, inner_loss=F.cross_entropy, inner_steps=1, proof="off")
    learner(*batch)  # all that a process loads at its first call
    took = []
    for proof in ("off", "first"):
        start = time.process_time()
        learner = learner_of(model=model, inner_loss=F.cross_entropy, inner_steps=1, proof=proof)
        learner(*batch)
        took.append(time.process_time() - start)
    assert "off plain autograd in float64" in proof_of(learner)
    assert took[1] - took[0] < 1.0


def fastmeta_conv4():
    blocks = []
    for channels in (1, 64, 64, 64):
        blocks += [
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.BatchNorm2d(64, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 5))


def test_gradients_that_pytorch_keeps_sparse_are_compared():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.last(torch.tanh(self.words(x[..., 0].long() % 7)))

    learner = learner_of(model=Words().double())
    gradients(learner, regression())
    assert relative_errors(learner) < 1e-10
