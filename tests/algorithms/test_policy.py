"""MAML for policies, held against the derivative of the exact return of a small decision process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from registry import MODES
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.algorithms.policy import Actor
from fastmeta.models import CategoricalPolicy, GaussianPolicy
from fastmeta.tasks import Navigation

TASKS, STATES, HORIZON, GAMMA, ALPHA = 3, 3, 3, 0.9, 2.0


class Process:
    """A decision process of three states, two actions and three steps, with rewards of its own in each task.

    As `sample(act)` it plays every possible episode once and weights its rewards by its probability under the actor's
    policies: what a loss that is linear in rewards is expected to be, without noise.
    """

    def __init__(self, horizon: int = HORIZON) -> None:
        draws = torch.Generator().manual_seed(3)
        self.horizon = horizon
        self.rewards = torch.randn(TASKS, STATES, 2, generator=draws, dtype=torch.float64)
        self.moves = torch.rand(STATES, 2, STATES, generator=draws, dtype=torch.float64)
        self.moves /= self.moves.sum(-1, keepdim=True)
        every = list(product(product(range(STATES), repeat=horizon), product(range(2), repeat=horizon)))
        every = [pair for pair in every if pair[0][0] == 0]  # all episodes start in state 0
        self.states, self.actions = (torch.tensor(x) for x in zip(*every, strict=True))
        self.weights = torch.empty(0)

    def probabilities(self, policies: Tensor) -> Tensor:
        """Of each episode, of π [T, states, actions]: [T, E]."""
        chosen = policies[:, self.states, self.actions].prod(-1)
        moved = self.moves[self.states[:, :-1], self.actions[:, :-1], self.states[:, 1:]].prod(-1)
        return chosen * moved

    def __call__(self, act: Actor) -> fastmeta.Trajectories:
        one_hot = torch.eye(STATES, dtype=torch.float64)
        policies = act.outputs(one_hot.expand(TASKS, -1, -1)).softmax(-1)
        self.weights = (self.probabilities(policies) * len(self.states)).unsqueeze(-1)
        rewards = self.rewards[:, self.states, self.actions] * self.weights
        shape = rewards.shape
        return fastmeta.Trajectories(
            one_hot[self.states].expand(*shape, -1), self.actions.expand(shape), rewards,
            torch.ones(shape, dtype=torch.bool),
        )  # fmt: skip

    def baseline(self, trajectories: fastmeta.Trajectories, returns: Tensor) -> Tensor:
        """Some function of state and time, weighted as the rewards are."""
        values = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)[self.states]
        return (values + torch.arange(self.horizon)).expand_as(returns) * self.weights

    def values(self, policy: Tensor, task: int) -> list[Tensor]:
        """Q_h [states, actions], by dynamic programming; differentiable in π [states, actions]."""
        found = [self.rewards[task]]
        for _ in range(self.horizon - 1):
            found.append(self.rewards[task] + GAMMA * self.moves @ (policy * found[-1]).sum(-1))
        return found[::-1]


def make_policy() -> CategoricalPolicy:
    torch.manual_seed(1)
    return CategoricalPolicy(nn.Sequential(nn.Linear(STATES, 4), nn.Tanh(), nn.Linear(4, 2))).double()


def make(policy: nn.Module, **options: Any) -> fastmeta.PolicyMAML:
    given: dict[str, Any] = {"inner_optimizer": fastmeta.SGD(lr=ALPHA), "discount": GAMMA, "baseline": None}
    return fastmeta.PolicyMAML(policy, **(given | options))


class Exact:
    """Returns of a process as functions of one row of parameters, by plain autograd alone."""

    def __init__(self, policy: nn.Module, process: Process) -> None:
        self.policy, self.process = policy, process
        self.names, self.shapes = zip(*((n, p.shape) for n, p in policy.named_parameters()), strict=True)
        self.theta = torch.cat([p.detach().flatten() for p in policy.parameters()])

    def log_policy(self, phi: Tensor) -> Tensor:
        parts = phi.split([s.numel() for s in self.shapes])
        named = {n: x.view(s) for n, x, s in zip(self.names, parts, self.shapes, strict=True)}
        return functional_call(self.policy, named, (torch.eye(STATES, dtype=torch.float64),)).log_softmax(-1)

    def value(self, phi: Tensor, task: int) -> Tensor:
        """J / H."""
        policy = self.log_policy(phi).exp()
        return (policy * self.process.values(policy, task)[0]).sum(-1)[0] / self.process.horizon

    def gradient(self, phi: Tensor, task: int) -> Tensor:
        with torch.enable_grad():
            phi = phi if phi.requires_grad else phi.clone().requires_grad_()
            return torch.autograd.grad(self.value(phi, task), phi, create_graph=True)[0]

    def hessian(self, task: int) -> Tensor:
        return torch.autograd.functional.hessian(lambda phi: self.value(phi, task), self.theta)

    def meta_gradient(self, steps: int) -> Tensor:
        """Of minus the mean over tasks of J(φ_K) / H."""
        theta, total = self.theta.clone().requires_grad_(), 0.0
        for task in range(TASKS):
            phi = theta
            for _ in range(steps):
                phi = phi + ALPHA * self.gradient(phi, task)
            total = total - self.value(phi, task) / TASKS
        return torch.autograd.grad(total, theta)[0]  # pyright: ignore[reportArgumentType]

    def meta_gradient_of(self, hessian: Callable[[int], Tensor]) -> Tensor:
        """The same for one step, with another matrix for the Hessian of J / H."""
        total = torch.zeros_like(self.theta)
        for task in range(TASKS):
            ahead = self.gradient(self.theta + ALPHA * self.gradient(self.theta, task).detach(), task).detach()
            total -= (ahead + ALPHA * hessian(task) @ ahead) / TASKS
        return total

    def expected(self, task: int, value: Callable[[int, int, int], Tensor]) -> Tensor:
        """Σ_h γ^h E[value(h, s_h, a_h)] / H."""
        policy, found = self.log_policy(self.theta).exp().detach(), torch.zeros(())
        reached = torch.eye(STATES, dtype=torch.float64)[0]
        for h in range(self.process.horizon):
            for s, a in product(range(STATES), range(2)):
                found = found + GAMMA**h * reached[s] * policy[s, a] * value(h, s, a) / self.process.horizon
            reached = torch.einsum("s,sa,saz->z", reached, policy, self.process.moves)
        return found

    def later_returns(self, task: int) -> Tensor:
        """Σ_h γ^h E[∇ log π_h (∇Q_h)ᵀ] and its transpose: what "lvc" leaves out."""
        score = torch.autograd.functional.jacobian(self.log_policy, self.theta)

        def q(phi: Tensor) -> Tensor:
            return torch.stack(self.process.values(self.log_policy(phi).exp(), task))

        slope = torch.autograd.functional.jacobian(q, self.theta)
        half = self.expected(task, lambda h, s, a: torch.outer(score[s, a], slope[h, s, a]))
        return half + half.T

    def of_fixed_episodes(self, task: int) -> Tensor:
        """Σ_h γ^h E[Q_h ∇² log π_h]: all that the plain surrogate has."""
        log_p = self.log_policy
        each = [[torch.autograd.functional.hessian(lambda phi, s=s, a=a: log_p(phi)[s, a], self.theta)
                 for a in range(2)] for s in range(STATES)]  # fmt: skip
        q = self.process.values(log_p(self.theta).exp().detach(), task)
        return self.expected(task, lambda h, s, a: q[h][s, a] * each[s][a])


def grad_of(learner: fastmeta.PolicyMAML) -> Tensor:
    found = [p.grad for p in learner.module.parameters()]
    return torch.cat([g.flatten() for g in found if g is not None])


def meta_gradient(process: Process, **options: Any) -> Tensor:
    learner = make(make_policy(), **options)
    learner.step(process).loss.backward()
    return grad_of(learner)


def off(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


# The meta-gradient, expected exactly: every episode, weighted by its probability. --------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_dice_is_the_derivative_of_the_adapted_return(mode: str, steps: int):
    process = Process()
    got = meta_gradient(process, inner_steps=steps, **MODES[mode])
    assert off(got, Exact(make_policy(), process).meta_gradient(steps)) < 1e-12


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
