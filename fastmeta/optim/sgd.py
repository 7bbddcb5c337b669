"""Stochastic gradient descent as an inner rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import KernelRule, Meta, Pulled, State, check_number
from .rates import Rate, StepSize, check_rate, frozen, rate_at, rate_gradient


@dataclass(frozen=True, kw_only=True)
class SGD(StepSize):
    """Stochastic gradient descent, semantics of `torch.optim.SGD` (dampening 0).

    Args:
        lr: step size α, of a loss that is the mean over a task's samples: a number, a sequence of one for each inner
            step, a function of the step k = 0, 1, …, or learned rates such as `fastmeta.PerParameter(0.01)`.
        momentum: μ of the velocity b ← μ b + g, kept from inner step to inner step, starting at zero in every task.
        nesterov: step along g + μ b instead of b; needs momentum.
        weight_decay: adds weight_decay · φ to the gradient.

    Raises:
        ValueError: for a negative or non-finite rate, or Nesterov without momentum.
    """

    reads_gradient: ClassVar[bool] = False

    lr: Rate
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_rate("SGD.lr", self.lr)
        object.__setattr__(self, "lr", frozen(self.lr))
        check_number("SGD.momentum", self.momentum)
        check_number("SGD.weight_decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD.nesterov=True needs momentum > 0, got momentum=0.0; set momentum or drop nesterov")

    def structure(self) -> SGD:
        """Without the step size."""
        return replace(self, lr=0.0)

    def init(self, phi: Tensor) -> State:
        """The velocity, where there is momentum."""
        return (torch.zeros_like(phi),) if self.momentum else ()

    def _direction(self, phi: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        """u of φ − α u, and the new state."""
        d = g.add(phi, alpha=self.weight_decay) if self.weight_decay else g
        if not self.momentum:
            return d, ()
        b = d.add(state[0], alpha=self.momentum)
        return (d.add(b, alpha=self.momentum) if self.nesterov else b), (b,)

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state. Nothing is changed in place."""
        u, state = self._direction(phi, g, state)
        return torch.addcmul(phi, u, rate_at(meta), value=-1), state

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False,
    ) -> Pulled:  # fmt: skip
        """(λ_{k+1}, σ_{k+1}) → what λ_k and σ_k are made of, and ∂/∂α = −λ_{k+1} u_k."""
        rate, of_meta = rate_at(meta), ()
        if wanted:
            assert g is not None, "the gradient of a rate reads the inner gradient"
            of_meta = (rate_gradient(rate, lam, self._direction(phi, g, state)[0]),)
        if not self.momentum:
            direct = torch.addcmul(lam, lam, rate, value=-self.weight_decay) if self.weight_decay else lam
            if rate.shape[-1] == 1:
                return Pulled(direct, lam, -rate, (), of_meta)
            return Pulled(direct, -rate * lam, 1.0, (), of_meta)
        du = -rate * lam
        db = sigma[0].add(du, alpha=self.momentum if self.nesterov else 1.0)
        dd = db + du if self.nesterov else db
        direct = lam.add(dd, alpha=self.weight_decay) if self.weight_decay else lam
        return Pulled(direct, dd, 1.0, (db.mul(self.momentum),), of_meta)

    def in_kernels(self) -> KernelRule:
        """Momentum, Nesterov, weight decay."""
        return KernelRule("sgd", (self.momentum, float(self.nesterov), self.weight_decay))
