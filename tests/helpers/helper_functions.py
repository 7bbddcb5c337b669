"""autograd.Functions of a user's own, whose gradients are not the derivatives of what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Reverse(torch.autograd.Function):
    """Gradient reversal, in the old style."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.5 * g


class Straight(torch.autograd.Function):
    """A sign through which the gradient passes, damped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class Scaled(torch.autograd.Function):
    """With setup_context."""

    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.slope * ctx.saved_tensors[0].cos(), None
