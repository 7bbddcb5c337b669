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

from fastmeta.internals import pytree
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
    bn_statistics: str = "batch",
) -> None:
    """Everything that can be said about a meta-batch before the module has run.

    All tensors hold as many tasks. As many samples are held by input and target of a known loss, and by all tensors
    of a set that is cut into samples: with `inner_batch_size`, or with bn_statistics="support". Else a task may have
    tensors of any sizes: interior and boundary points, nodes and edges, one vector or one number for the whole task.

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
    _check_numbers(support_x, support_y)
    _check_numbers(query_x, query_y)
    _check_tasks([*support_x, *support_y, *query_x, *query_y])
    by_support = 'bn_statistics="support" puts support and query samples one behind another'
    if inner_batch_size is not None:
        _check_samples([*support_x, *support_y], "inner_batch_size takes some of the samples, from every tensor")
    if bn_statistics == "support":
        _check_samples(support_x, by_support)
        _check_samples(query_x, by_support)
    _check_known_targets("support_y", batch.support_x, batch.support_y, "inner_loss", inner_loss)
    if batch.query_x is not None:
        name, loss = ("inner_loss", inner_loss) if outer_loss is None else ("outer_loss", outer_loss)
        _check_known_targets("query_y", batch.query_x, batch.query_y, name, loss)
    if inner_batch_size is not None and inner_batch_size > batch.support_samples:
        raise ValueError(
            f"inner_batch_size must be at most the number of support samples, {batch.support_samples}, got "
            f"{inner_batch_size}; lower it, or pass more support samples"
        )


def check_query(
    query_x: Tree, *, tasks: int, module: nn.Module, name: str = "query_x", bn_statistics: str = "batch"
) -> None:
    """The inputs handed to learners that were adapted on `tasks` tasks. Raises as `check_batch`."""
    samples = "N" if name.startswith("support") else "M"
    if query_x is None:
        raise TypeError(f"{name} must hold tensors [T, {samples}, ...], got None")
    leaves = _leaves(name, query_x)
    _check_leaves(leaves, module)
    _check_numbers(leaves, [])
    if bn_statistics == "support":
        _check_samples(leaves, 'bn_statistics="support" puts support and query samples one behind another')
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
        if leaf.dim() == 0:
            raise _without_tasks(name, leaf)
        if 0 in leaf.shape[:2]:
            sizes = ", ".join(f"{letter} = {n}" for letter, n in zip(("T", samples), leaf.shape, strict=False))
            raise ValueError(
                f"{name} must hold at least one task of one sample, got {sizes} (shape {shape_of(leaf)}); skip such a "
                "batch"
            )
        if leaf.device != parameter.device:
            raise ValueError(
                f"{name} must be on the module's device, {parameter.device}, got {leaf.device}; move one of "
                "them with .to(device)"
            )
        if leaf.is_floating_point() and leaf.dtype != parameter.dtype:
            _check_dtype(name, leaf, module)


def _check_dtype(name: str, leaf: Tensor, module: nn.Module) -> None:
    # beside complex parameters real inputs are of the precision of their parts
    trainable = [p for p in module.parameters() if p.requires_grad]
    dtypes = sorted({dtype_of(x) for p in trainable for x in ([p, p.real] if p.is_complex() else [p])})
    if dtype_of(leaf) not in dtypes:
        raise ValueError(
            f"{name} must have the dtype of the module's parameters, {' or '.join(dtypes)}, got "
            f"{dtype_of(leaf)}; convert one of them with .to(dtype)"
        )


def _without_tasks(name: str, leaf: Tensor) -> ValueError:
    samples = "N" if name.startswith("support") else "M"
    return ValueError(
        f"{name} must have shape [T, {samples}, ...], got {shape_of(leaf)}: its task dimension is "
        "missing; stack the tasks, or add the dimension of a single one with unsqueeze(0)"
    )


def _check_numbers(inputs: Sequence[tuple[str, Tensor]], targets: Sequence[tuple[str, Tensor]]) -> None:
    """A tensor [T] is one number a task beside inputs [T, N, ...] of at least three dimensions.

    Beside an input of two it could as well be the labels of one task whose own dimension was forgotten.
    """
    if max((leaf.dim() for _, leaf in inputs), default=0) >= 3:
        return
    for name, leaf in (*inputs, *targets):
        if leaf.dim() == 1:
            raise _without_tasks(name, leaf)


def _check_tasks(leaves: Sequence[tuple[str, Tensor]]) -> None:
    """All leaves hold as many tasks."""
    for name, leaf in leaves[1:]:
        first, reference = leaves[0]
        if leaf.shape[0] != reference.shape[0]:
            if leaf.dim() == 1:
                raise _without_tasks(name, leaf)
            raise ValueError(
                f"{name} must hold as many tasks as {first}, {reference.shape[0]}, got {leaf.shape[0]}; "
                f"every tensor starts with [tasks, samples]: {_shapes(leaves)}"
            )


def _check_samples(leaves: Sequence[tuple[str, Tensor]], why: str) -> None:
    """All leaves hold as many samples."""
    for name, leaf in leaves:
        if leaf.dim() < 2:
            raise ValueError(f"{name} must have shape [tasks, samples, ...], got {shape_of(leaf)}, as {why}")
        first, reference = leaves[0]
        if leaf.is_nested or reference.is_nested:
            continue  # every task has its own number of them, which its loss compares
        if leaf.shape[1] != reference.shape[1]:
            raise ValueError(
                f"{name} must hold as many samples as {first}, {reference.shape[1]}, got {leaf.shape[1]}, as {why}; "
                f"every tensor starts with [tasks, samples]: {_shapes(leaves)}"
            )


def _shapes(leaves: Sequence[tuple[str, Tensor]]) -> str:
    return ", ".join(f"{n} {shape_of(x)}" for n, x in leaves)


def _check_known_targets(name: str, inputs: Tree, targets: Tree, loss_name: str, loss: Any) -> None:
    """Targets of cross_entropy and mse_loss, as far as they can be judged without the outputs."""
    entropy = _is(loss, F.cross_entropy, nn.CrossEntropyLoss)
    if not entropy and not _is(loss, F.mse_loss, nn.MSELoss):
        return
    if not isinstance(targets, Tensor):
        kind = "cross_entropy" if entropy else "mse_loss"
        raise TypeError(f"{name} must be one tensor, as {loss_name} is {kind}, got {type(targets).__name__}")
    if isinstance(inputs, Tensor):
        _check_samples([(name[:-1] + "x", inputs), (name, targets)], f"{loss_name} compares them one by one")
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
