"""Meta-SGD."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from fastmeta.optim.rates import PerParameter
from fastmeta.optim.sgd import SGD

from .arguments import WithoutRule
from .maml import MAML


class MetaSGD(MAML):
    """MAML with a learned step size for every single parameter (Li et al. 2017, "Meta-SGD").

    φ_{k+1} = φ_k − α ⊙ g_k, the same α [P] in all steps, of any sign, learned with θ:
    ∂/∂α = −Σ_k λ_{k+1} ⊙ g_k. Costs as MAML, and memory for the K inner gradients; Triton kernels take it.

    The rates are `learner.learned`, a module of one parameter, which `named()` shows by the parameters' names; give
    them a parameter group of their own.

    Args:
        model: the network θ.
        lr: where the rates start: a number for all, or a range (low, high), from which each is drawn uniformly by
            PyTorch's generator.
        options: as `fastmeta.MetaLearner`, but for the inner optimiser. `first_order=True` keeps the exact gradient of
            the rates given that inner gradients are constants.

    Raises:
        ValueError: an `lr` that is negative, not finite, or no range.

    Example:
        >>> learner = fastmeta.MetaSGD(model, inner_steps=1)
        >>> groups = [{"params": model.parameters()}, {"params": learner.learned.parameters(), "lr": 1e-4}]
        >>> optimizer = torch.optim.Adam(groups, lr=1e-3)
    """

    def __init__(
        self, model: nn.Module, *, lr: float | tuple[float, float] = (0.005, 0.1), **options: Unpack[WithoutRule]
    ) -> None:
        super().__init__(model, inner_optimizer=SGD(lr=PerParameter(lr)), **options)
