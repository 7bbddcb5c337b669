"""MAML for policies, held against the derivative of the exact return of a small decision process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from registry import MODES
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from fastmeta.algorithms import LinearBaseline
from fastmeta.algorithms.policy import Actor
from fastmeta.algorithms.surrogates import advantages, returns_to_go
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


# Advantages. --------------------------------------------------------------------------------------------------------


def played(rewards: Tensor, mask: Tensor) -> fastmeta.Trajectories:
    observations = torch.randn(*rewards.shape, 2, generator=torch.Generator().manual_seed(0), dtype=rewards.dtype)
    return fastmeta.Trajectories(observations, torch.zeros_like(rewards), rewards, mask)


def test_advantages_are_discounted_returns_to_go():
    rewards = torch.tensor([[[1.0, 2.0, 4.0], [3.0, 5.0, 100.0]]])
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    got = advantages(played(rewards, mask), discount=0.5, baseline=None, normalise=False)
    torch.testing.assert_close(got, torch.tensor([[[3.0, 2.0, 1.0], [5.5, 2.5, 0.0]]]))


def test_the_linear_baseline_is_the_least_squares_fit_of_each_task():
    draws = torch.Generator().manual_seed(1)
    rewards = torch.randn(2, 6, 7, generator=draws, dtype=torch.float64)
    mask = torch.arange(7) < torch.randint(3, 8, (2, 6, 1), generator=draws)
    drawn = played(rewards, mask)
    returns = returns_to_go(rewards, mask, 0.9)
    got = LinearBaseline(ridge=1e-5)(drawn, returns)
    for task in range(2):
        s, h = drawn.observations[task], torch.arange(7.0, dtype=torch.float64).expand(6, 7)[..., None] / 100
        features = torch.cat([s, s**2, h, h**2, h**3, torch.ones_like(h)], -1)
        rows = torch.cat([features[mask[task]], 1e-5**0.5 * torch.eye(8, dtype=torch.float64)])  # the ridge
        wanted = torch.cat([returns[task][mask[task]], torch.zeros(8, dtype=torch.float64)])
        fit = torch.linalg.lstsq(rows, wanted.unsqueeze(1)).solution
        torch.testing.assert_close(got[task], (features @ fit).squeeze(-1), rtol=1e-6, atol=1e-6)


def test_a_fitted_baseline_lowers_the_noise():
    """Of the meta-gradient over thirty draws of the same tasks."""

    def noise(baseline: LinearBaseline | None) -> float:
        learner = make(
            line_policy(), surrogate="lvc", baseline=baseline, inner_optimizer=fastmeta.SGD(lr=0.05),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return torch.stack([drawn_gradient(learner, line) for _ in range(30)]).var(0).sum().item()

    assert noise(LinearBaseline()) < 0.7 * noise(None)


def test_normalised_advantages_have_mean_zero_and_variance_one():
    rewards = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 5, 4, 3, 2]).view(1, 5, 1).expand(2, -1, -1)
    got = advantages(played(rewards, mask), discount=0.9, baseline=None, normalise=True)
    for task in range(2):
        assert got[task][mask[task]].mean().abs() < 1e-12
        assert got[task][mask[task]].std(correction=0) == pytest.approx(1, abs=1e-6)
        assert (got[task][~mask[task]] == 0).all()


# Errors. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"surrogate": "reinforce"}, "surrogate must be one of 'dice', 'lvc', 'plain', got 'reinforce'"),
        ({"discount": 1.5}, r"discount must be a number in \(0, 1\], got 1.5"),
        ({"baseline": 3}, "baseline must be a callable"),
        ({"inner_loss": nn.MSELoss()}, "inner_loss is not an option of PolicyMAML, as it is the surrogate"),
        ({"inner_batch_size": 4}, "inner_batch_size is not an option of PolicyMAML, as every inner step draws"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        make(line_policy(), **options)


def test_a_network_alone_is_no_policy():
    with pytest.raises(TypeError, match=r"policy must have methods draw.*which Linear has not"):
        make(nn.Linear(1, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": torch.zeros(3, 4)}, r"rewards must have shape \[tasks, episodes, steps\]"),
        ({"actions": torch.zeros(3, 4, 6, 1)}, r"actions must start with .*\[3, 4, 5\], got shape \[3, 4, 6, 1\]"),
        ({"mask": torch.ones(3, 4, 5)}, "mask must be bool"),
        ({"rewards": torch.zeros(3, 4, 5, dtype=torch.int64)}, "rewards must be of a floating-point type"),
        ({"rewards": [1.0]}, "rewards must be a tensor, got list"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused(change: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        make(line_policy()).step(lambda act: line(act)._replace(**change))


def test_observations_without_episodes_are_refused():
    with pytest.raises(
        ValueError, match=r"observations must be a tensor \[tasks, episodes, \*observation\], got \[3\]"
    ):
        make(line_policy()).step(lambda act: act(torch.zeros(3)))


def test_outputs_that_all_observations_share_are_refused():
    class Shared(GaussianPolicy):
        def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(observations), self.log_std

    policy = Shared(nn.Linear(1, 1), actions=1).double()
    with pytest.raises(ValueError, match=r"policy must give outputs \[N, ...\].*expand what does not depend"):
        make(policy).step(line)


def test_a_parameter_beside_the_outputs_is_refused():
    class Beside(GaussianPolicy):
        def log_probability(self, outputs, actions):
            return GaussianPolicy.log_probability((outputs[0], self.log_std), actions)

    policy = Beside(nn.Linear(1, 1), actions=1).double()
    with pytest.raises(ValueError, match=r"policy.log_probability reads a parameter of Beside"):
        make(policy).step(line)


def test_log_probabilities_of_each_number_of_an_action_are_refused():
    class Each(GaussianPolicy):
        @staticmethod
        def log_probability(outputs: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
            return -(actions - outputs[0]).square()

    with pytest.raises(ValueError, match=r"one number for each of the 20 actions .*got shape \[20, 1\]; sum over"):
        make(Each(nn.Linear(1, 1), actions=1).double()).step(line)


def test_a_policy_on_distributions_of_torch():
    """Checked or not, of the distribution's own arguments; unchecked ones run on all tasks at once."""

    class Torch(nn.Module):
        def __init__(self, mean: nn.Module, *, checked: bool) -> None:
            super().__init__()
            self.mean, self.checked = mean, checked

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(x), 0.7 * torch.ones_like(x)

        def normal(self, outputs: tuple[Tensor, Tensor]) -> torch.distributions.Normal:
            return torch.distributions.Normal(*outputs, validate_args=self.checked)

        def draw(self, outputs: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
            noise = torch.randn(outputs[0].shape, generator=generator, dtype=outputs[0].dtype)
            return outputs[0] + outputs[1] * noise

        def log_probability(self, outputs: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
            return self.normal(outputs).log_prob(actions).sum(-1)

    found = []
    for checked in (False, True):
        learner = make(
            Torch(line_policy().mean, checked=checked), inner_optimizer=fastmeta.SGD(lr=0.05),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append(drawn_gradient(learner, line))
        assert ("task by task" in learner.explain()) == checked
    assert off(found[1], found[0]) < 1e-12


def test_navigation_float32():
    """One meta-step as the paper has it, on fewer and shorter episodes."""
    torch.manual_seed(0)
    policy = GaussianPolicy(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)), actions=2)
    learner = fastmeta.PolicyMAML(policy, surrogate="lvc", inner_optimizer=fastmeta.SGD(lr=0.1))
    out = learner.step(Navigation(episodes=5, horizon=10).sample(4, torch.Generator().manual_seed(0)))
    out.loss.backward()
    assert out.returns.shape == (2, 4)
    assert grad_of(learner).isfinite().all()
