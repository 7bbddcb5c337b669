"""Reptile."""

from __future__ import annotations

from fastmeta.engine.adjoint import Displacement

from .base import MetaLearner


class Reptile(MetaLearner):
    """Reptile (Nichol et al. 2018): the loss carries θ − mean φ_K as its gradient, by definition.

    With `torch.optim.SGD(lr=ε)` outside this is θ ← θ + ε mean(φ_K − θ), classic Reptile; Adam works as well. The
    query set serves `outputs` and the loss's value only; without one the support set does. Costs K gradients a task;
    memory does not grow with K. Arguments as `fastmeta.MAML`.

    Example:
        >>> reptile = fastmeta.Reptile(model, inner_optimizer=fastmeta.SGD(lr=0.02), inner_steps=8)
        >>> reptile(support_x, support_y).loss.backward()  # θ − mean φ_K, in model.parameters()
    """

    adjoint = Displacement()
