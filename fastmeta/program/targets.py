"""Targets against outputs: checks that need to know what the module returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta.internals import assert_on_device

from .messages import dtype_of, shape_of


def check_class_targets(name: str, targets: Tensor, logits: Sequence[int]) -> None:
    """The shape of cross_entropy's targets against that of the logits, [T, N, C] or [T, N, C, ...].

    Raises:
        ValueError: floats that are no class probabilities, or another shape.
    """
    if targets.is_floating_point():
        if shape_of(targets) != list(logits):
            raise ValueError(
                f"{name}: labels must be int64, got {dtype_of(targets)} of shape {shape_of(targets)}; convert "
                f"them with .long(), or pass class probabilities of the logits' shape {list(logits)}"
            )
        return
    expected = [*logits[:2], *logits[3:]]
    if shape_of(targets) != expected:
        raise ValueError(
            f"{name}: labels must have shape {expected} for logits {list(logits)}, got {shape_of(targets)}; "
            "pass one class index for each sample, not one-hot rows"
        )


def check_labels(name: str, labels: Tensor, classes: int, *, ignore_index: int = -100) -> None:
    """Class indices must lie in [0, classes) or equal `ignore_index`. On a GPU the check itself runs there.

    Raises:
        ValueError: a label out of range, on the CPU. On other devices a device-side assertion.
    """
    if labels.device.type != "cpu":
        legal = ((labels >= 0) & (labels < classes)) | (labels == ignore_index)
        message = f"{name}: a label lies outside [0, {classes})"
        assert_on_device(legal.all(), message)
        return
    low, high = _bounds(labels)
    if low < 0 or high >= classes:  # rarely: only now look for ignored ones
        low, high = _bounds(labels[labels != ignore_index])
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: labels must lie in [0, {classes}), as the module returns {classes} logits, got values "
            f"from {low} to {high}; number each task's classes from 0, or give the module more outputs"
        )


def check_per_task_loss(name: str, value: Any, tasks: int | None = None) -> None:
    """What a loss returned: a scalar for one task, or [T] for all `tasks` of them.

    Raises:
        TypeError, ValueError: it is no tensor, of another shape, or no floating-point number.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a scalar tensor for each task, got {type(value).__name__}")
    if shape_of(value) != ([] if tasks is None else [tasks]):
        of = "" if tasks is None else f" for {tasks} tasks"
        raise ValueError(
            f"{name} must return a scalar for each task, got a tensor of shape {shape_of(value)}{of}; reduce "
            "it over the samples, for instance with .mean()"
        )
    if not value.is_floating_point():
        raise ValueError(f"{name} must return a floating-point scalar for each task, got {dtype_of(value)}")


def _bounds(labels: Tensor) -> tuple[int, int]:
    if labels.numel() == 0:
        return 0, 0
    low, high = torch.aminmax(labels)
    return int(low), int(high)
