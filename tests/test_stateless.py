"""A module under other weights: what forward, loss and gradient see, and that nothing of it stays."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from meta_steps import mlp, regression
from plain_loop import LEARNERS, agrees, call, plain_loop
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta
from fastmeta.internals import checkpointing_off
from fastmeta.stateless import Stateless

ALGORITHMS = tuple(LEARNERS)


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(model, loss, algorithm="maml", **options):
    options = {"inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 2, **options}
    return LEARNERS[algorithm](model, inner_loss=loss, backend="reference", **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loss_that_reads_the_modules_parameters_sees_the_fast_weights(algorithm):
    model, batch = mlp(2, 4, 1), regression()

    class Penalised(nn.Module):
        """The same as outputs of the module."""

        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x), sum(p.square().sum() for p in self.net.parameters())

    truth = plain_loop(Penalised(), lambda out, y: F.mse_loss(out[0], y) + 0.5 * out[1], batch, algorithm=algorithm)
    truth = truth._replace(grads={name.removeprefix("net."): g for name, g in truth.grads.items()})

    def loss(outputs, y):
        return F.mse_loss(outputs, y) + 0.5 * sum(p.square().sum() for p in model.parameters())

    agrees(model, loss, batch, algorithm=algorithm, truth=truth)


@dataclass
class Noted:
    seen: object = None


class Bayesian(nn.Module):
    """Leaves its divergence for the loss, and much else."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1)
        self.kl, self.calls, self.last, self.plain = None, 0, {}, torch.zeros(4)
        self.history, self.names, self.space = [], {"kept": 1}, SimpleNamespace(seen=None, more=[Noted()])
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        h = self.a(x)
        self.kl = self.a.weight.square().sum()
        self.a.seen = h
        self.calls += 1
        self.history.append(h)
        self.names["h"] = self.space.seen = self.space.more[0].seen = self.last["h"] = h
        self.plain.add_(h.detach().mean(0))
        h = F.batch_norm(h, self.mean, self.var, training=True)
        self.mean.data.add_(self.plain)
        self.mean = self.mean + self.calls
        return self.b(torch.tanh(h))


def described(model):
    """All of it, in copies."""
    tensors = {**{name: x.clone() for name, x in model.state_dict().items()}, "plain": model.plain.clone()}
    noted = (model.space.seen, model.space.more[0].seen, hasattr(model.a, "seen"))
    return tensors, (model.kl, model.calls, dict(model.last), list(model.history), dict(model.names), *noted)


def assert_as_before(model, before):
    tensors, rest = described(model)
    torch.testing.assert_close(tensors, before[0], rtol=0, atol=0)
    assert rest == before[1] == (None, 0, {}, [], {"kept": 1}, None, None, False)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_forward_leaves_is_the_losss_and_is_gone_afterwards(algorithm):
    model, batch = Bayesian(), regression()
    before, objects = described(model), (model.plain, model.mean, model.history, model.names)

    def loss_of(module):
        return lambda out, y: F.mse_loss(out, y) + 0.01 * module.kl + 0.1 * module.space.seen.square().mean()

    other = copy.deepcopy(model)
    truth = plain_loop(other, loss_of(other), batch, algorithm=algorithm)
    agrees(model, loss_of(model), batch, algorithm=algorithm, truth=truth)
    learner(model, loss_of(model), algorithm).adapt(*batch[:2])(batch.query_x)
    assert_as_before(model, before)
    assert all(x is y for x, y in zip(objects, (model.plain, model.mean, model.history, model.names), strict=True))
    pickle.loads(pickle.dumps(copy.deepcopy(model)))


def test_the_module_is_as_it_was_where_forward_raises():
    class Raises(Bayesian):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("in forward")

    model = Raises()
    before, theta = described(model), dict(model.named_parameters())
    with pytest.raises(RuntimeError, match="in forward"):
        learner(model, F.mse_loss)(*regression())
    assert_as_before(model, before)
    assert all(p is theta[name] for name, p in model.named_parameters())
    assert torch.utils.checkpoint.CheckpointFunction.__module__ == "torch.utils.checkpoint"


def test_tied_weights_are_exchanged_under_every_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    held, other = Stateless(model), torch.zeros(3, 3)
    with held.under({"0.weight": other}):
        assert model[0].weight is other
        assert model[1].weight is other
        assert next(iter(model.parameters())) is other
    assert isinstance(model[1].weight, nn.Parameter)
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.jit.script], ids=["DataParallel", "scripted"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_modules_that_hold_their_weights_elsewhere_are_refused(wrap):
    with pytest.raises(RuntimeError, match="pass the plain module"):
        Stateless(wrap(nn.Linear(2, 1)))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b, self.c, self.reentrant = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1), reentrant

    def forward(self, x):
        def middle(h):
            return torch.tanh(self.b(h))

        h = torch.tanh(self.a(x))
        return self.c(middle(h) if self.reentrant is None else checkpoint(middle, h, use_reentrant=self.reentrant))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_with_the_fast_weights(reentrant, algorithm):
    model, batch = Checkpointed(reentrant), regression()
    plain = copy.deepcopy(model)
    plain.reentrant = None
    agrees(
        model, F.mse_loss, batch, algorithm=algorithm, truth=plain_loop(plain, F.mse_loss, batch, algorithm=algorithm)
    )


def test_checkpointing_stays_on_elsewhere():
    calls = []

    def function(x):
        calls.append(threading.get_ident())
        return torch.sin(x)

    def runs():
        """How often a checkpointed function runs for a value and its gradient."""
        calls.clear()
        for reentrant in (False, True):
            checkpoint(function, torch.ones((), requires_grad=True), use_reentrant=reentrant).backward()
        return len(calls)

    found = {"before": runs()}
    with checkpointing_off():
        found["inside"] = runs()
        other = threading.Thread(target=lambda: found.update(elsewhere=runs()))
        other.start()
        other.join()
    found["after"] = runs()
    assert found == {"before": 4, "inside": 2, "elsewhere": 4, "after": 4}


class LearnedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, -0.3]))

    def forward(self, out, y):
        error = out - y
        return (self.scale.exp() * torch.cat([error.square(), error.abs()], 1)).mean()


@pytest.mark.parametrize("closed_over", [False, True], ids=["module", "closure"])
@pytest.mark.parametrize("place", ["inner_loss", "outer_loss"])
def test_learned_losses_get_their_gradient(place, closed_over):
    model, batch, learned = mlp(2, 4, 1), regression(), LearnedLoss()
    loss = (lambda out, y: 1.0 * learned(out, y)) if closed_over else learned
    losses = {"inner_loss": F.mse_loss, "outer_loss": F.mse_loss, place: loss}
    truth = plain_loop(model, losses["inner_loss"], batch, outer_loss=losses["outer_loss"], extra=[learned.scale])
    assert truth.extra[0].norm() > 1e-3
    agrees(model, losses["inner_loss"], batch, outer_loss=losses["outer_loss"], truth=truth)
    torch.testing.assert_close(learned.scale.grad, truth.extra[0], rtol=1e-10, atol=0)

    learned.scale.grad = None
    learners = learner(model, losses["inner_loss"]).adapt(*batch[:2])
    losses["outer_loss"](learners(batch.query_x).flatten(0, 1), batch.query_y.flatten(0, 1)).backward()
    torch.testing.assert_close(learned.scale.grad, truth.extra[0], rtol=1e-10, atol=0)


def test_learned_losses_and_diverged_tasks():
    """The mean is one over the tasks that stayed finite, for the loss's parameters as for the module's."""
    model, batch, learned = mlp(2, 4, 1), regression(), LearnedLoss()
    kept = type(batch)(*(x[1:] for x in batch))
    truth = plain_loop(model, learned, kept, outer_loss=F.mse_loss, extra=[learned.scale])
    batch.support_x[0] = torch.nan
    with pytest.warns(RuntimeWarning):
        learner(model, learned, outer_loss=F.mse_loss)(*batch).loss.backward()
    torch.testing.assert_close(learned.scale.grad, truth.extra[0], rtol=1e-10, atol=0)


def test_first_order_gives_a_learned_inner_loss_no_gradient_and_an_outer_one_its_own():
    model, batch, inner, outer = mlp(2, 4, 1), regression(), LearnedLoss(), LearnedLoss()
    truth = plain_loop(model, inner, batch, algorithm="fomaml", outer_loss=outer, extra=[outer.scale])
    agrees(model, inner, batch, algorithm="fomaml", outer_loss=outer, truth=truth)
    assert inner.scale.grad is None
    torch.testing.assert_close(outer.scale.grad, truth.extra[0], rtol=1e-10, atol=0)


def test_a_hook_on_a_parameter_sees_what_the_loop_shows_it():
    """At φ_0, which is the parameter itself, and at the meta-gradient."""
    model, batch = mlp(2, 4, 1), regression()
    model[0].weight.register_hook(lambda g: g * 0.5)
    theta = dict(model.named_parameters())
    for t in range(3):
        phi = theta
        for _ in range(2):
            value = F.mse_loss(call(model, phi, batch.support_x[t]), batch.support_y[t])
            g = torch.autograd.grad(value, list(phi.values()), create_graph=True)
            phi = {name: p - 0.1 * d for (name, p), d in zip(phi.items(), g, strict=True)}
        (F.mse_loss(call(model, phi, batch.query_x[t]), batch.query_y[t]) / 3).backward()
    expected = {name: p.grad.clone() for name, p in theta.items()}
    model.zero_grad()
    learner(model, F.mse_loss)(*batch).loss.backward()
    for name, p in theta.items():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-14)


def test_without_gradients_nothing_holds_a_graph():
    model, batch, learned = mlp(2, 4, 1), regression(), LearnedLoss()
    expected = learner(model, learned)(*batch)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = learner(model, learned)(*batch)
        assert not out.loss.requires_grad
        assert torch.equal(out.task_losses, expected.task_losses)
