"""Mean squared error, mean over all elements of a task (F.mse_loss's default). Output and target [T, N, ...].

g = 2 (y − target) / n;  g_dot = 2 y_dot / n, with n the elements of a task.
"""

from __future__ import annotations

from torch import Tensor

from .base import Loss, MaybeTensors, Needs, Saved


class MSE(Loss):
    """Inputs: output and target [T, N, ...]; gives [T]."""

    def prepare(self, *inputs: Tensor) -> Saved:
        y, target = inputs
        return y - target

    def value(self, saved: Saved) -> Tensor:
        return saved.square().flatten(1).mean(1)

    def _scaled(self, r: Tensor, dy: Tensor | None) -> Tensor:
        scale = 2.0 * r.shape[0] / r.numel()
        return r * (scale if dy is None else (dy * scale).view(-1, *(1,) * (r.dim() - 1)))

    def backward(self, saved: Saved, dy: Tensor | None, needs: Needs) -> MaybeTensors:
        g = self._scaled(saved, dy)
        return g, (-g if needs[1] else None)

    def forward_dot(self, saved: Saved, inputs_dot: MaybeTensors) -> tuple[None, Saved]:
        (y_dot, _) = inputs_dot
        assert y_dot is not None, "a loss without any tangent is not swept"
        return None, y_dot

    def backward_dot(
        self, saved: Saved, saved_dot: Saved, dy: Tensor | None, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        dl_dot = self._scaled(saved_dot, dy)
        dl_dot = dl_dot if dy_dot is None else dl_dot + self._scaled(saved, dy_dot)
        return dl_dot, (-dl_dot if needs[1] else None)
