"""Advantages of trajectories, and what policies and trajectories are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from policies import (
    drawn_gradient,
    line,
    line_policy,
    make,
    off,
)
from torch import Tensor, nn

import fastmeta
from fastmeta.algorithms import LinearBaseline
from fastmeta.algorithms.surrogates import advantages, returns_to_go
from fastmeta.models import GaussianPolicy

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
