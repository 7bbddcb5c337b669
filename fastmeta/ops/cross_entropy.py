"""Softmax cross-entropy with class indices, mean over a task's samples (F.cross_entropy's default).

Logits [T, N, C] or, as PyTorch has it for dense prediction, [T, N, C, ...]; labels [T, N, ...] int64. With label
smoothing ε the target is (1 − ε) onehot + ε / C. Samples whose label is `ignore_index` leave sum and count.
g = (p − target) / n;  g_dot = p (l_dot − Σ_k p_k l_dot_k) / n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import MaybeTensors, Needs, Op, Saved


@dataclass(frozen=True)
class CrossEntropy(Op):
    """Inputs: logits [T, N, C, ...] and labels [T, N, ...]; gives [T]."""

    label_smoothing: float = 0.0
    ignore_index: int = -100

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        logits, labels = inputs
        log_p = torch.log_softmax(logits, 2)
        valid = labels != self.ignore_index
        index = torch.where(valid, labels, 0).unsqueeze(2)  # an ignored label, -100 or 255, must not index
        weight = valid.to(logits.dtype)
        weight = weight / weight.flatten(1).sum(1).view(-1, *(1,) * (labels.dim() - 1))  # 0 / 0 = NaN, as PyTorch's
        nll = -log_p.gather(2, index).squeeze(2)
        if self.label_smoothing:
            smooth = -log_p.mean(2)
            nll = (1.0 - self.label_smoothing) * nll + self.label_smoothing * smooth
        loss = torch.where(valid, nll * weight, 0.0).flatten(1).sum(1)
        # all labels ignored: 0 / 0, which `where` has hidden above
        loss = torch.where(valid.flatten(1).any(1), loss, torch.nan)
        return loss, (log_p.exp(), index, weight.unsqueeze(2))

    def backward(self, saved: Saved, dy: Tensor, needs: Needs) -> MaybeTensors:
        p, index, weight = saved
        eps = self.label_smoothing
        g = p - eps / p.shape[2] if eps else p
        g = g.scatter_add(2, index, torch.full_like(index, eps - 1.0, dtype=p.dtype))
        return g * (weight * _column(dy, p)), None

    def forward_dot(self, saved: Saved, inputs_dot: MaybeTensors) -> tuple[Tensor, Saved]:
        (l_dot, _) = inputs_dot
        assert l_dot is not None, "a loss without any tangent is not swept"
        ones = l_dot.new_ones(l_dot.shape[0])
        (g, _) = self.backward(saved, ones, (True, False))
        assert g is not None
        return (g * l_dot).flatten(1).sum(1), l_dot

    def backward_dot(
        self, saved: Saved, saved_dot: Saved, dy: Tensor, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        p, _, weight = saved
        l_dot = saved_dot
        bend = p * (l_dot - (p * l_dot).sum(2, keepdim=True))
        dl_dot = bend * (weight * _column(dy, p))
        if dy_dot is not None:
            (g, _) = self.backward(saved, dy_dot, needs)
            dl_dot = dl_dot + g
        return dl_dot, None


def _column(dy: Tensor, like: Tensor) -> Tensor:
    """[T] as [T, 1, 1, ...]."""
    return dy.view(-1, *(1,) * (like.dim() - 1))
