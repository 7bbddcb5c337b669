"""What may be added to the support loss: a function Ω(φ, φ_0) of fast weights and their start, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastmeta.optim.base import check_number


@runtime_checkable
class Prior(Protocol):
    """Gradient and Hessian product of Ω, on rows [T, P]. Frozen and hashable: it is part of a plan's key.

    One with a method `value(phi, start)`, Ω of every task [T] in torch operations, runs under plain autograd too:
    `backend="reference"`, and models that can only run task by task.
    """

    def gradient(self, phi: Tensor, start: Tensor) -> Tensor:
        """∂Ω/∂φ [T, P]."""
        ...

    def hessian_product(self, phi: Tensor, start: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(∂²Ω/∂φ² v, ∂²Ω/∂φ_0∂φ v), [T, P] each."""
        ...


@dataclass(frozen=True)
class Proximal:
    """Ω = strength / 2 · ‖φ − φ_0‖²: the inner loop of iMAML (Rajeswaran et al. 2019, equation 3).

    Raises:
        ValueError: a strength that is negative or not finite.
    """

    strength: float

    def __post_init__(self) -> None:
        check_number("Proximal.strength", self.strength)

    def value(self, phi: Tensor, start: Tensor) -> Tensor:
        """Ω, [T]."""
        return (phi - start).abs().square().sum(1).mul(self.strength / 2)

    def gradient(self, phi: Tensor, start: Tensor) -> Tensor:
        """strength · (φ − φ_0)."""
        return (phi - start).mul(self.strength)

    def hessian_product(self, phi: Tensor, start: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """± strength · v."""
        forward = v.mul(self.strength)
        return forward, -forward


@dataclass(frozen=True)
class GaussianKL:
    """Ω = weight · KL(q ‖ p) of Gaussians with diagonal covariance, q = N(μ, σ²) at φ and p at φ_0: the inner loop of
    amortised Bayesian meta-learning (Ravi and Beatson 2019).

    A row holds all means, then as many log σ in the same order.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("GaussianKL.weight", self.weight)

    def value(self, phi: Tensor, start: Tensor) -> Tensor:
        """Ω, [T]."""
        (mean, log_std), (mean_0, log_std_0) = phi.chunk(2, 1), start.chunk(2, 1)
        return gaussian_kl(mean, log_std, mean_0, log_std_0).sum(1).mul(self.weight)

    def gradient(self, phi: Tensor, start: Tensor) -> Tensor:
        """weight · ((μ − μ_0)/σ_0², σ²/σ_0² − 1)."""
        away, precision, ratio = _parts(phi, start)
        return torch.cat([away * precision, ratio - 1.0], 1).mul(self.weight)

    def hessian_product(self, phi: Tensor, start: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """weight · (v_μ/σ_0², 2 (σ²/σ_0²) v_ρ), and what p's own place in Ω makes of v."""
        away, precision, ratio = _parts(phi, start)
        v_mean, v_log_std = v.chunk(2, 1)
        along_mean, along_log_std = precision * v_mean, ratio * v_log_std
        to_phi = torch.cat([along_mean, 2.0 * along_log_std], 1)
        to_start = torch.cat([-along_mean, -2.0 * (away * along_mean + along_log_std)], 1)
        return to_phi.mul(self.weight), to_start.mul(self.weight)


def gaussian_kl(mean: Tensor, log_std: Tensor, mean_0: Tensor, log_std_0: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(μ_0, σ_0²)), value by value."""
    square = (2.0 * log_std).exp() + (mean - mean_0).square()
    return log_std_0 - log_std + 0.5 * square * (-2.0 * log_std_0).exp() - 0.5


def _parts(phi: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """μ − μ_0, 1/σ_0² and σ²/σ_0²."""
    (mean, log_std), (mean_0, log_std_0) = phi.chunk(2, 1), start.chunk(2, 1)
    return mean - mean_0, (-2.0 * log_std_0).exp(), (2.0 * (log_std - log_std_0)).exp()
