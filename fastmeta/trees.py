"""Trees of tensors as the reference takes them: of all tasks, and of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.internals import pytree

Tree = Any  # a tensor, or a tuple or dict of tensors


def select(tree: Tree, index: int | Tensor) -> Tree:
    """Some or one along the first dimension of every tensor."""
    if isinstance(tree, Tensor) or tree is None:
        return tree if tree is None else tree[index]
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[index], tree)


def tasks_of(tree: Tree) -> int:
    """Length of the first tensor in `tree`."""
    if isinstance(tree, Tensor):
        return tree.shape[0]
    return next(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)).shape[0]


def slice_of(x: Tree, y: Tree, batch: int | None, k: int) -> tuple[Tree, Tree]:
    """The k-th slice of `batch` samples of one task, cyclically; None: all."""
    if batch is None:
        return x, y
    index = (k * batch + torch.arange(batch)) % tasks_of(x)
    return select(x, index), select(y, index)


def for_autograd(tree: Tree) -> Tree:
    """Tensors made under `torch.inference_mode` as copies that autograd accepts."""
    if isinstance(tree, Tensor):
        return tree.clone() if tree.is_inference() else tree
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.clone() if leaf.is_inference() else leaf, tree)
