"""A loss as a term of a larger one: an op whose value, one number a task, has a tangent."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Loss, MaybeTensors, Needs, Op, Saved, total


@dataclass(frozen=True)
class LossTerm(Op[Saved, Saved]):
    """The inputs of `loss`; y [T], y_dot = Σ ∂loss/∂input · input_dot."""

    loss: Loss

    @property
    def name(self) -> str:
        return self.loss.name

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        return self.loss.forward(*inputs)

    def backward(self, saved: Saved, dy: Tensor, needs: Needs) -> MaybeTensors:
        return self.loss.backward(saved, dy, needs)

    def forward_dot(self, saved: Saved, inputs_dot: MaybeTensors) -> tuple[Tensor, Saved]:
        gradients = self.loss.backward(saved, None, tuple(d is not None for d in inputs_dot))
        y_dot = None
        for gradient, dot in zip(gradients, inputs_dot, strict=True):
            if gradient is not None and dot is not None:
                y_dot = total(y_dot, (gradient * dot).flatten(1).sum(1))
        assert y_dot is not None, "an op without any tangent is not swept"
        return y_dot, self.loss.forward_dot(saved, inputs_dot)[1]

    def backward_dot(self, saved: Saved, saved_dot: Saved, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return self.loss.backward_dot(saved, saved_dot, dy, dy_dot, needs)
