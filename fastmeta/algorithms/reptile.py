"""Reptile."""

from __future__ import annotations

from .base import MetaLearner


class Reptile(MetaLearner):
    """Reptile (Nichol et al. 2018): the loss carries θ − mean φ_K as its gradient, by definition.

    With `torch.optim.SGD(lr=ε)` outside this is θ ← θ + ε mean(φ_K − θ), classic Reptile; Adam works as well. The
    query set serves `outputs` and the loss's value only; without one the support set does.
    """

    order = "reptile"
