"""A decision process small enough for its exact returns, and episodes on a line, for tests of policies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.algorithms.policy import Actor
from fastmeta.models import CategoricalPolicy, GaussianPolicy

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
        return self.meta_gradients(torch.full((steps,), ALPHA, dtype=torch.float64))[0]

    def meta_gradients(self, rates: Tensor) -> tuple[Tensor, ...]:
        """The same, and that of the steps' rates."""
        theta, rates = self.theta.clone().requires_grad_(), rates.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for task in range(TASKS):
            phi = theta
            for rate in rates:
                phi = phi + rate * self.gradient(phi, task)
            total = total - self.value(phi, task) / TASKS
        return torch.autograd.grad(total, (theta, rates), allow_unused=True)

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


def drawn_gradient(learner: fastmeta.PolicyMAML, sample: Callable[[Actor], fastmeta.Trajectories]) -> Tensor:
    """The meta-gradient of a step."""
    learner.zero_grad()
    learner.step(sample).loss.backward()
    return grad_of(learner)


def meta_gradient(process: Process, **options: Any) -> Tensor:
    return drawn_gradient(make(make_policy(), **options), process)


def off(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def line(act: Actor, episodes: int = 4) -> fastmeta.Trajectories:
    """Three tasks, episodes of at most five steps on a line, towards 1, −1 and 2; some end earlier."""
    goals = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    at, seen, done, earned = torch.zeros(3, episodes, 1, dtype=torch.float64), [], [], []
    for _ in range(5):
        seen.append(at)
        done.append(act(at))
        at = at + 0.3 * done[-1]
        earned.append(-(at - goals).square().squeeze(-1))
    mask = torch.arange(5) < torch.tensor([5, 5, 4, 2]).repeat(episodes // 4).view(-1, 1)
    return fastmeta.Trajectories(*(torch.stack(x, 2) for x in (seen, done, earned)), mask.expand(3, -1, -1))


def line_policy() -> GaussianPolicy:
    torch.manual_seed(2)
    mean = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    return GaussianPolicy(mean, actions=1, std=0.7).double()
