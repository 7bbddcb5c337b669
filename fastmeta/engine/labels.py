"""Class labels of whole tasks, in any order: which sample is of which class, and which classes have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.internals import pytree
from fastmeta.program.messages import dtype_of, shape_of
from fastmeta.program.targets import check_labels

from .batch import Tree

IGNORED = -100
"""The label of samples that count for nothing, as `F.cross_entropy` has it."""


def never(dtype: torch.dtype) -> float:
    """What a logit gets so that its probability is exactly 0: far below all others, its square finite in bfloat16 and
    float64 products."""
    return -min(1e30, torch.finfo(dtype).max / 8)


class Members(NamedTuple):
    """Which support sample is of which class.

    Attributes:
        values: [T, N, C], 1 where sample n is of class c, else 0; ignored samples are of none.
        absent: [T, C], 0, or `never` of classes without a sample.
    """

    values: Tensor
    absent: Tensor

    @classmethod
    def of(cls, support_x: Tree, labels: Any, ways: int | None, dtype: torch.dtype) -> Members:
        """Of labels int64 [T, N].

        Raises:
            TypeError, ValueError: they are no labels of these samples, or lie outside of 0 … ways − 1.
        """
        check_shape_of_labels("support_y", support_x, labels)
        classes = int(labels.max()) + 1 if ways is None else ways
        if classes < 1:
            raise ValueError("support_y must name the class of some sample, got ignored labels (-100) alone")
        check_class_labels("support_y", support_x, labels, classes)
        values = (labels.unsqueeze(2) == torch.arange(classes, device=labels.device)).to(dtype)
        absent = (values.sum(1) == 0).to(dtype) * never(dtype)
        return cls(values, absent)


def check_shape_of_labels(name: str, x: Tree, labels: Any) -> None:
    """Raises TypeError or ValueError unless labels are int64 [T, N] beside samples [T, N, ...]."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be labels int64 [T, N], got {type(labels).__name__}")
    first = next(leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor))
    if labels.dtype != torch.int64 or labels.dim() != 2:
        raise ValueError(
            f"{name} must be labels int64 [T, N], got {dtype_of(labels)} of shape {shape_of(labels)}; convert them "
            "with .long()"
        )
    if labels.shape != first.shape[:2]:
        raise ValueError(f"{name} must hold a label for each sample, {list(first.shape[:2])}, got {shape_of(labels)}")


def check_class_labels(name: str, x: Tree, labels: Any, classes: int, *, besides: Sequence[int] = ()) -> None:
    """Labels of samples lie in 0 … classes − 1, or are ignored, or one of `besides`. On a GPU that is looked at there.

    Raises:
        TypeError, ValueError: they are of another kind or shape, or out of range.
    """
    check_shape_of_labels(name, x, labels)
    for other in besides:
        labels = torch.where(labels == other, IGNORED, labels)
    check_labels(name, labels, classes, ignore_index=IGNORED)


def check_query_labels(labels: Any, members: Members) -> None:
    """Each names a class with a support sample. Looked at on the CPU alone, as it would make a device wait.

    Raises:
        ValueError: one does not.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 2:
        return  # another loss's targets, or what `check_batch` names
    if labels.device.type != "cpu" or not bool(members.absent.any()):
        return
    classes = members.absent.shape[1]
    known = labels.clamp(0, classes - 1)
    wrong = (members.absent.gather(1, known) != 0) & (labels == known)
    if bool(wrong.any()):
        task, sample = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"query_y names class {int(labels[task, sample])} in task {task}, of which support_y has no sample; give "
            f"that query sample the label {IGNORED}, which is left out, or add a support sample"
        )
