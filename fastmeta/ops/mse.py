"""Mean squared error, mean over all elements of a task (F.mse_loss's default). Output and target [T, N, ...].

g = 2 (y − target) / n;  g_dot = 2 y_dot / n, with n the elements of a task.
"""

from __future__ import annotations

from torch import Tensor

from .base import MaybeTensors, Needs, Op, Saved


class MSE(Op):
    """Inputs: output and target [T, N, ...]; gives [T]."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        y, target = inputs
        r = y - target
        return r.square().flatten(1).mean(1), r

    def _scaled(self, r: Tensor, dy: Tensor) -> Tensor:
        return r * (dy * (2.0 * r.shape[0] / r.numel())).view(-1, *(1,) * (r.dim() - 1))

    def backward(self, saved: Saved, dy: Tensor, needs: Needs) -> MaybeTensors:
        return self._scaled(saved, dy), None

    def forward_dot(self, saved: Saved, inputs_dot: MaybeTensors) -> tuple[Tensor, Saved]:
        (y_dot, _) = inputs_dot
        assert y_dot is not None, "a loss without any tangent is not swept"
        return (saved * y_dot).flatten(1).mean(1) * 2.0, y_dot

    def backward_dot(
        self, saved: Saved, saved_dot: Saved, dy: Tensor, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        dl_dot = self._scaled(saved_dot, dy)
        return (dl_dot if dy_dot is None else dl_dot + self._scaled(saved, dy_dot)), None
