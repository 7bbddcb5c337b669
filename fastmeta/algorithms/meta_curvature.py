"""Meta-Curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from torch import nn

from fastmeta.optim.curvature import Curvature

from .arguments import WithoutRule
from .maml import MAML


class MetaCurvature(MAML):
    """MAML whose inner gradients learned matrices turn (Park & Oliva 2019, "Meta-Curvature").

    φ_{k+1} = φ_k − lr · M(g_k),  M(g)[p, q, r] = Σ out[p, o] g[o, i, f] in[i, q] kernel[r, f]  for every weight
    [out, in, kernel], and a factor for each element of a vector. The matrices start at the identity, where this is
    MAML, and are learned with θ: `learner.learned`, of which `named()` shows each matrix by its parameter's name.

    Costs as MAML, and for every weight and inner step about six more products of the weight with a matrix of its rows,
    columns or kernel's places; the matrices' gradients are each task's own, T times as large as the matrices.

    Args:
        model: the network θ.
        lr: inner step size: a number, a sequence of one for each inner step, or a function of the step. Of losses that
            are means: the authors' code, which sums over the classes, has 0.4 for five of them, that is 2.0 here.
        options: as `fastmeta.MetaLearner`, but for the inner optimiser.

    Raises:
        ValueError: a step size that is no such thing, or complex parameters.

    Example:
        >>> learner = fastmeta.MetaCurvature(model, lr=0.1, inner_steps=1)
        >>> groups = [{"params": model.parameters()}, {"params": learner.learned.parameters(), "lr": 1e-4}]
        >>> optimizer = torch.optim.Adam(groups, lr=1e-3)
    """

    def __init__(
        self, model: nn.Module, *, lr: float | Sequence[float] | Callable[[int], float] = 0.01,
        **options: Unpack[WithoutRule],
    ) -> None:  # fmt: skip
        super().__init__(model, inner_optimizer=Curvature(lr=lr), **options)
