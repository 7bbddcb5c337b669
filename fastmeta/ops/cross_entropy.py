"""Softmax cross-entropy with class indices, mean over a task's samples (F.cross_entropy's default).

Logits [T, N, C] or, as PyTorch has it for dense prediction, [T, N, C, ...]; labels [T, N, ...] int64. With label
smoothing ε the target is (1 − ε) onehot + ε / C. Samples whose label is `ignore_index` leave sum and count.
g = (p − target) / n;  g_dot = p (l_dot − Σ_k p_k l_dot_k) / n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Loss, MaybeTensors, Needs


class LogSoftmax(NamedTuple):
    """What a forward sweep leaves."""

    log_p: Tensor  # [T, N, C, ...]
    index: Tensor  # labels [T, N, 1, ...], 0 where they are ignored
    weight: Tensor  # of each sample, [T, N, 1, ...]; they add up to 1 in each task


@dataclass(frozen=True)
class CrossEntropy(Loss[LogSoftmax, Tensor]):
    """Inputs: logits [T, N, C, ...] and labels [T, N, ...]; gives [T]."""

    label_smoothing: float = 0.0
    ignore_index: int = -100

    def prepare(self, *inputs: Tensor) -> LogSoftmax:
        logits, labels = inputs
        log_p = torch.log_softmax(logits, 2)
        valid = labels != self.ignore_index
        index = torch.where(valid, labels, 0).unsqueeze(2)  # an ignored label, -100 or 255, must not index
        weight = valid.to(logits.dtype)
        weight = weight / weight.flatten(1).sum(1).view(-1, *(1,) * (labels.dim() - 1))  # 0 / 0 = NaN, as PyTorch's
        return LogSoftmax(log_p, index, weight.unsqueeze(2))

    def value(self, saved: LogSoftmax) -> Tensor:
        log_p, index, weight = saved
        nll = -log_p.gather(2, index)
        if self.label_smoothing:
            smooth = -log_p.mean(2, keepdim=True)
            nll = (1.0 - self.label_smoothing) * nll + self.label_smoothing * smooth
        # a sample of weight zero must not count even where its log p is −∞; a weight of NaN, all samples ignored, must
        return torch.where(weight == 0, 0.0, nll * weight).flatten(1).sum(1)

    def _gradient(self, saved: LogSoftmax, dy: Tensor | None) -> Tensor:
        log_p, index, weight = saved
        eps = self.label_smoothing
        others = log_p.exp().scatter(2, index, 0.0)
        g = others - eps / log_p.shape[2] if eps else others
        # p − 1 of the label as minus the rest: of a sample that is nearly certain the difference is rounding alone
        g = g.scatter(2, index, eps - eps / log_p.shape[2] - others.sum(2, keepdim=True))
        return g * _weighted(weight, dy)

    def backward(self, saved: LogSoftmax, dy: Tensor | None, needs: Needs) -> MaybeTensors:
        return self._gradient(saved, dy), None

    def forward_dot(self, saved: LogSoftmax, inputs_dot: MaybeTensors) -> tuple[None, Tensor]:
        (l_dot, _) = inputs_dot
        assert l_dot is not None, "a loss without any tangent is not swept"
        return None, l_dot

    def backward_dot(
        self, saved: LogSoftmax, saved_dot: Tensor, dy: Tensor | None, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        log_p, _, weight = saved
        p, l_dot = log_p.exp(), saved_dot
        bend = p * (l_dot - (p * l_dot).sum(2, keepdim=True))
        dl_dot = bend * _weighted(weight, dy)
        if dy_dot is not None:
            dl_dot = dl_dot + self._gradient(saved, dy_dot)
        return dl_dot, None


def _weighted(weight: Tensor, dy: Tensor | None) -> Tensor:
    """weight [T, N, 1, ...] times dy [T], None for ones."""
    return weight if dy is None else weight * dy.view(-1, *(1,) * (weight.dim() - 1))
