"""Adam as an inner rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import KernelRule, Meta, Pulled, State, check_number
from .rates import Rate, StepSize, check_rate, frozen, rate_at, rate_gradient


@dataclass(frozen=True, kw_only=True)
class Adam(StepSize):
    """Adam (Kingma & Ba 2015), semantics of `torch.optim.Adam`: `eps` outside the square root, bias correction on.

    Args:
        lr: step size: a number, a sequence of one for each inner step, a function of the step k = 0, 1, …, or learned
            rates such as `fastmeta.PerParameter(0.001)`.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment; must be positive.

    Raises:
        ValueError: for a rate outside its range.

    The moments start at zero in every task. Where all gradients so far are exactly zero, the derivative through
    the square root is taken as zero, which is its limit; the usual formula gives NaN.
    """

    reads_gradient: ClassVar[bool] = True

    lr: Rate
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_rate("Adam.lr", self.lr)
        object.__setattr__(self, "lr", frozen(self.lr))
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"Adam.betas must be a pair (beta1, beta2), got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))
        for i, beta in enumerate(self.betas):
            check_number(f"Adam.betas[{i}]", beta, below_one=True)
        check_number("Adam.eps", self.eps)
        if self.eps == 0:
            raise ValueError("Adam.eps must be positive, got 0: a gradient that is exactly zero would divide by it")

    def structure(self) -> Adam:
        """Without the step size."""
        return replace(self, lr=0.0)

    def init(self, phi: Tensor) -> State:
        """First and second moment."""
        return torch.zeros_like(phi), torch.zeros_like(phi)

    def _moments(self, g: Tensor, state: State) -> State:
        (beta1, beta2), (m, v) = self.betas, state
        return m.mul(beta1).add(g, alpha=1 - beta1), v.mul(beta2).addcmul(g, g, value=1 - beta2)

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state. Nothing is changed in place."""
        m, v = self._moments(g, state)
        c1, c2 = (1 - beta ** (k + 1) for beta in self.betas)
        scaled = m.mul(rate_at(meta))
        return phi.addcdiv(scaled, v.sqrt().mul(c2**-0.5).add(self.eps), value=-1 / c1), (m, v)

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False,
    ) -> Pulled:  # fmt: skip
        """(λ_{k+1}, σ_{k+1}) → what λ_k and σ_k are made of, and ∂/∂α = −λ_{k+1} u_k."""
        assert g is not None, "Adam's vjp reads the gradient"
        rate = rate_at(meta)
        beta1, beta2 = self.betas
        c1, c2 = 1 - beta1 ** (k + 1), 1 - beta2 ** (k + 1)
        m, v = self._moments(g, state)
        root = v.sqrt().mul(c2**-0.5)
        denominator = root + self.eps
        direction = m.div(c1) / denominator
        dm_hat = lam.mul(-rate) / denominator
        droot = -dm_hat * direction
        safe = torch.where(root > 0, root, 1.0)
        dm = sigma[0].add(dm_hat, alpha=1 / c1)
        dv = sigma[1] + torch.where(root > 0, droot / (2.0 * c2 * safe), 0.0)
        a_g = dm.mul(1 - beta1).addcmul(g, dv, value=2 * (1 - beta2))
        of_meta = (rate_gradient(rate, lam, direction),) if wanted else ()
        return Pulled(lam, a_g, 1.0, (dm.mul(beta1), dv.mul(beta2)), of_meta)

    def in_kernels(self) -> KernelRule:
        """Betas and eps."""
        return KernelRule("adam", (*self.betas, self.eps))
