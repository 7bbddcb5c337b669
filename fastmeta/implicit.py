"""The implicit derivative of one task's inner loop, for the reference: plain autograd, and a hook that solves.

At the minimum of L_s(φ) + c/2 ‖φ − θ‖² the gradient vanishes, so that φ = θ − ∇L_s(φ) / c, and
dφ = (I + H / c)⁻¹ (dθ − d∇L_s / c), H the Hessian of L_s and d∇L_s by what else L_s reads (Rajeswaran et al. 2019,
lemma 1). The bracket is a graph of autograd's; the inverse is a hook on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Solver:
    """Links a task's φ_K to θ and to whatever else its support loss reads.

    Args:
        phi: φ_K by name, leaves that require grad.
        gradients: of the support loss alone at `phi`, in that order, with their graph.
        start: φ_0 by name.
        strength: c.
        steps: of conjugate gradients, from zero.

    Attributes:
        residual: ‖b − A x‖ / ‖b‖ of the last system that was solved; NaN before.
        stationarity: ‖∇L_s(φ_K) + c (φ_K − φ_0)‖.
    """

    def __init__(
        self, phi: Mapping[str, Tensor], gradients: Sequence[Tensor], start: Mapping[str, Tensor], *, strength: float,
        steps: int,
    ) -> None:  # fmt: skip
        if any(p.is_complex() for p in phi.values()):
            raise ValueError(
                "an implicit meta-gradient is of real parameters, and the module has complex ones; hold them as pairs "
                "of real numbers"
            )
        self._phi, self._start, self._strength, self._steps = phi, start, strength, steps
        self._gradient = _flat(gradients)
        shift = _flat([(p - start[name]).detach() for name, p in phi.items()])
        self.stationarity = (self._gradient.detach() + strength * shift).norm()
        self.residual = torch.full_like(self.stationarity, torch.nan)
        moved = _flat([start[name] - start[name].detach() for name in phi])  # zero, as is the next, but for derivatives
        self._zero = moved - (self._gradient - self._gradient.detach()) / strength
        if self._zero.requires_grad:
            self._zero.register_hook(self._solve)

    def linked(self) -> dict[str, Tensor]:
        """φ_K by name, with its implicit derivative."""
        pieces = self._zero.split([p.numel() for p in self._phi.values()])
        return {
            name: p.detach() + piece.view(p.shape).to(p.dtype)
            for (name, p), piece in zip(self._phi.items(), pieces, strict=True)
        }

    def look(self, loss: Tensor) -> None:
        """Solves for the derivative of `loss`, for the sake of `residual`."""
        if self._zero.requires_grad and loss.requires_grad:
            torch.autograd.grad(loss, self._zero, retain_graph=True, allow_unused=True)

    def _product(self, v: Tensor) -> Tensor:
        """(I + H / c) v."""
        if not self._gradient.requires_grad:
            return v  # of a loss linear in φ
        leaves = list(self._phi.values())
        hv = torch.autograd.grad(self._gradient, leaves, v, retain_graph=True, materialize_grads=True)
        return v + _flat(hv) / self._strength

    def _solve(self, b: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "an implicit meta-gradient is solved for, not recorded, and has no derivative of its own"
            )
        x, r, p = torch.zeros_like(b), b, b
        square = first = b @ b
        for _ in range(self._steps):
            ap = self._product(p)
            curvature = p @ ap
            if square <= first * torch.finfo(b.dtype).eps ** 2 or curvature == 0:
                break
            x, r = x + square / curvature * p, r - square / curvature * ap
            square, before = r @ r, square
            p = r + square / before * p
        self.residual = (square / first).sqrt() if first else torch.zeros_like(first)
        return x


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])
