"""Losses whose samples have weights, which may be learned: reweighting, data valuation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from fastmeta.engine.options import Loss


def weighted(loss: Callable[..., Tensor]) -> Loss:
    """(outputs, (targets, weights)) → mean_n w_n ℓ_n: an inner loss whose samples have weights, with gradients of them.

    The mean is over all N samples, not divided by Σ w (normalise weights where that is meant). Weights are data, so
    they may come from anywhere: numbers, a parameter [T, N], or a network that rates the samples (DataRater,
    2505.17895); where they require grad they get the exact meta-gradient, (1/N) d/dε ℓ_n(φ_k + ε a) summed over the
    inner steps, by the sweep that gives the Hessian product, at no further pass.

    Args:
        loss: (outputs, targets) → [N] or [N, ...], the mean over whose further dimensions is a sample's loss. One that
            takes `reduction`, such as `F.cross_entropy` or `F.mse_loss`, is called with "none"; a module is made with
            `reduction="none"`.

    Returns:
        The loss. Weights are [N] of each task. An outer loss without weights is given apart, by `outer_loss`.

    Raises:
        TypeError, ValueError: when it runs: targets that are no pair, a loss that is reduced already, or another number
            of weights than samples.

    Example:
        >>> rater = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
        >>> maml = fastmeta.MAML(
        ...     model, inner_loss=fastmeta.weighted(F.cross_entropy), outer_loss=F.cross_entropy, inner_steps=3
        ... )
        >>> weights = rater(support_x).squeeze(-1)  # [T, N]
        >>> maml(support_x, (support_y, weights), query_x, query_y).loss.backward()  # into the rater as well
    """
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss must be callable as (outputs, targets) → [N], got {loss!r}")
    each = partial(loss, reduction="none") if _takes_reduction(loss) else loss

    def mean_of_weighted(outputs: Any, targets: Any) -> Tensor:
        if not isinstance(targets, tuple | list) or len(targets) != 2:
            raise TypeError(
                "weighted(loss) takes (targets, weights) as targets, support_y=(labels, weights) with weights [T, N], "
                f"got {type(targets).__name__}"
            )
        labels, weights = targets
        losses = each(outputs, labels)
        if not losses.dim():
            raise ValueError(
                "weighted(loss) needs a loss of each sample, [N], and this one gives a single number; make it with "
                'reduction="none"'
            )
        if losses.dim() > 1:
            losses = losses.flatten(1).mean(1)
        if weights.shape != losses.shape:
            raise ValueError(f"weights must be [{losses.shape[0]}], one a sample, got {list(weights.shape)}")
        return (weights * losses).mean()

    return mean_of_weighted


def _takes_reduction(loss: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # of some built-in functions there is none
        return False
