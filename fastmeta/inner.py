"""Inner optimisers: one update of the fast weights of all tasks, and its vector-Jacobian product.

Everything acts on flat buffers [T, P]. `step` follows `torch.optim` of the same name; `vjp` takes the adjoint of what
`step` gives back to the adjoint of what it took, so that an inner loop is differentiated exactly through the
optimiser's state as well (derivations: kernels/README.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]


class Pulled(NamedTuple):
    """An adjoint pulled back through one step: λ_k = direct + factor · H v, H the Hessian at φ_k, and σ_k = state.

    The factor stands apart because it then costs nothing: it goes into the sum.
    """

    direct: Tensor
    v: Tensor
    factor: float
    state: State


def _check_rate(name: str, value: float, *, below_one: bool = False) -> None:
    legal = isinstance(value, int | float) and math.isfinite(value) and value >= 0 and (not below_one or value < 1)
    if not legal:
        bound = "in [0, 1)" if below_one else "finite and not negative"
        raise ValueError(f"{name} must be a number {bound}, got {value!r}")


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


InnerOptimizer = SGD | Adam
