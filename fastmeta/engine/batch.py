"""A meta-batch, and which of its tasks stay finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta.internals import pytree

Tree = Any  # a tensor, or a tuple or dict of tensors


@dataclass(frozen=True)
class TaskBatch:
    """Support and query sets of T tasks.

    Inputs and targets are a tensor, or a tuple or dict of tensors, [T, N, ...] in the support set and
    [T, M, ...] in the query set. Targets may be None; so may the query set, where the algorithm needs none.
    """

    support_x: Tree
    support_y: Tree = None
    query_x: Tree = None
    query_y: Tree = None

    @property
    def tasks(self) -> int:
        """T."""
        return _first(self.support_x).shape[0]

    @property
    def support_samples(self) -> int:
        """N."""
        return _first(self.support_x).shape[1]

    @property
    def query_samples(self) -> int:
        """M; 0 without a query set."""
        return 0 if self.query_x is None else _first(self.query_x).shape[1]


def finite_tasks(*trees: Tree) -> Tensor:
    """[T] bool: tasks whose values are finite in every floating-point tensor [T, ...] of `trees`."""
    plain = all(isinstance(tree, Tensor) for tree in trees)  # whose leaves pytree takes 6 µs to find
    leaves = [leaf.detach() for leaf in (trees if plain else pytree.tree_leaves(trees)) if isinstance(leaf, Tensor)]
    drift: Tensor | None = None
    for x in leaves:
        if x.is_floating_point() or x.is_complex():
            # x - x is 0 for finite x and NaN for any other: a tenth of the time of isfinite().all() on a CPU.
            # torch.compile replaces 0 x by 0, so that will not do.
            if x.is_nested:
                zero = torch.stack([(task - task).sum() for task in x.unbind()])
            else:
                zero = x - x
                zero = zero.flatten(1).sum(1) if x.dim() > 1 else zero
            drift = zero if drift is None else drift + zero
    if drift is None:
        return torch.ones(leaves[0].shape[0], dtype=torch.bool, device=leaves[0].device)
    return drift == 0


def _first(tree: Tree) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
