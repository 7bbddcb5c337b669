"""Properties that every algorithm and rule keep in every way of running them; training ends where it should."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from meta_steps import (
    Batch,
    assert_close,
    assert_same_step,
    classification,
    mlp,
    regression,
    relative,
    step,
    with_backend,
)
from registry import ALGORITHMS, MODES, OWN, PAIRS, rule_of
from torch import nn

import fastmeta


def learner_of(algorithm, model=None, **options):
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.3), "inner_steps": 3} | options
    return ALGORITHMS[algorithm].learner(mlp(2, 5, 1) if model is None else model, **options)


def small_conv():
    """Smooth, so that rounding is all that two correct implementations differ by."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mode", MODES)
class TestEveryAlgorithmInEveryMode:
    def test_permuting_the_tasks_permutes_the_results(self, algorithm, mode):
        learner, batch = learner_of(algorithm, **MODES[mode]), regression(tasks=5)
        order = torch.tensor([3, 0, 4, 1, 2])
        straight, permuted = step(learner, batch), step(learner, Batch(*(x[order] for x in batch)))
        assert relative(permuted.losses, straight.losses[order]) < 1e-13
        assert relative(permuted.outputs, straight.outputs[order]) < 1e-13
        assert relative(straight.losses[order], straight.losses) > 1e-2
        assert_close(permuted.grads, straight.grads, 1e-12)

    def test_without_steps_it_is_the_plain_query_gradient(self, algorithm, mode):
        learner, batch = learner_of(algorithm, inner_steps=0, **MODES[mode]), regression()
        got = step(learner, batch)
        outputs = learner.module(batch.query_x)
        assert relative(got.outputs, outputs) < 1e-13
        if not ALGORITHMS[algorithm].derivative:  # θ − φ_K is zero
            assert all((g == 0).all() for g in got.grads.values())
            return
        named = dict(learner.module.named_parameters())
        expected = torch.autograd.grad(F.mse_loss(outputs, batch.query_y), list(named.values()))
        assert_close({name: got.grads[name] for name in named}, dict(zip(named, expected, strict=True)), 1e-12)
        assert all((got.grads[name] == 0).all() for name in got.grads.keys() - named.keys())

    def test_inputs_stay_and_a_second_call_gives_the_same(self, algorithm, mode):
        learner, batch = learner_of(algorithm, **MODES[mode]), regression()
        before = [(x.clone(), x._version) for x in (*batch, *learner.parameters())]
        first, second = step(learner, batch), step(learner, batch)
        for x, (value, version) in zip((*batch, *learner.parameters()), before, strict=True):
            assert torch.equal(x, value)
            assert x._version == version
        assert torch.equal(first.losses, second.losses)
        assert all(torch.equal(second.grads[name], g) for name, g in first.grads.items())

    @pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2), (3, 1, 2), (2, 3, 1)])
    def test_single_tasks_and_samples(self, algorithm, mode, sizes):
        tasks, support, query = sizes
        learner, batch = learner_of(algorithm, **MODES[mode]), regression(tasks, support, query)
        got = assert_same_step(learner, batch, with_backend(learner, "reference"), 1e-10)
        assert got.outputs.shape == (tasks, query, 1)

    def test_strided_and_expanded_inputs(self, algorithm, mode):
        learner, batch = learner_of(algorithm, **MODES[mode]), regression()
        want = step(learner, batch)
        strided = Batch(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in batch))
        assert not strided.support_x.is_contiguous()
        assert_close(step(learner, strided).grads, want.grads, 1e-12)
        shared = Batch(*(x[:1].expand_as(x) for x in batch))
        got, one = step(learner, shared), step(learner, Batch(*(x[:1] for x in batch)))
        assert relative(got.losses, one.losses.expand(3)) < 1e-13
        assert_close(got.grads, one.grads, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm, rule", PAIRS)
def test_same_as_eager(algorithm, mode, rule):
    learner = learner_of(algorithm, inner_optimizer=rule_of(rule), **MODES[mode])
    got = assert_same_step(learner, regression(tasks=5), with_backend(learner, "torch"), 1e-10)
    assert (rule == OWN) == any(name.startswith("learned.") for name in got.grads)


def test_first_order_gradients_are_another_gradient_by_a_known_factor():
    """On L_s = (w − a)²/2, L_q = (w − b)²/2, each step's Hessian is 1: MAML's gradient is (1 − α)^K of FOMAML's."""

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))

        def forward(self, x):
            return self.w + 0.0 * x

    model, batch = Point(), regression(features=1)
    options = {"inner_loss": lambda w, a: (w - a).square().mean() / 2, "inner_steps": 3}
    for mode in MODES.values():
        exact, first = (step(learner_of(a, model, **options, **mode), batch) for a in ("maml", "fomaml"))
        assert torch.equal(exact.losses, first.losses)
        assert relative(exact.grads["w"], 0.7**3 * first.grads["w"]) < 1e-12
        assert first.grads["w"].abs() > 0.05


@pytest.mark.parametrize("mode", MODES)
def test_modes_agree_on_a_convolutional_network(mode):
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    learner = learner_of("maml", small_conv(), inner_loss=F.cross_entropy, **MODES[mode])
    got = assert_same_step(learner, batch, with_backend(learner, "torch"), 1e-10)
    first = step(learner_of("fomaml", learner.module, inner_loss=F.cross_entropy), batch)
    assert relative(first.grads, got.grads) > 0.05


@pytest.fixture(scope="module")
def compiled_conv():
    """A learner whose code is compiled for a batch, and the batch: most of the time is the compiler's."""
    torch.manual_seed(0)
    batch = classification(1, 4, 4, tasks=2)
    learner = learner_of("maml", small_conv(), inner_loss=F.cross_entropy, inner_steps=1, compile=True)
    learner(*batch)
    return learner, batch


def test_compiled_convolutional_network(compiled_conv):
    learner, batch = compiled_conv
    assert_same_step(learner, batch, with_backend(learner, "torch"), 1e-10)


def test_compiled_convolutional_network_of_strided_images(compiled_conv):
    learner, batch = compiled_conv
    strided = batch._replace(query_x=batch.query_x.transpose(-1, -2).contiguous().transpose(-1, -2))
    assert relative(step(learner, strided).losses, step(with_backend(learner, "torch"), batch).losses) < 1e-10


@pytest.mark.parametrize(
    "algorithm, rule", [pair for pair in PAIRS if pair[0] in ("maml", "fomaml", "reptile", "meta-sgd")]
)
def test_compiled(algorithm, rule):
    """Code of the meta-step and of learners."""
    learner = learner_of(algorithm, inner_optimizer=rule_of(rule), inner_steps=2, compile=True)
    check_compiled(learner, [regression()])


@pytest.mark.parametrize("mode", ["eager", "recompute", "chunked"])
@pytest.mark.parametrize("algorithm, rule", PAIRS)
def test_what_is_compiled_is_traced_exactly(algorithm, rule, mode, traced):
    """All that `compile` does but the code generation: learners too, and inputs of other strides."""
    learner, batch = (
        learner_of(algorithm, inner_optimizer=rule_of(rule), inner_steps=2, compile=True, **MODES[mode]),
        regression(),
    )
    strided = Batch(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in batch))
    check_compiled(learner, [batch, strided])
    assert len(traced) >= 2


def check_compiled(learner, batches):
    eager = with_backend(learner, "torch")
    for batch in batches:
        assert_same_step(learner, batch, eager, 1e-12)
    batch, grads = batches[0], []
    for either in (learner, eager):
        either.zero_grad()
        outputs = either.adapt(batch.support_x, batch.support_y)(batch.query_x)
        F.mse_loss(outputs, batch.query_y).backward()
        grads.append({name: p.grad.clone() for name, p in either.module.named_parameters()})
    assert_close(*grads, 1e-12)


def shuffled(batch, seed):
    """The same samples in another order."""
    generator = torch.Generator().manual_seed(seed)
    n, m = (torch.randperm(x.shape[1], generator=generator) for x in (batch.support_x, batch.query_x))
    return Batch(batch.support_x[:, n], batch.support_y[:, n], batch.query_x[:, m], batch.query_y[:, m])


@pytest.mark.parametrize("make, data", [
    (lambda: mlp(2, 9, 7, 1), lambda: regression(tasks=4)),
    (small_conv, lambda: classification(1, 4, 4, tasks=3, support=6, query=5)),
], ids=["mlp", "conv"])  # fmt: skip
@pytest.mark.parametrize("algorithm, rule", PAIRS)
def test_float32_errs_no_more_than_autograd_does(algorithm, rule, make, data):
    """‖fast − truth‖ ≤ 2 ‖autograd in float32 − truth‖ + a rounding of the value itself; smooth activations.

    Both errors are means over orders of the samples, which change roundings and nothing else: of a single order either
    may be small or large by luck.
    """
    model, batch = make(), data()
    loss = F.mse_loss if batch.support_y.is_floating_point() else F.cross_entropy
    narrow, rounded = copy.deepcopy(model).float(), Batch(*(x.float() if x.is_floating_point() else x for x in batch))
    batch = Batch(*(x.double() if x.is_floating_point() else x for x in rounded))
    options = {"inner_loss": loss, "inner_optimizer": rule_of(rule)}
    learner = learner_of(algorithm, narrow, backend="torch", **options)
    exact = learner_of(algorithm, model, backend="reference", **options)
    exact.load_state_dict(learner.state_dict())  # the same values
    truth = step(exact, batch)
    orders = [rounded, *(shuffled(rounded, seed) for seed in range(7))]
    plain, fast = (
        [step(either, order) for order in orders] for either in (with_backend(learner, "reference"), learner)
    )
    largest = max(g.norm() for g in truth.grads.values())
    for name, want in truth.grads.items():
        atol = torch.finfo(torch.float32).eps * max(want.norm(), 1e-1 * largest)
        error, allowed = (
            torch.stack([(x.grads[name].double() - want).norm() for x in steps]).mean() for steps in (fast, plain)
        )
        assert error <= 2 * allowed + atol, name
        assert fast[0].grads[name].dtype == torch.float32
    assert relative(fast[0].losses, truth.losses) < 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_on_either_backend_ends_in_the_same_parameters(algorithm):
    def train(model, backend):
        generator = torch.Generator().manual_seed(7)
        learner = learner_of(algorithm, model, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=2, backend=backend)
        outer = torch.optim.Adam(learner.parameters(), lr=0.01)
        for _ in range(30):
            phase = 3.0 * torch.rand(3, 1, 1, dtype=torch.float64, generator=generator)
            x = 4.0 * torch.rand(3, 12, 1, dtype=torch.float64, generator=generator) - 2.0
            y = torch.sin(x + phase)
            outer.zero_grad()
            learner(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:]).loss.backward()
            outer.step()
        return dict(model.state_dict())

    start = mlp(1, 8, 8, 1)
    fast, truth = (train(copy.deepcopy(start), backend) for backend in ("torch", "reference"))
    assert_close(fast, truth, 1e-9)
    assert relative(dict(start.state_dict()), truth) > 0.05


def test_reptile_runs_without_a_query_set_and_is_classic_under_sgd():
    learner, batch = learner_of("reptile"), regression()
    theta = {name: p.clone() for name, p in learner.module.named_parameters()}
    phi = learner.adapt(batch.support_x, batch.support_y).parameters()
    outer = torch.optim.SGD(learner.parameters(), lr=0.2)
    learner(batch.support_x, batch.support_y).loss.backward()
    outer.step()
    for name, p in learner.module.named_parameters():
        assert relative(p - theta[name], 0.2 * (phi[name].mean(0) - theta[name])) < 1e-12


def test_first_order_is_an_option_of_algorithms_that_go_through_the_inner_steps():
    model, batch = mlp(2, 5, 1), regression()
    option, algorithm = learner_of("maml", model, first_order=True), learner_of("fomaml", model)
    assert_close(step(option, batch).grads, step(algorithm, batch).grads, 0.0)
    with pytest.raises(ValueError, match="Reptile has no first-order form"):
        learner_of("reptile", model, first_order=True)
