"""What an algorithm may say of its own, every way against one task at a time by autograd."""

from __future__ import annotations

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
    sharing,
    weighing,
)
from meta_steps import regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Identity, Unrolled
from fastmeta.engine.prior import Proximal
from fastmeta.optim import Rule


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
