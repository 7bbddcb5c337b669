"""Rules of losses as parts of a larger one: of outputs and targets, elementwise, then summed or averaged."""

from __future__ import annotations

from typing import Any

import torch

from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.loss_term import LossTerm

from .activations import act
from .arithmetic import mul, neg, sub
from .base import Lower, NotKnown, Slot
from .shapes import mean, total


def mse_loss(
    to: Lower,
    x: Slot,
    target: Slot,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Slot | None = None,
) -> Slot:
    _check(x, target, size_average, reduce, weight)
    return _reduced(to, act(to, sub(to, x, target), "pow", 2.0), reduction)


def l1_loss(
    to: Lower,
    x: Slot,
    target: Slot,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Slot | None = None,
) -> Slot:
    _check(x, target, size_average, reduce, weight)
    return _reduced(to, act(to, sub(to, x, target), "abs"), reduction)


def huber_loss(
    to: Lower,
    x: Slot,
    target: Slot,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Slot | None = None,
) -> Slot:
    _check(x, target, None, None, weight)
    return _reduced(to, act(to, sub(to, x, target), "huber", float(delta)), reduction)


def smooth_l1_loss(
    to: Lower,
    x: Slot,
    target: Slot,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Slot:
    """The Huber loss divided by β, with β = 0 the absolute error."""
    if beta == 0:
        return l1_loss(to, x, target, size_average, reduce, reduction)
    _check(x, target, size_average, reduce, None)
    return _reduced(to, mul(to, act(to, sub(to, x, target), "huber", float(beta)), 1.0 / beta), reduction)


def binary_cross_entropy_with_logits(
    to: Lower,
    x: Slot,
    target: Slot,
    weight: Slot | None = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Slot | None = None,
) -> Slot:
    """(1 − target) x − log σ(x)."""
    _check(x, target, size_average, reduce, pos_weight)
    each = sub(to, mul(to, sub(to, 1.0, target), x), act(to, x, "logsigmoid"))
    return _reduced(to, each if weight is None else mul(to, each, weight), reduction)


def cross_entropy(
    to: Lower,
    x: Slot,
    target: Slot,
    weight: Slot | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Slot:
    """Of logits and class indices, the mean over samples."""
    if weight is not None or size_average is not None or reduce is not None or reduction != "mean":
        raise NotKnown("cross-entropy with weights, or summed")
    if len(x.shape) < 2 or target.like.dtype != torch.int64 or target.shape != (x.shape[0], *x.shape[2:]):
        raise NotKnown("cross-entropy of probabilities, or of an unbatched value")
    return to.emit(LossTerm(CrossEntropy(label_smoothing, ignore_index)), x, target)


def soft_margin_loss(
    to: Lower, x: Slot, target: Slot, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Slot:
    """log(1 + exp(−target x))."""
    _check(x, target, size_average, reduce, None)
    return _reduced(to, neg(to, act(to, mul(to, target, x), "logsigmoid")), reduction)


def _check(x: Slot, target: Slot, size_average: Any, reduce: Any, weight: Any) -> None:
    if size_average is not None or reduce is not None or weight is not None:
        raise NotKnown("a loss with weights, or with the former names of reduction")
    if x.shape != target.shape:
        raise NotKnown(f"a loss of {list(x.shape)} against {list(target.shape)}")
    if x.like.dtype != target.like.dtype or not x.like.dtype.is_floating_point:
        raise NotKnown(f"a loss of {x.like.dtype} against {target.like.dtype}")


def _reduced(to: Lower, each: Slot, reduction: str) -> Slot:
    if reduction == "none":
        return each
    return mean(to, each) if reduction == "mean" else total(to, each)
