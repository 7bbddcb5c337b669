"""What an algorithm may say of its own, every way against one task at a time by PyTorch's autograd."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from meta_steps import classification, mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Identity, Unrolled
from fastmeta.engine.prior import Proximal
from fastmeta.optim import Rates, Rule

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "recompute": {"memory": "recompute"},
    "chunked": {"task_chunk": 2},
}
every_way = pytest.mark.parametrize("way", WAYS)


def grads_of(learner, batch, data=()):
    """Losses and the gradients of all parameters of a learner and of some data, by a meta-step."""
    learner.zero_grad(set_to_none=False)
    for x in data:
        x.grad = None
    out = learner(*batch)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    of_data = {f"data {i}": torch.zeros_like(x) if x.grad is None else x.grad.clone() for i, x in enumerate(data)}
    return {"losses": out.task_losses.detach()} | found | of_data


def adapted_grads(learner, batch, loss=F.mse_loss):
    """The same by `adapt` and an outer loss of the user's, which weighs tasks unequally."""
    learner.zero_grad(set_to_none=False)
    learners = learner.adapt(batch[0], batch[1])
    outputs = learners(batch[2])
    losses = torch.stack([(t + 1.0) * loss(outputs[t], batch[3][t]) for t in range(len(outputs))])
    losses.sum().backward()
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    return {"losses": losses.detach()} | found


def check_as_reference(learner, batch, *, data=(), tolerance=1e-10, loss=F.mse_loss, adapt=True):
    """The torch backend against the reference, by both kinds of calls."""
    learner.backend = "torch"
    got = grads_of(learner, batch, data)
    by_adapt = adapted_grads(learner, batch, loss) if adapt else {}
    learner.backend = "reference"
    want = grads_of(learner, batch, data)
    for name, x in want.items():
        assert x.norm() > 0 or got[name].norm() == 0, name
    assert relative(got, want) < tolerance
    if adapt:
        assert relative(by_adapt, adapted_grads(learner, batch, loss)) < tolerance
    learner.backend = "torch"
    return got


def net():
    return mlp(2, 5, 4, 1)


def learner_of(algorithm=fastmeta.MAML, model=None, **options):
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.2), "inner_steps": 3} | options
    return algorithm(net() if model is None else model, **options)


def vary(rates):
    """Rates of many sizes, one of them zero and some negative."""
    with torch.no_grad():
        rates.values.add_(0.1 * torch.randn_like(rates.values))
        rates.values[0, 0] = 0.0


# rates ----------------------------------------------------------------------------------------------------------------


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
RULES = {
    "sgd": lambda lr: fastmeta.SGD(lr=lr),
    "nesterov": lambda lr: fastmeta.SGD(lr=lr, momentum=0.7, nesterov=True, weight_decay=0.1),
    "adam": lambda lr: fastmeta.Adam(lr=lr, eps=1e-3),
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


# clipping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, fastmeta.Reptile])
def test_clipped_inner_gradients(algorithm, rule):
    batch = regression(tasks=4)
    free = learner_of(algorithm, inner_optimizer=RULES[rule](0.2))
    learner = learner_of(algorithm, free.module, inner_optimizer=RULES[rule](0.2), inner_clip_norm=0.3)
    got = check_as_reference(learner, batch, adapt=algorithm is not fastmeta.Reptile)
    assert relative(grads_of(free, batch), got) > 1e-3
    loose = learner_of(algorithm, free.module, inner_optimizer=RULES[rule](0.2), inner_clip_norm=1e6)
    assert relative(grads_of(loose, batch), grads_of(free, batch)) < 1e-13


def test_clipping_is_torch_s_own():
    model, batch = net(), regression(tasks=1)
    learner = learner_of(model=model, inner_clip_norm=0.3, inner_steps=1)
    phi = learner.adapt(*batch[:2]).parameters()
    alone = copy.deepcopy(model)
    F.mse_loss(alone(batch.support_x[0]), batch.support_y[0]).backward()
    assert nn.utils.clip_grad_norm_(alone.parameters(), 0.3) > 0.3
    torch.optim.SGD(alone.parameters(), lr=0.2).step()
    for name, p in alone.named_parameters():
        torch.testing.assert_close(phi[name][0], p, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_zero_is_not_clipped_to_nan():
    x = torch.zeros(2, 3, 2, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    y = torch.zeros(2, 3, 1, dtype=torch.float64)
    learner = learner_of(model=model, inner_clip_norm=0.1)
    out = learner(x, y, x + 1.0, y)
    out.loss.backward()
    assert model.weight.grad.isfinite().all()


# shared parameters ----------------------------------------------------------------------------------------------------


def sharing(*shared, algorithm=fastmeta.MAML):
    class Partial(algorithm):
        def adapts(self, name):
            return not name.startswith(shared)

    return Partial


@every_way
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("shared", [("0",), ("2",), ("4",), ("0", "2"), ("2", "4"), ("0", "4"), ("0.weight", "2.bias")])
def test_shared_parameters(algorithm, shared, way):
    learner = learner_of(sharing(*shared, algorithm=algorithm), **WAYS[way])
    check_as_reference(learner, regression(tasks=4))


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(),
        nn.AvgPool2d(2), nn.Conv2d(3, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
@pytest.mark.parametrize("shared", [("0", "1", "4", "5"), ("8",), ("1", "5"), ("0.bias", "4.weight"), ("4",)])
def test_shared_parameters_of_convolutions(shared, bn_statistics):
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    learner = learner_of(
        sharing(*shared), conv(), inner_loss=F.cross_entropy, bn_statistics=bn_statistics, inner_steps=2,
    )  # fmt: skip
    check_as_reference(learner, batch, loss=F.cross_entropy)


def test_shared_parameters_of_opaque_ops():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(3))
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.last(torch.logsumexp(torch.stack([self.first(x), self.scale * x.sum(-1, keepdim=True)]), 0))

    for shared in (("scale",), ("first",), ("last", "scale")):
        check_as_reference(learner_of(sharing(*shared), Odd().double()), regression())


def test_sharing_nothing_is_maml_to_the_bit_and_sharing_all_an_error():
    batch, model = regression(), net()
    assert (
        relative(grads_of(learner_of(sharing("none"), model), batch), grads_of(learner_of(model=model), batch)) == 0.0
    )
    with pytest.raises(ValueError, match=r"adapts\(\) is true of none of the trainable parameters"):
        learner_of(sharing("0", "2", "4"), model)(*batch)
    with pytest.raises(ValueError, match=r"Reptile trains what its inner loop moves, .* requires_grad_\(False\)"):
        learner_of(sharing("0", algorithm=fastmeta.Reptile), model)(*batch)


def test_what_the_inner_loss_does_not_depend_on_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    learner = learner_of(sharing("used"), Two().double())
    with pytest.raises(ValueError, match="inner_loss depends on no parameter that the inner loop moves"):
        learner(*regression())


def test_adapts_may_change_between_calls():
    class Switched(fastmeta.MAML):
        head_only = False

        def adapts(self, name):
            return not self.head_only or name.startswith("4")

    learner, batch = learner_of(Switched), regression()
    both = []
    for learner.head_only in (False, True):
        both.append(check_as_reference(learner, batch))
    assert relative(both[0], both[1]) > 1e-3


# weights, start, prior, episodes, adjoints ----------------------------------------------------------------------------


def weighing(*weights, algorithm=fastmeta.MAML):
    class Weighing(algorithm):
        def weights(self, steps):
            return weights

    return Weighing


@every_way
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("weights", [(0.1, 0.2, 0.3, 0.4), (0, 0.5, 0, 0.5), (1.0, 0, 0, 0), (0, -1.0, 2.0, 0)])
def test_weights_of_query_losses(algorithm, weights, way):
    learner = learner_of(weighing(*weights, algorithm=algorithm), **WAYS[way])
    check_as_reference(learner, regression(), adapt=False)


def test_weights_with_learned_rates_shared_parameters_and_data():
    class All(fastmeta.MAML):
        def weights(self, steps):
            return torch.arange(steps + 1.0)

        def adapts(self, name):
            return not name.startswith("0")

    learner = learner_of(All, inner_optimizer=fastmeta.Adam(lr=fastmeta.PerLayerPerStep(0.1), eps=1e-3))
    batch = regression()
    data = [x.requires_grad_() for x in batch]
    check_as_reference(learner, batch, data=data, adapt=False)


def test_annealed_weights_make_no_other_plan():
    class Annealed(fastmeta.MAML):
        first = 1.0

        def weights(self, steps):
            return [0.0] * (steps - 1) + [self.first, 1.0]

    learner, batch = learner_of(Annealed), regression()
    losses = []
    for learner.first in (1.0, 0.5, 0.25):
        losses.append(learner(*batch).loss.item())
        assert len(learner._plans._backends) == 1
    assert len(set(losses)) == 3
    learner.first = 0.0
    learner(*batch)
    assert len(learner._plans._backends) == 2


def test_wrong_weights_are_named():
    for weights, message in (
        ((1.0,), r"weights\(\) must give 4 numbers, for the query losses at φ_0 … φ_3, got shape \[1\]"),
        ((0, 0, 0, 0), r"weights\(\) must not be zero at every step"),
        (torch.ones(4, requires_grad=True), r"weights\(\) must give numbers"),
    ):
        learner = learner_of(type("Wrong", (fastmeta.MAML,), {"weights": lambda self, steps, w=weights: w}))
        with pytest.raises(ValueError, match=message):
            learner(*regression())


class Shifted(fastmeta.MAML):
    """φ_0 = θ + a learned multiple of what the support set says: another start for every task."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def start(self, theta, support):
        return theta + self.scale * support.targets[0].mean((1, 2))[:, None] * torch.ones_like(theta)


@every_way
def test_starts_of_tasks(way):
    got = check_as_reference(learner_of(Shifted, **WAYS[way]), regression(tasks=5))
    assert got["scale"].abs() > 0


def test_one_start_for_all_tasks():
    class Halved(fastmeta.MAML):
        def start(self, theta, support):
            return 0.5 * theta

    check_as_reference(learner_of(Halved), regression())

    class Wrong(fastmeta.MAML):
        def start(self, theta, support):
            return theta[:3]

    with pytest.raises(ValueError, match=r"start\(\) must give a row \[\d+\] or rows \[3, \d+\], got \[3\]"):
        learner_of(Wrong)(*regression())


@every_way
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, Shifted])
def test_a_proximal_prior(algorithm, way):
    class Near(algorithm):
        prior = Proximal(0.8)

    learner, batch = learner_of(Near, **WAYS[way]), regression()
    got = check_as_reference(learner, batch)
    learner.prior = None
    assert relative(grads_of(learner, batch), got) > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_inner_gradients_as_constants(rule):
    class Constant(fastmeta.MAML):
        adjoint = Unrolled(hessian=False)

    check_as_reference(learner_of(Constant, inner_optimizer=RULES[rule](fastmeta.PerParameter(0.1))), regression())


def test_an_adjoint_may_change_between_calls():
    """Derivative-order annealing: first order at first."""
    learner, batch = learner_of(), regression()
    exact = grads_of(learner, batch)
    learner.adjoint = Identity()
    first = grads_of(learner, batch)
    assert relative(first, grads_of(learner_of(fastmeta.FOMAML, learner.module), batch)) == 0.0
    learner.adjoint = Unrolled()
    assert relative(grads_of(learner, batch), exact) == 0.0
    assert relative(first, exact) > 1e-3


def test_episodes_may_be_added_to():
    class Doubled(fastmeta.MAML):
        def episodes(self, batch):
            x, y = (torch.cat([a, a + 0.1], 1) for a in (batch.support_x, batch.support_y))
            return type(batch)(x, y, batch.query_x, batch.query_y)

    learner, batch = learner_of(Doubled), regression()
    x, y = (torch.cat([a, a + 0.1], 1) for a in batch[:2])
    plain = learner_of(model=learner.module)
    assert relative(grads_of(learner, batch), grads_of(plain, (x, y, *batch[2:]))) == 0.0


# rules of one's own ---------------------------------------------------------------------------------------------------


class Coordinatewise(Rule):
    """A small recurrent optimiser, the same for every coordinate: g, h → h' = tanh(a g + b h), φ' = φ − c h' − d g."""

    def __init__(self):
        self.learned = nn.Linear(2, 2, bias=False).double()

    def init(self, phi):
        return (torch.zeros_like(phi),)

    def meta(self, rows, steps):
        return tuple(self.learned.parameters())

    def step(self, phi, g, state, k, meta):
        (weight,) = meta
        h = torch.tanh(weight[0, 0] * g + weight[0, 1] * state[0])
        return phi - 0.1 * (weight[1, 0] * h + weight[1, 1] * g), (h,)


@pytest.mark.parametrize(
    "algorithm", [fastmeta.MAML, fastmeta.FOMAML, sharing("2"), weighing(0.1, 0.2, 0.3, 0.4)], ids=range(4)
)
def test_a_learned_optimiser_by_its_step_alone(algorithm):
    learner = learner_of(algorithm, inner_optimizer=Coordinatewise(), inner_clip_norm=0.5)
    got = check_as_reference(learner, regression(), adapt=False)
    assert got["learned.weight"].abs().min() > 0


def test_a_learned_optimiser_differentiates_without_second_order_too():
    class Constant(fastmeta.MAML):
        adjoint = Unrolled(hessian=False)

    check_as_reference(learner_of(Constant, inner_optimizer=Coordinatewise(), task_chunk=2), regression())


def test_kernels_say_what_they_do_not_have():
    batch = [x.float() for x in regression()]
    for learner, message in (
        (learner_of(model=net().float(), inner_optimizer=Coordinatewise()), "the inner rule is Coordinatewise"),
        (learner_of(model=net().float(), inner_clip_norm=1.0), r"clips inner gradients"),
        (learner_of(sharing("0"), net().float()), r"parameters \['0.weight', '0.bias'\] are shared"),
        (learner_of(weighing(0, 0, 1, 1), net().float()), r"query loss counts at other steps"),
    ):
        if isinstance(learner.learned, nn.Module):
            learner.learned.float()
        learner.backend = "triton"
        with pytest.raises(RuntimeError, match=message):
            learner(*batch)


# gradients of data ----------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
def test_gradients_of_data(algorithm, which, way):
    learner, batch = learner_of(algorithm, inner_batch_size=4, **WAYS[way]), regression(tasks=5, support=7)
    data = [batch[i].requires_grad_() for i in which]
    check_as_reference(learner, batch, data=data)


def test_gradients_of_images_by_support_statistics():
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    data = [batch.support_x.requires_grad_(), batch.query_x.requires_grad_()]
    learner = learner_of(model=conv(), inner_loss=F.cross_entropy, bn_statistics="support", inner_steps=2)
    check_as_reference(learner, batch, data=data, loss=F.cross_entropy)


def test_an_encoder_outside_of_the_module_learns():
    encoder = nn.Linear(3, 2).double()
    raw = regression(features=3)
    learner = learner_of()
    results = []
    for learner.backend in ("torch", "reference"):
        encoder.zero_grad()
        learner.zero_grad()
        out = learner(encoder(raw[0]), raw[1], encoder(raw[2]), raw[3])
        out.loss.backward()
        results.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    assert relative(*results) < 1e-12
    assert results[0]["weight"].abs().min() > 0


# diverged tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("bad", [(1,), (0, 2), (0, 1, 2)])
def test_tasks_that_diverge_reach_no_gradient(backend, bad):
    class Partial(fastmeta.MAML):
        def adapts(self, name):
            return not name.startswith("2")

    learner = learner_of(Partial, inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1)), backend=backend)
    batch = regression(tasks=3)
    good = [t for t in range(3) if t not in bad]
    batch.support_x[list(bad), 0] = torch.inf
    data = [x.requires_grad_() for x in batch]
    with pytest.warns(RuntimeWarning, match="non-finite"):
        got = grads_of(learner, batch, data)
    got.pop("losses")
    by_adapt = None
    if good:
        with pytest.warns(RuntimeWarning, match="non-finite"):
            learners = learner.adapt(*batch[:2])
        learner.zero_grad(set_to_none=False)
        outputs = learners(batch[2])
        F.mse_loss(outputs[good], batch[3][good]).backward()
        by_adapt = {name: p.grad.clone() for name, p in learner.named_parameters()}
    assert all(x.isfinite().all() for x in got.values())
    if not good:
        assert all((x == 0).all() for x in got.values())
        with pytest.warns(RuntimeWarning, match="non-finite"):
            assert learner(*batch).loss.item() == 0.0
        return
    rest = [x.detach()[good].requires_grad_() for x in batch]
    want = grads_of(learner, rest, rest)
    for i in range(4):
        assert (got[f"data {i}"][list(bad)] == 0).all()
        got[f"data {i}"] = got[f"data {i}"][good]
    want.pop("losses")
    assert relative(got, want) < 1e-12
    names = [name for name, _ in learner.named_parameters()]
    assert relative(by_adapt, {name: want[name] for name in names}) < 1e-12


# going on -------------------------------------------------------------------------------------------------------------

GOING_ON = {
    "sgd": lambda: fastmeta.SGD(lr=0.2),
    "schedule": lambda: fastmeta.SGD(lr=lambda k: 0.3 / (k + 1)),
    "nesterov": lambda: fastmeta.SGD(lr=0.1, momentum=0.7, nesterov=True),
    "adam": lambda: fastmeta.Adam(lr=0.1, eps=1e-3),
    "learned": lambda: fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1), momentum=0.5),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, sharing("2")], ids=["maml", "fomaml", "shared"])
@pytest.mark.parametrize("rule", GOING_ON)
def test_adapting_further_is_adapting_for_longer(rule, algorithm, backend):
    learner = learner_of(
        algorithm, inner_optimizer=GOING_ON[rule](), inner_steps=5, inner_batch_size=3, backend=backend, task_chunk=2
    )
    batch, results = regression(tasks=3, support=7), []
    for parts in ((5,), (2, 3), (1, 0, 2, 2)):
        learner.zero_grad(set_to_none=False)
        learners = learner.adapt(*batch[:2], steps=parts[0])
        for steps in parts[1:]:
            learners = learners.adapt_further(*batch[:2], steps=steps)
        F.mse_loss(learners(batch[2]), batch[3]).backward()
        grads = {name: p.grad.clone() for name, p in learner.named_parameters()}
        results.append(grads | {f"φ {name}": p.detach() for name, p in learners.parameters().items()})
    for got in results[1:]:
        assert relative(got, results[0]) < 1e-10


def test_adapting_further_on_other_data():
    learner, batch, other = learner_of(), regression(), regression(support=4)
    results = []
    for learner.backend in ("torch", "reference"):
        learner.zero_grad()
        learners = learner.adapt(*batch[:2]).adapt_further(*other[:2])
        F.mse_loss(learners(batch[2]), batch[3]).backward()
        results.append({name: p.grad.clone() for name, p in learner.named_parameters()})
    assert relative(*results) < 1e-11
    with pytest.raises(ValueError, match=r"support_x must hold the 3 tasks that the learners were adapted to, got 2"):
        learner.adapt(*batch[:2]).adapt_further(*regression(tasks=2)[:2])
    with torch.no_grad():
        assert not learner.adapt(*batch[:2]).adapt_further(*other[:2])(batch[2]).requires_grad


# what learners and outputs are ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
@pytest.mark.parametrize("shared", [("none",), ("0",)])
def test_the_module_of_a_task(bn_statistics, shared):
    model = conv()
    model[4].weight.requires_grad_(False)
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    learner = learner_of(sharing(*shared), model, inner_loss=F.cross_entropy, bn_statistics=bn_statistics)
    learners = learner.adapt(*batch[:2])
    outputs = learners(batch.query_x)
    before = copy.deepcopy(model.state_dict())
    for t in (0, 2, -1):
        alone = learners.module(t)
        torch.testing.assert_close(alone(batch.query_x[t]), outputs[t].detach(), rtol=1e-11, atol=1e-11)
        assert not any(p.grad is not None for p in alone.parameters())
        assert alone.state_dict().keys() >= before.keys()
        one_by_one = [alone(x.unsqueeze(0)) for x in batch.query_x[t]]
        if bn_statistics == "support":  # a sample's own result, whatever it comes with
            torch.testing.assert_close(torch.cat(one_by_one), outputs[t].detach(), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(IndexError, match="task must be one of the 3 adapted ones, from 0 to 2, got 3"):
        learners.module(3)


def test_a_module_that_cannot_hold_support_statistics_is_refused():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            return F.batch_norm(self.layer(x), None, None, training=True)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, x):
            return self.norm(torch.tanh(self.norm(self.layer(x))))

    batch = classification(2)
    for model, message in (
        (Functional(), "outside of nn.BatchNorm layers"),
        (Twice(), "'norm' is called more than once"),
    ):
        learner = learner_of(model=model.double(), inner_loss=F.cross_entropy, bn_statistics="support")
        learners = learner.adapt(*batch[:2])
        learners(batch.query_x)
        with pytest.raises(RuntimeError, match=message):
            learners.module(0)


def test_outputs_and_learners_have_a_short_repr():
    learner, batch = learner_of(), regression()
    out, learners = learner(*batch), learner.adapt(*batch[:2])
    assert len(repr(out)) < 200
    assert "3 tasks" in repr(out)
    assert "[3, 5, 1]" in repr(out)
    assert len(repr(learners)) < 200
    assert "3 tasks" in repr(learners)
    loss, losses, outputs, finite = out
    assert loss is out.loss
    assert (losses.shape, outputs.shape, finite.tolist()) == ((3,), (3, 5, 1), [True] * 3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the compiler's own looking
def test_a_compiler_of_the_user_s_breaks_its_graph_at_the_learner():
    """Conv2d has tuples among its attributes, which once broke the guards of torch.compile."""
    batch = [x.float() if x.is_floating_point() else x for x in classification(1, 4, 4, tasks=2, support=6, query=5)]
    learner = learner_of(model=conv().float(), inner_loss=F.cross_entropy, inner_steps=1)
    want = grads_of(learner, batch)

    def step(*batch):
        out = learner(*batch)
        return out.loss * 2.0

    def adapted(*batch):
        return F.cross_entropy(learner.adapt(*batch[:2])(batch[2]).flatten(0, 1), batch[3].flatten())

    for function, factor in (
        (torch.compile(learner, backend="eager"), 1.0),
        (torch.compile(step, backend="eager"), 2.0),
    ):
        learner.zero_grad()
        out = function(*batch)
        (out if isinstance(out, torch.Tensor) else out.loss).backward()
        got = {name: p.grad / factor for name, p in learner.named_parameters()}
        assert relative(got, {name: want[name] for name in got}) < 1e-5
    learner.zero_grad()
    torch.compile(adapted, backend="eager")(*batch).backward()
    got = {name: p.grad for name, p in learner.named_parameters()}
    assert relative(got, {name: want[name] for name in got}) < 1e-5


def test_every_rule_and_adjoint_is_hashable_and_equal_where_it_is_alike():
    for make in (
        lambda: fastmeta.SGD(lr=[0.1, 0.2]),
        lambda: fastmeta.Adam(lr=0.1, betas=[0.9, 0.99]),
        Unrolled,
        Identity,
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    assert fastmeta.SGD(lr=0.1).structure() == fastmeta.SGD(lr=0.7).structure()
    for a, b in itertools.combinations(
        (fastmeta.SGD(lr=0.1), fastmeta.SGD(lr=0.2), fastmeta.SGD(lr=0.1, momentum=0.1)), 2
    ):
        assert a != b
