"""Implicit MAML."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from fastmeta.engine.adjoint import Implicit
from fastmeta.engine.prior import Proximal

from .arguments import Arguments
from .base import MetaLearner


class IMAML(MetaLearner):
    """MAML with implicit gradients (Rajeswaran et al. 2019): the meta-gradient is that of the inner problem's solution.

    φ* = argmin L_s(φ) + λ/2 ‖φ − θ‖², approached by K inner steps on both terms; then θ ← θ − β mean_t x_t with
    (I + ∇²L_s(φ_K) / λ) x = ∇L_q(φ_K), equation 6 of the paper, by conjugate gradients from zero. Parameters that
    `adapts` leaves out, and data, get −∂²L_s/∂ψ∂φ x / λ beside their query gradient. Costs K + 1 gradients and
    `cg_steps` Hessian products a task beside the query pass (one more where something is shared); memory does not grow
    with K.

    The formula is the derivative of φ* only where φ_K has come to it and the system is solved: watch `stationarity` and
    `residual`. The system is positive definite where λ exceeds −(the smallest eigenvalue of the Hessian); below that
    the residual need not fall. Without inner steps φ is θ, and the meta-gradient the plain query gradient.

    Args:
        model: the network θ.
        strength: λ of the proximal term, above zero; the paper has 2 for Omniglot.
        cg_steps: of conjugate gradients, at least 1; the paper has 5. A task that is solved to rounding stays.
        inner_optimizer: fixed step sizes; learned ones have no implicit gradient.

    All other arguments are described at `fastmeta.MetaLearner`; `inner_batch_size` must be None and there is no
    first-order form.

    Attributes:
        residual: [T], ‖b − A x‖ / ‖b‖ of the latest meta-step with gradients; None before the first.
        stationarity: [T], ‖∇L_s(φ_K) + λ (φ_K − θ)‖ of it.

        Both are tensors on the device, and looking at them is all that waits for it; NaN for tasks that are not finite.

    Raises:
        TypeError, ValueError: a strength or a count out of range, or options that have no implicit gradient.

    Example:
        >>> imaml = fastmeta.IMAML(model, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=16, strength=2.0)
        >>> imaml(support_x, support_y, query_x, query_y).loss.backward()
        >>> imaml.residual.max(), imaml.stationarity.max()
    """

    residual: Tensor | None = None
    stationarity: Tensor | None = None

    def __init__(
        self, model: nn.Module, *, strength: float = 2.0, cg_steps: int = 5, **options: Unpack[Arguments]
    ) -> None:
        _check(strength, cg_steps)
        self.adjoint, self.prior = Implicit(float(strength), cg_steps), Proximal(float(strength))
        super().__init__(model, **options)

    @property
    def strength(self) -> float:
        """λ of the proximal term."""
        assert isinstance(self.adjoint, Implicit), "set when the learner is made"
        return self.adjoint.strength

    @property
    def cg_steps(self) -> int:
        """Steps of conjugate gradients."""
        assert isinstance(self.adjoint, Implicit), "set when the learner is made"
        return self.adjoint.steps

    def noted(self, *notes: Tensor, finite: Tensor) -> None:
        """Keeps what the adjoint said."""
        self.residual, self.stationarity = (torch.where(finite, x.detach(), torch.nan) for x in notes)


def _check(strength: float, cg_steps: int) -> None:
    if not isinstance(strength, int | float) or isinstance(strength, bool) or not 0 < strength < float("inf"):
        raise ValueError(f"strength must be a positive number, λ of the proximal term, got {strength!r}")
    if type(cg_steps) is not int:
        raise TypeError(f"cg_steps must be an integer of at least 1, got {cg_steps!r}")
    if cg_steps < 1:
        raise ValueError(
            f"cg_steps must be an integer of at least 1, got {cg_steps!r}; without any the meta-gradient is zero (for "
            "the query gradient alone use fastmeta.FOMAML)"
        )
