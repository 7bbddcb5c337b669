"""MAML for policies, held against the derivative of the exact return of a small decision process."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from policies import (
    GAMMA,
    HORIZON,
    STATES,
    TASKS,
    Exact,
    Process,
    drawn_gradient,
    grad_of,
    line,
    line_policy,
    make,
    make_policy,
    meta_gradient,
    off,
)
from registry import MODES
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.algorithms import LinearBaseline
from fastmeta.algorithms.policy import Actor
from fastmeta.models import GaussianPolicy
from fastmeta.tasks import Navigation

# The meta-gradient, expected exactly: every episode, weighted by its probability. -----------------------------------


@pytest.mark.parametrize("mode, steps", [*((mode, 3) for mode in MODES), ("eager", 0), ("eager", 1)])
def test_dice_is_the_derivative_of_the_adapted_return(mode: str, steps: int):
    process = Process()
    got = meta_gradient(process, inner_steps=steps, **MODES[mode])
    assert off(got, Exact(make_policy(), process).meta_gradient(steps)) < 1e-12


def test_learned_rates_of_every_step_get_theirs_too():
    process, rates = Process(), [2.0, 0.5, 1.0]
    rule = fastmeta.SGD(lr=fastmeta.PerLayerPerStep(1.0))
    learner = make(make_policy(), inner_steps=3, inner_optimizer=rule)
    with torch.no_grad():
        for rate in learner.learned.parameters():
            rate.copy_(torch.tensor(rates, dtype=torch.float64).view(3, *(1,) * (rate.dim() - 1)).expand_as(rate))
    got = drawn_gradient(learner, process)
    theta, of_rates = Exact(make_policy(), process).meta_gradients(torch.tensor(rates, dtype=torch.float64))
    assert off(got, theta) < 1e-12
    slopes = torch.stack([rate.grad.flatten(1).sum(1) for rate in learner.learned.parameters()]).sum(0)
    assert off(slopes, of_rates) < 1e-12


@pytest.mark.parametrize("surrogate", ["dice", "lvc"])
def test_no_order_of_it_depends_on_a_baseline_of_the_state(surrogate: str):
    process = Process()
    with_it = meta_gradient(process, surrogate=surrogate, baseline=process.baseline)
    assert off(with_it, meta_gradient(process, surrogate=surrogate)) < 1e-12


def test_lvc_leaves_out_how_later_returns_change_and_nothing_else():
    process = Process()
    exact, got = Exact(make_policy(), process), meta_gradient(process, surrogate="lvc")
    assert off(got, exact.meta_gradient_of(lambda task: exact.hessian(task) - exact.later_returns(task))) < 1e-12
    assert 0.01 < off(got, exact.meta_gradient(1)) < 0.5


def test_lvc_is_exact_for_episodes_of_one_step():
    bandit = Process(horizon=1)
    assert off(meta_gradient(bandit, surrogate="lvc"), Exact(make_policy(), bandit).meta_gradient(1)) < 1e-12


@pytest.mark.parametrize("horizon", [1, HORIZON])
def test_the_plain_surrogate_holds_episodes_fixed_and_is_wrong(horizon: int):
    process = Process(horizon)
    exact, got = Exact(make_policy(), process), meta_gradient(process, surrogate="plain")
    assert off(got, exact.meta_gradient_of(exact.of_fixed_episodes)) < 1e-12
    assert off(got, exact.meta_gradient(1)) > 0.1


@pytest.mark.parametrize("surrogate", ["dice", "lvc", "plain"])
def test_to_first_order_all_are_the_policy_gradient(surrogate: str):
    process = Process()
    exact = Exact(make_policy(), process)
    got = meta_gradient(process, surrogate=surrogate, first_order=True)
    assert off(got, exact.meta_gradient_of(lambda _: torch.zeros(()) * exact.hessian(0))) < 1e-12
    assert off(got, exact.meta_gradient(1)) > 0.01


# Drawn episodes. ----------------------------------------------------------------------------------------------------


class Drawn(Process):
    """The same process, played with the actor's own actions, `episodes` of each task."""

    def __init__(self, episodes: int) -> None:
        super().__init__(horizon=1)
        self.episodes = episodes

    def __call__(self, act: Actor) -> fastmeta.Trajectories:
        states = torch.eye(STATES, dtype=torch.float64)[0].expand(TASKS, self.episodes, STATES)
        actions = act(states)
        rewards = self.rewards[:, 0].gather(1, actions)
        return fastmeta.Trajectories(
            states.unsqueeze(2),
            actions.unsqueeze(2),
            rewards.unsqueeze(2),
            torch.ones_like(rewards).bool().unsqueeze(2),
        )


@pytest.mark.parametrize("surrogate", ["dice", "lvc"])
def test_with_more_episodes_it_converges_to_the_exact_one(surrogate: str):
    want = Exact(make_policy(), Process(horizon=1)).meta_gradient(1)

    learner = make(make_policy(), surrogate=surrogate, generator=torch.Generator().manual_seed(0))

    def distance(episodes: int) -> float:
        """Root mean square over eight draws."""
        found = [off(drawn_gradient(learner, Drawn(episodes)), want) ** 2 for _ in range(8)]
        return (sum(found) / len(found)) ** 0.5

    few, many = distance(100), distance(10_000)
    assert many < 0.07
    assert 6 < few / many < 18  # 1/√N: ten


def test_the_plain_surrogate_does_not_converge_to_it():
    want = Exact(make_policy(), Process(horizon=1)).meta_gradient(1)
    draws = torch.Generator().manual_seed(0)
    assert off(meta_gradient(Drawn(50_000), surrogate="plain", generator=draws), want) > 0.1


def by_hand(policy: nn.Module, drawn: tuple[fastmeta.Trajectories, ...], surrogate: str, rate: float) -> Tensor:
    """The meta-gradient from the same episodes: a loop over tasks, autograd, and the surrogates as the papers have
    them, Foerster et al.'s with rewards and Rothfuss et al.'s with returns to go."""
    names, theta = zip(*policy.named_parameters(), strict=True)

    def loss(weights: tuple[Tensor, ...], of: fastmeta.Trajectories, task: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        episodes, horizon = of.rewards.shape[1:]
        for e in range(episodes):
            length = int(of.mask[task, e].sum())
            mean, log_std = functional_call(policy, dict(zip(names, weights, strict=True)), (of.observations[task, e],))
            normal = torch.distributions.Normal(mean[:length], log_std[:length].exp())
            log_p = normal.log_prob(of.actions[task, e, :length]).sum(-1)
            rewards = of.rewards[task, e, :length] * GAMMA ** torch.arange(length, dtype=torch.float64)
            if surrogate == "dice":
                stochastic = log_p.cumsum(0)
                total = total - ((stochastic - stochastic.detach()).exp() * rewards).sum()
            else:
                later = torch.stack([rewards[h:].sum() for h in range(length)])
                total = total - ((log_p - log_p.detach()).exp() * later).sum()
        return total / (episodes * horizon)

    total = torch.zeros((), dtype=torch.float64)
    for task in range(len(drawn[0].rewards)):
        phi = theta
        for of in drawn[:-1]:
            slopes = torch.autograd.grad(loss(phi, of, task), phi, create_graph=True)
            phi = tuple(p - rate * g for p, g in zip(phi, slopes, strict=True))
        total = total + loss(phi, drawn[-1], task) / len(drawn[0].rewards)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, theta)])


@pytest.mark.parametrize("surrogate", ["dice", "lvc"])
@pytest.mark.parametrize("mode", MODES)
def test_gaussian_actions_and_episodes_of_different_lengths(mode: str, surrogate: str):
    learner = make(
        line_policy(), surrogate=surrogate, inner_steps=2, inner_optimizer=fastmeta.SGD(lr=0.05),
        generator=torch.Generator().manual_seed(0), **MODES[mode],
    )  # fmt: skip
    out = learner.step(line)
    out.loss.backward()
    assert off(grad_of(learner), by_hand(learner.module, out.trajectories, surrogate, 0.05)) < 1e-12
    assert out.returns.shape == (3, 3)
    assert torch.equal(out.returns[0], out.trajectories[0].totals())
    assert out.finite.all()


def test_compiled(traced):  # noqa: ARG001  without the compiler
    options: dict[str, Any] = {"inner_optimizer": fastmeta.SGD(lr=0.05)}
    found = []
    for compiled in (False, True):
        draws = torch.Generator().manual_seed(0)
        learner = make(line_policy(), generator=draws, compile=compiled, **options)
        learner.step(line).loss.backward()
        found.append(grad_of(learner))
    assert off(found[1], found[0]) < 1e-12


def test_all_of_it_runs_by_sweeps_of_its_own():
    for policy, sample in ((line_policy(), line), (make_policy(), Process())):
        for surrogate in ("dice", "lvc", "plain"):
            learner = make(policy, surrogate=surrogate)
            learner.step(sample)
            assert "opaque" not in learner.explain()
            assert "loss: Surrogate, own sweeps" in learner.explain()


def test_episodes_are_drawn_at_the_weights_of_their_step():
    """The very policy that a step's episodes were drawn with is the one that the step moves."""
    means: list[Tensor] = []

    def sample(act: Actor) -> fastmeta.Trajectories:
        means.append(act.outputs(torch.ones(3, 4, 1, dtype=torch.float64))[0][:, 0])
        return line(act)

    learner = make(line_policy(), inner_steps=2, inner_optimizer=fastmeta.SGD(lr=0.05))
    out = learner.step(sample)
    learners = learner.adapt(*learner.data(out.trajectories[0]), steps=1)
    further = learners.adapt_further(*learner.data(out.trajectories[1]), steps=1)
    x = torch.ones(3, 1, 1, dtype=torch.float64)
    for got, now in zip(means, (learner.module, learners, further), strict=True):
        torch.testing.assert_close(got, now(x)[0][:, 0])
    assert (means[2] - means[1]).abs().min() > 1e-4


def test_a_step_is_decided_by_the_generators_seed():
    def returns(seed: int) -> Tensor:
        return make(line_policy(), generator=torch.Generator().manual_seed(seed)).step(line).returns

    assert torch.equal(returns(3), returns(3))
    assert not torch.equal(returns(3), returns(4))


def test_adapted_policies_and_their_returns():
    learner = make(
        line_policy(), inner_optimizer=fastmeta.SGD(lr=0.2), baseline=LinearBaseline(),
        generator=torch.Generator().manual_seed(0), normalise_advantages=True,
    )  # fmt: skip
    adapted = learner.adapt_policies(partial(line, episodes=200), steps=8)
    assert adapted.returns.shape == (9, 3)
    assert not adapted.returns.requires_grad
    assert (adapted.returns[-1] > adapted.returns[0]).all()
    assert learner.adapt_policies(line, steps=0).returns.shape == (1, 3)


def test_a_task_without_numbers_is_left_out():
    def sample(act: Actor) -> fastmeta.Trajectories:
        drawn = line(act)
        drawn.rewards[1, 0, 0] = torch.nan
        drawn.observations[1, 0, 0] = torch.nan
        return drawn

    rule = fastmeta.SGD(lr=0.05)
    learner = make(line_policy(), inner_optimizer=rule, baseline=LinearBaseline())
    with pytest.warns(RuntimeWarning, match=r"task\(s\) \[1\]"):
        out = learner.step(sample)
    assert out.finite.tolist() == [True, False, True]
    out.loss.backward()
    assert grad_of(learner).isfinite().all()
    assert grad_of(learner).norm() > 0


def test_a_copy_has_a_policy_of_its_own():
    rule = fastmeta.SGD(lr=0.05)
    learner = make(line_policy(), inner_optimizer=rule, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(learner)
    with torch.no_grad():
        for p in other.module.parameters():
            p.zero_()
    out = learner.step(line)
    out.loss.backward()
    assert off(grad_of(learner), by_hand(learner.module, out.trajectories, "dice", 0.05)) < 1e-12


def test_navigation_float32():
    """One meta-step as the paper has it, on fewer and shorter episodes."""
    torch.manual_seed(0)
    policy = GaussianPolicy(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)), actions=2)
    learner = fastmeta.PolicyMAML(policy, surrogate="lvc", inner_optimizer=fastmeta.SGD(lr=0.1))
    out = learner.step(Navigation(episodes=5, horizon=10).sample(4, torch.Generator().manual_seed(0)))
    out.loss.backward()
    assert out.returns.shape == (2, 4)
    assert grad_of(learner).isfinite().all()
