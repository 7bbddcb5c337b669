"""A buffer by which a module reads in which inner step it is, known by its name alone: models need import nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INNER_STEP = "inner_step"
"""The name of a buffer [K] of floats by which a module reads in which inner step it is: 1 at the step, 0 elsewhere."""


def reads_inner_step(name: str, x: Tensor) -> bool:
    """Whether a buffer is one by which a module reads in which inner step it is."""
    return name.rpartition(".")[2] == INNER_STEP and x.dim() == 1 and x.is_floating_point()


def inner_step_at(like: Tensor, step: int) -> Tensor:
    """What such a buffer holds in inner step `step`; the last place stands for φ_K, whose support loss iMAML asks."""
    return (torch.arange(like.shape[0], device=like.device) == min(step, like.shape[0] - 1)).to(like.dtype)


def check_inner_steps(module: nn.Module, steps: int) -> None:
    """Raises ValueError where the module's buffers `inner_step` have no place for so many inner steps."""
    for name, x in module.named_buffers():
        if reads_inner_step(name, x) and steps > x.shape[0]:
            raise ValueError(
                f"model reads its inner step in the buffer {name!r}, which has places for {x.shape[0]}, and {steps} "
                "inner steps were asked for; take fewer (inner_steps, or steps of adapt), or make the model for more"
            )
