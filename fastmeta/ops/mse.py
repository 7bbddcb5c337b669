"""Mean squared error, mean over all elements of a task (F.mse_loss's default). Output and target [T, N, ...].

With n the elements of a task and r = y − target: g = 2 r / n;  g_dot = 2 r_dot / n. The target's are the same, negated.
"""

from __future__ import annotations

from torch import Tensor

from .base import Loss, MaybeTensors, Needs, total


class MSE(Loss[Tensor, Tensor]):
    """Inputs: output and target [T, N, ...]; gives [T]."""

    def prepare(self, *inputs: Tensor) -> Tensor:
        y, target = inputs
        return y - target

    def value(self, saved: Tensor) -> Tensor:
        return saved.square().flatten(1).mean(1)

    def _scaled(self, r: Tensor, dy: Tensor | None) -> Tensor:
        scale = 2.0 * r.shape[0] / r.numel()
        return r * (scale if dy is None else (dy * scale).view(-1, *(1,) * (r.dim() - 1)))

    @staticmethod
    def _to_inputs(d: Tensor, needs: Needs) -> MaybeTensors:
        return d if needs[0] else None, -d if needs[1] else None

    def backward(self, saved: Tensor, dy: Tensor | None, needs: Needs) -> MaybeTensors:
        return self._to_inputs(self._scaled(saved, dy), needs)

    def forward_dot(self, saved: Tensor, inputs_dot: MaybeTensors) -> tuple[None, Tensor]:
        y_dot, target_dot = inputs_dot
        r_dot = total(y_dot, None if target_dot is None else -target_dot)
        assert r_dot is not None, "a loss without any tangent is not swept"
        return None, r_dot

    def backward_dot(
        self, saved: Tensor, saved_dot: Tensor, dy: Tensor | None, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        dr_dot = self._scaled(saved_dot, dy)
        return self._to_inputs(dr_dot if dy_dot is None else dr_dot + self._scaled(saved, dy_dot), needs)
