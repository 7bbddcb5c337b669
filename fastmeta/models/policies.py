"""Policies: what a network's outputs say of actions, how actions are drawn, and their log probabilities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GaussianPolicy(nn.Module):
    """Actions a ~ N(μ(s), diag σ²), with a network for μ and a learned log σ that no state changes.

    Outputs are (μ, log σ), [N, actions] each.

    Args:
        mean: the network, [N, *observation] → [N, actions].
        actions: numbers in an action.
        std: σ at the beginning.

    Raises:
        ValueError: no number in an action, or a σ that is not positive.
    """

    def __init__(self, mean: nn.Module, *, actions: int, std: float = 1.0) -> None:
        super().__init__()
        if actions < 1 or not 0 < std < math.inf:
            raise ValueError(f"actions must be at least 1 and std positive, got actions={actions!r} and std={std!r}")
        self.mean = mean
        self.log_std = nn.Parameter(torch.full((actions,), math.log(std)))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(observations)
        return mean, self.log_std.expand_as(mean)

    @staticmethod
    def draw(outputs: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
        """Actions [..., actions] of outputs with any dimensions in front."""
        mean, log_std = outputs
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_std.exp() * noise

    @staticmethod
    def log_probability(outputs: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
        """log N(a; μ, σ²), [...]."""
        mean, log_std = outputs
        z = (actions - mean) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


class CategoricalPolicy(nn.Module):
    """One of several choices, with probabilities softmax(logits(s)).

    Args:
        logits: the network, [N, *observation] → [N, choices].
    """

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, observations: Tensor) -> Tensor:
        return self.logits(observations)

    @staticmethod
    def draw(outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choices [...] int64, of logits [..., choices]."""
        drawn = torch.multinomial(outputs.flatten(0, -2).softmax(-1), 1, generator=generator)
        return drawn.view(outputs.shape[:-1])

    @staticmethod
    def log_probability(outputs: Tensor, actions: Tensor) -> Tensor:
        """log π(a), [...]."""
        return F.log_softmax(outputs, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def navigation_policy(*, width: int = 100, std: float = 1.0) -> GaussianPolicy:
    """Two hidden layers of ReLU, 2 → 2: what MAML was shown on for 2-D navigation (Finn et al. 2017, section 5.3)."""
    mean = nn.Sequential(
        nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )  # fmt: skip
    return GaussianPolicy(mean, actions=2, std=std)
