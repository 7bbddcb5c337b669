"""Adam as an inner rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Pulled, State, _check_rate


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015), semantics of `torch.optim.Adam`: `eps` outside the square root, bias correction on.

    Args:
        lr: step size.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment; must be positive.

    Raises:
        ValueError: for a rate outside its range.

    The moments start at zero in every task. Where all gradients so far are exactly zero, the derivative through
    the square root is taken as zero, which is its limit; the usual formula gives NaN.
    """

    vjp_reads_gradient: ClassVar[bool] = True

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_rate("Adam.lr", self.lr)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"Adam.betas must be a pair (beta1, beta2), got {self.betas!r}")
        for i, beta in enumerate(self.betas):
            _check_rate(f"Adam.betas[{i}]", beta, below_one=True)
        _check_rate("Adam.eps", self.eps)
        if self.eps == 0:
            raise ValueError("Adam.eps must be positive, got 0: a gradient that is exactly zero would divide by it")

    def init(self, phi: Tensor) -> State:
        return torch.zeros_like(phi), torch.zeros_like(phi)

    def _moments(self, g: Tensor, state: State) -> State:
        (beta1, beta2), (m, v) = self.betas, state
        return m.mul(beta1).add(g, alpha=1 - beta1), v.mul(beta2).addcmul(g, g, value=1 - beta2)

    def step(self, phi: Tensor, g: Tensor, state: State, k: int) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state. Nothing is changed in place."""
        m, v = self._moments(g, state)
        c1, c2 = (1 - beta ** (k + 1) for beta in self.betas)
        return phi.addcdiv(m, v.sqrt().mul(c2**-0.5).add(self.eps), value=-self.lr / c1), (m, v)

    def vjp(self, phi: Tensor, g: Tensor | None, state: State, k: int, lam: Tensor, sigma: State) -> Pulled:
        """(λ_{k+1}, σ_{k+1}) → what λ_k and σ_k are made of."""
        assert g is not None, "Adam's vjp reads the gradient"
        beta1, beta2 = self.betas
        c1, c2 = 1 - beta1 ** (k + 1), 1 - beta2 ** (k + 1)
        m, v = self._moments(g, state)
        root = v.sqrt().mul(c2**-0.5)
        denominator = root + self.eps
        dm_hat = lam.mul(-self.lr) / denominator
        droot = -dm_hat * m.div(c1) / denominator
        safe = torch.where(root > 0, root, 1.0)
        dm = sigma[0].add(dm_hat, alpha=1 / c1)
        dv = sigma[1] + torch.where(root > 0, droot / (2.0 * c2 * safe), 0.0)
        a_g = dm.mul(1 - beta1).addcmul(g, dv, value=2 * (1 - beta2))
        return Pulled(lam, a_g, 1.0, (dm.mul(beta1), dv.mul(beta2)))
