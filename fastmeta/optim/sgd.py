"""Stochastic gradient descent as an inner rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Pulled, State, _check_rate


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, semantics of `torch.optim.SGD` (dampening 0).

    Args:
        lr: step size α, of a loss that is the mean over a task's samples.
        momentum: μ of the velocity b ← μ b + g, kept from inner step to inner step, starting at zero in every task.
        nesterov: step along g + μ b instead of b; needs momentum.
        weight_decay: adds weight_decay · φ to the gradient.

    Raises:
        ValueError: for a negative or non-finite rate, or Nesterov without momentum.
    """

    vjp_reads_gradient: ClassVar[bool] = False

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("SGD.lr", self.lr)
        _check_rate("SGD.momentum", self.momentum)
        _check_rate("SGD.weight_decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD.nesterov=True needs momentum > 0, got momentum=0.0; set momentum or drop nesterov")

    def init(self, phi: Tensor) -> State:
        return (torch.zeros_like(phi),) if self.momentum else ()

    def step(self, phi: Tensor, g: Tensor, state: State, k: int) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state. Nothing is changed in place."""
        d = g.add(phi, alpha=self.weight_decay) if self.weight_decay else g
        if not self.momentum:
            return phi.sub(d, alpha=self.lr), ()
        b = d.add(state[0], alpha=self.momentum)
        u = d.add(b, alpha=self.momentum) if self.nesterov else b
        return phi.sub(u, alpha=self.lr), (b,)

    def vjp(self, phi: Tensor, g: Tensor | None, state: State, k: int, lam: Tensor, sigma: State) -> Pulled:
        """(λ_{k+1}, σ_{k+1}) → what λ_k and σ_k are made of."""
        if not self.momentum:
            keep = 1.0 - self.lr * self.weight_decay
            return Pulled(lam.mul(keep) if self.weight_decay else lam, lam, -self.lr, ())
        du = lam.mul(-self.lr)
        db = sigma[0].add(du, alpha=self.momentum if self.nesterov else 1.0)
        dd = db + du if self.nesterov else db
        direct = lam.add(dd, alpha=self.weight_decay) if self.weight_decay else lam
        return Pulled(direct, dd, 1.0, (db.mul(self.momentum),))
