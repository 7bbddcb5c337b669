"""Everything that is checked about what the user hands over, before the module has run.

A message names the argument, what was expected, what came and what to do. No check waits for a GPU.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fastmeta.program.messages import dtype_of, shape_of

from .batch import TaskBatch, Tree
from .notices import warn_user


def check_batch(
    batch: TaskBatch,
    *,
    module: nn.Module,
    inner_loss: Callable[..., Any],
    outer_loss: Callable[..., Any] | None,
    inner_batch_size: int | None,
    query_required: bool,
) -> None:
    """Everything that can be said about a meta-batch before the module has run.

    `check_class_targets` and `check_labels` hold labels against logits afterwards; `finite_tasks` looks for NaN.

    Args:
        outer_loss: None stands for the inner loss.
        query_required: whether the algorithm reads a query set.

    Raises:
        TypeError: a leaf is no tensor, or an argument is missing.
        ValueError: shapes, dtypes or devices do not fit each other or the module, or an input requires grad.
    """
    if batch.support_x is None:
        raise TypeError("support_x must hold tensors [T, N, ...], got None")
    if batch.query_x is None and (query_required or batch.query_y is not None):
        raise TypeError("query_x must hold tensors [T, M, ...], got None; pass the query set")
    support_x, support_y = _leaves("support_x", batch.support_x), _leaves("support_y", batch.support_y)
    query_x, query_y = _leaves("query_x", batch.query_x), _leaves("query_y", batch.query_y)
    _check_leaves([*support_x, *support_y, *query_x, *query_y], module)
    _check_equal([*support_x, *support_y, *query_x, *query_y], 0, "tasks")
    _check_equal([*support_x, *support_y], 1, "samples")
    _check_equal([*query_x, *query_y], 1, "samples")
    _check_known_targets("support_y", batch.support_y, "inner_loss", inner_loss)
    if batch.query_x is not None:
        name, loss = ("inner_loss", inner_loss) if outer_loss is None else ("outer_loss", outer_loss)
        _check_known_targets("query_y", batch.query_y, name, loss)
    if inner_batch_size is not None and inner_batch_size > batch.support_samples:
        raise ValueError(
            f"inner_batch_size must be at most the number of support samples, {batch.support_samples}, got "
            f"{inner_batch_size}; lower it, or pass more support samples"
        )


def check_query(query_x: Tree, *, tasks: int, module: nn.Module, name: str = "query_x") -> None:
    """The inputs handed to learners that were adapted on `tasks` tasks. Raises as `check_batch`."""
    samples = "N" if name.startswith("support") else "M"
    if query_x is None:
        raise TypeError(f"{name} must hold tensors [T, {samples}, ...], got None")
    leaves = _leaves(name, query_x)
    _check_leaves(leaves, module)
    _check_equal(leaves, 1, "samples")
    for path, leaf in leaves:
        if leaf.shape[0] != tasks:
            raise ValueError(
                f"{path} must hold the {tasks} tasks that the learners were adapted to, got {leaf.shape[0]} "
                f"(shape {shape_of(leaf)}); pass the samples of the same tasks, in the same order"
            )


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_running_statistics(module: nn.Module) -> None:
    """One UserWarning for each module with a training-mode batch norm that tracks running statistics."""
    if module in _warned:
        return
    for name, layer in module.named_modules():
        if isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None:
            _warned.add(module)
            warn_user(
                f"{type(layer).__name__} {name!r} tracks running statistics: fastmeta reads them in "
                "eval mode and never writes them; in training mode each task is normalised by its own batch. "
                "Build the layer with track_running_stats=False to have that in eval mode as well.",
                UserWarning,
            )
            return


def check_module(module: Any) -> None:
    """Raises TypeError or ValueError unless `module` is a network with a trainable parameter."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(module).__name__}")
    lazy = [name for name, p in module.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(f"model has parameters without a shape ({lazy[0]!r}); run it once on one sample")
    check_trainable(module)


def check_trainable(module: nn.Module) -> None:
    """Raises ValueError where a module has no trainable parameter."""
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("model must have a trainable parameter, got none; set requires_grad=True on some")


def _leaves(name: str, tree: Tree) -> list[tuple[str, Tensor]]:
    """The tensors of a tree under names such as support_x['image']; none for None."""
    if isinstance(tree, Tensor):
        return [(name, tree)]
    if tree is None:
        return []
    leaves = [(name + pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(tree)[0]]
    if not leaves:
        raise TypeError(f"{name} must hold at least one tensor, got {tree!r}")
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor):
            kind = type(leaf).__name__
            raise TypeError(f"{path} must be a tensor, got {kind}; convert it, say with torch.as_tensor")
    return leaves


def _check_leaves(leaves: Sequence[tuple[str, Tensor]], module: nn.Module) -> None:
    parameter = next(p for p in module.parameters() if p.requires_grad)
    for name, leaf in leaves:
        samples = "N" if name.startswith("support") else "M"
        if leaf.dim() < 2:
            raise ValueError(
                f"{name} must have shape [T, {samples}, ...], got {shape_of(leaf)}: its task dimension is "
                "missing; stack the tasks, or add the dimension of a single one with unsqueeze(0)"
            )
        if 0 in leaf.shape[:2]:
            raise ValueError(
                f"{name} must hold at least one task of one sample, got T = {leaf.shape[0]}, "
                f"{samples} = {leaf.shape[1]} (shape {shape_of(leaf)}); skip such a batch"
            )
        if leaf.device != parameter.device:
            raise ValueError(
                f"{name} must be on the module's device, {parameter.device}, got {leaf.device}; move one of "
                "them with .to(device)"
            )
        if leaf.is_floating_point() and leaf.dtype != parameter.dtype:
            _check_dtype(name, leaf, module)


def _check_dtype(name: str, leaf: Tensor, module: nn.Module) -> None:
    dtypes = sorted({dtype_of(p) for p in module.parameters() if p.requires_grad})
    if dtype_of(leaf) not in dtypes:
        raise ValueError(
            f"{name} must have the dtype of the module's parameters, {' or '.join(dtypes)}, got "
            f"{dtype_of(leaf)}; convert one of them with .to(dtype)"
        )


def _check_equal(leaves: Sequence[tuple[str, Tensor]], dim: int, what: str) -> None:
    """All leaves agree in dimension `dim`."""
    for name, leaf in leaves[1:]:
        first, reference = leaves[0]
        if leaf.shape[dim] != reference.shape[dim]:
            shapes = ", ".join(f"{n} {shape_of(x)}" for n, x in leaves)
            raise ValueError(
                f"{name} must hold as many {what} as {first}, {reference.shape[dim]}, got {leaf.shape[dim]}; "
                f"every tensor starts with [tasks, samples]: {shapes}"
            )


def _check_known_targets(name: str, targets: Tree, loss_name: str, loss: Any) -> None:
    """Targets of cross_entropy and mse_loss, as far as they can be judged without the outputs."""
    entropy = _is(loss, F.cross_entropy, nn.CrossEntropyLoss)
    if not entropy and not _is(loss, F.mse_loss, nn.MSELoss):
        return
    if not isinstance(targets, Tensor):
        kind = "cross_entropy" if entropy else "mse_loss"
        raise TypeError(f"{name} must be one tensor, as {loss_name} is {kind}, got {type(targets).__name__}")
    probabilities = targets.is_floating_point() and targets.dim() > 2
    if entropy and targets.dtype != torch.int64 and not probabilities:
        raise ValueError(
            f"{name}: labels must be int64, as {loss_name} is cross_entropy, got {dtype_of(targets)} of shape "
            f"{shape_of(targets)}; convert them with .long(), or pass class probabilities [T, N, C]"
        )


def _is(loss: Any, function: Any, module: type[nn.Module]) -> bool:
    """Whether a loss is a known one: the function, a partial of it, or its module."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss is function or isinstance(loss, module)
