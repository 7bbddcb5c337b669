"""Sparse-MAML."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from fastmeta.optim.rates import Masked
from fastmeta.optim.sgd import SGD

from .arguments import WithoutRule
from .maml import MAML


class SparseMAML(MAML):
    """MAML that learns which parameters the inner loop moves (von Oswald et al. 2021, "Learning where to learn").

    φ_{k+1} = φ_k − lr · 1[m ≥ 0] ⊙ g_k, the mask m [P] learned with θ: its gradient passes the step function as if that
    were the identity, ∂/∂m = −lr Σ_k λ_{k+1} ⊙ g_k. Costs as Meta-SGD; Triton kernels take it. The paper's 35 inner
    steps take inner gradients for constants: `first_order=True`.

    The masks are `learner.learned`, a module of one parameter: `named()` shows m by the parameters' names, and
    `density()` says which share of each parameter moves.

    Args:
        model: the network θ.
        lr: inner step size; one number, as the masks say where it counts.
        mask: where the masks start: a number for all, or a range (low, high), from which each is drawn uniformly. In
            (−0.5, 0.5), as the authors' code has it, about half of the parameters move at first.
        options: as `fastmeta.MetaLearner`, but for the inner optimiser.

    Raises:
        ValueError: an `lr` that is negative or not finite, or a `mask` that is neither a number nor a range.

    Example:
        >>> learner = fastmeta.SparseMAML(model, lr=0.1, inner_steps=5)
        >>> groups = [{"params": model.parameters()}, {"params": learner.learned.parameters(), "lr": 7.5e-3}]
        >>> optimizer = torch.optim.Adam(groups, lr=1e-3)
    """

    def __init__(
        self, model: nn.Module, *, lr: float = 0.1, mask: float | tuple[float, float] = (-0.5, 0.5),
        **options: Unpack[WithoutRule],
    ) -> None:  # fmt: skip
        super().__init__(model, inner_optimizer=SGD(lr=Masked(lr, mask=mask)), **options)
