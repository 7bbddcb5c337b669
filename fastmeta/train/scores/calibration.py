"""Whether a classifier is right as often as it says: expected calibration error (Guo et al. 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Calibration(NamedTuple):
    """Predictions by bins of their confidence, the probability of the class that is predicted.

    Attributes:
        error: expected calibration error: mean over predictions of |accuracy − mean confidence| of their bin.
        accuracy, confidence: means of each bin [B]; 0 in an empty one.
        count: predictions in each bin [B].
    """

    error: float
    accuracy: Tensor
    confidence: Tensor
    count: Tensor

    def __str__(self) -> str:
        return f"expected calibration error {100 * self.error:.2f} % of {int(self.count.sum())} predictions"


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Calibration:
    """Of predicted probabilities, in bins of equal width; those on a bound count to the bin below it.

    Args:
        probabilities: of each class [..., C], with sum 1; those of all tasks together.
        labels: the true classes [...].
        bins: B.

    Raises:
        ValueError: shapes that do not fit, no prediction, or numbers that are no probabilities.
    """
    if type(bins) is not int or bins < 1:
        raise ValueError(f"bins must be an integer of at least 1, got {bins!r}")
    if probabilities.dim() < 1 or labels.shape != probabilities.shape[:-1] or not labels.numel():
        raise ValueError(
            "probabilities must have shape [..., classes] and labels the same without the classes, at least one of "
            f"them, got {list(probabilities.shape)} and {list(labels.shape)}"
        )
    p = probabilities.detach().double().flatten(0, -2) if probabilities.dim() > 1 else probabilities.double()[None]
    if not bool(((p >= 0) & (p <= 1 + 1e-4)).all()) or not torch.allclose(p.sum(1), p.new_ones(()), atol=1e-3):
        raise ValueError("probabilities must lie in [0, 1] and sum to 1 over the classes; pass logits through softmax")
    confidence, predicted = p.max(1)
    right = (predicted == labels.flatten()).double()
    place = (confidence.clamp(max=1.0) * bins).ceil().long().sub(1).clamp(min=0)
    count, sum_right, sum_confidence = (
        torch.zeros(bins, dtype=p.dtype, device=p.device).index_add(0, place, x)
        for x in (torch.ones_like(right), right, confidence)
    )
    some = count.clamp(min=1)
    accuracy, mean = sum_right / some, sum_confidence / some
    error = ((accuracy - mean).abs() * count).sum() / count.sum()
    return Calibration(float(error), accuracy, mean, count.long())
