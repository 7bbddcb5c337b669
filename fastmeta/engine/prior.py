"""What may be added to the support loss: a function Ω(φ, φ_0) of fast weights and their start, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from fastmeta.optim.base import check_number


@runtime_checkable
class Prior(Protocol):
    """Gradient and Hessian product of Ω, on rows [T, P]. Frozen and hashable: it is part of a plan's key."""

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

    def gradient(self, phi: Tensor, start: Tensor) -> Tensor:
        """strength · (φ − φ_0)."""
        return (phi - start).mul(self.strength)

    def hessian_product(self, phi: Tensor, start: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """± strength · v."""
        forward = v.mul(self.strength)
        return forward, -forward
