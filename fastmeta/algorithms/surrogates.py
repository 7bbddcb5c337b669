"""Losses of a policy whose derivatives are those of its expected return, and the advantages in them.

A return is expected over what the policy itself draws, J(φ) = E_{τ ~ π_φ}[R(τ)]: its derivatives have a part through
the sampling. Automatic differentiation knows nothing of that, so a loss of drawn episodes must carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.engine.batch import Tree
from fastmeta.trajectories import Trajectories

Kind = Literal["dice", "lvc", "plain"]
Baseline = Callable[[Trajectories, Tensor], Tensor]
"""(trajectories, returns to go [T, E, H]) → what is expected from each step on, [T, E, H]."""

LogProbability = Callable[[Tree, Tensor], Tensor]
"""(a policy's outputs, actions), both with any dimensions in front → log π(action), [...]."""


def magic_box(x: Tensor) -> Tensor:
    """exp(x − ⊥x): one, with the derivatives of exp(x) (Foerster et al. 2018, equation 5); ⊥ takes no gradient."""
    return (x - x.detach()).exp()


@dataclass(frozen=True)
class Surrogate:
    """A policy's loss: (outputs, (actions, credits, mask)) → minus a return for each step of the horizon.

    For one task's outputs [N, ...] it is a scalar, for those of all tasks, [T, N, ...], it is [T]; N = E · H steps.
    `PolicyMAML` says what the kinds are.
    """

    kind: Kind
    log_probability: LogProbability

    def credits(self, advantages: Tensor) -> Tensor:
        """What stands beside each step's probability, of advantages [T, E, H] that are zero behind an episode's end.

        DiCE gives every step what is earned there, A_h − A_{h+1}: the reward itself, or with a baseline the reward
        reshaped by it. As log probabilities are summed up to each step, its derivatives are those of "loaded" DiCE
        (Farquhar et al. 2019), and a baseline makes no order of them biased.
        """
        return advantages - F.pad(advantages[..., 1:], (0, 1)) if self.kind == "dice" else advantages

    def __call__(self, outputs: Tree, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        actions, credit, mask = targets
        log_p = self.log_probability(outputs, actions).reshape(credit.shape) * mask
        if self.kind == "plain":
            return -(log_p * credit).mean((-2, -1))
        return -(magic_box(log_p.cumsum(-1) if self.kind == "dice" else log_p) * credit).mean((-2, -1))


def returns_to_go(rewards: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Σ_{h' ≥ h} γ^{h'−h} r_{h'}, [T, E, H]; zero behind an episode's end."""
    rewards, total, found = rewards * mask, torch.zeros_like(rewards[..., 0]), []
    for h in range(rewards.shape[-1] - 1, -1, -1):
        total = rewards[..., h] + discount * total
        found.append(total)
    return torch.stack(found[::-1], -1) * mask


@dataclass(frozen=True)
class LinearBaseline:
    """Returns to go as a linear function of features of observation s and step h, fitted for each task.

    Features: s and s², s within [−10, 10], h/100 and its square and cube, and one (Duan et al. 2016), by
    ridge regression in closed form on the very episodes that it is then used on, in float64.

    Args:
        ridge: what is added to the diagonal of the normal equations.

    Raises:
        ValueError: for a ridge that is not positive.
    """

    ridge: float = 1e-5

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge must be positive, got {self.ridge!r}")

    def __call__(self, trajectories: Trajectories, returns: Tensor) -> Tensor:
        features = self._features(trajectories)
        seen = (features * trajectories.mask.unsqueeze(-1)).flatten(1, 2)
        normal = seen.mT @ seen + self.ridge * torch.eye(seen.shape[-1], dtype=seen.dtype, device=seen.device)
        wanted = seen.mT @ returns.to(seen.dtype).flatten(1).unsqueeze(-1)
        weights = torch.linalg.solve_ex(normal, wanted).result  # a task without numbers must not stop the others
        return (features.flatten(1, 2) @ weights).view_as(returns).to(returns.dtype)

    def _features(self, trajectories: Trajectories) -> Tensor:
        """[T, E, H, features]."""
        s = trajectories.observations.flatten(3) if trajectories.observations.dim() > 3 else (
            trajectories.observations.unsqueeze(-1)
        )  # fmt: skip
        s = s.double().clamp(-10.0, 10.0)
        h = torch.arange(s.shape[2], dtype=s.dtype, device=s.device).view(-1, 1).expand(*s.shape[:3], 1) / 100
        return torch.cat([s, s.square(), h, h.square(), h**3, torch.ones_like(h)], -1)


def advantages(
    trajectories: Trajectories, *, discount: float, baseline: Baseline | None, normalise: bool
) -> Tensor:  # fmt: skip
    """γ^h (return to go − baseline), [T, E, H]; zero behind an episode's end.

    Args:
        discount: γ.
        baseline: None: zero.
        normalise: shift and scale each task's to mean 0 and variance 1.
    """
    mask = trajectories.mask
    found = returns_to_go(trajectories.rewards, mask, discount)
    if baseline is not None:
        found = found - baseline(trajectories, found)
    found = found * mask * discount ** torch.arange(found.shape[-1], dtype=found.dtype, device=found.device)
    if not normalise:
        return found
    steps = mask.sum((1, 2), keepdim=True).clamp(min=1)
    centred = (found - found.sum((1, 2), keepdim=True) / steps) * mask
    return centred / ((centred.square().sum((1, 2), keepdim=True) / steps).sqrt() + 1e-8)
