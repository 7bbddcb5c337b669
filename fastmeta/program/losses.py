"""The inner and outer loss as an op: cross-entropy and mean squared error are known, any other callable is opaque."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastmeta.ops.base import Loss as LossOp
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.mse import MSE
from fastmeta.ops.opaque import Opaque, OpaqueLoss

from .plan import Plan
from .targets import check_class_targets, check_labels, check_per_task_loss
from .trace import Draws
from .tree import Tree

Loss = Callable[[Tree, Tree], Tensor]  # (outputs, targets) -> a scalar for one task


def known_loss(loss: Loss) -> CrossEntropy | MSE | None:
    """The op of a loss that has one: `F.cross_entropy`, `F.mse_loss` or their modules, with reduction="mean"."""
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial) and not loss.args:
        loss, options = loss.func, dict(loss.keywords)
    if type(loss) is nn.CrossEntropyLoss:
        names = ("weight", "ignore_index", "reduction", "label_smoothing")
        loss, options = F.cross_entropy, {name: getattr(loss, name) for name in names}
    elif type(loss) is nn.MSELoss:
        loss, options = F.mse_loss, {"reduction": loss.reduction}
    if options.pop("reduction", "mean") != "mean" or options.pop("weight", None) is not None:
        return None
    if loss is F.cross_entropy and options.keys() <= {"ignore_index", "label_smoothing"}:
        return CrossEntropy(options.get("label_smoothing", 0.0), options.get("ignore_index", -100))
    return MSE() if loss is F.mse_loss and not options else None


def loss_op(name: str, loss: Loss, plan: Plan, targets: Tree, *, skip: int = 0) -> LossOp:
    """The op of `loss` between a plan's outputs and a tree of targets [T, N, ...].

    Its inputs are the leaves of the outputs, then the leaves of the targets; it gives one loss per task [T]. `skip`
    rows of the plan's outputs are support samples in front, which the loss does not see.

    Raises:
        ValueError: targets of another shape than `F.mse_loss` wants. From the op's first sweep: the loss draws random
            numbers, or gives no scalar for each task.
    """
    leaves, spec = pytree.tree_flatten(targets)
    given = [leaf for leaf in leaves if leaf is not None]
    shapes = plan.sample_shapes(skip)
    op = known_loss(loss)
    if len(shapes) == len(given) == 1:
        if isinstance(op, CrossEntropy) and not given[0].dtype.is_floating_point:
            return op
        if isinstance(op, MSE):
            if tuple(given[0].shape[1:]) != shapes[0]:
                raise ValueError(
                    f"{name}: F.mse_loss wants targets of the outputs' shape, {list(shapes[0])} a task, got "
                    f"{list(given[0].shape[1:])}; reshape one of them: broadcasting would average the wrong pairs"
                )
            return op
    outputs, calls = len(shapes), itertools.count()
    title = getattr(loss, "__name__", type(loss).__name__)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = plan.output_tree(tensors[:outputs])
        rest = iter(tensors[outputs:])
        filled = [None if leaf is None else next(rest) for leaf in leaves]
        with nullcontext() if next(calls) else _refuse_draws(name):  # the first call says it for all
            value = loss(out, pytree.tree_unflatten(filled, spec))
        check_per_task_loss(name, value)
        return (value,)

    leaves = [
        None if leaf is None else True for leaf in leaves
    ]  # where targets stand; the data itself must not live on
    return OpaqueLoss(Opaque(run, title))


@contextmanager
def _refuse_draws(name: str) -> Iterator[None]:
    with Draws() as draws:
        yield
    if draws.any:
        raise ValueError(
            f"{name} draws random numbers, and would draw others for its value than for its derivatives; draw them in "
            'the module, where all see the same numbers, or use backend="reference"'
        )


def check_targets_of(
    name: str, loss: Loss, plan: Plan, targets: Sequence[Tensor], *, skip: int = 0, batch: int | None = None
) -> None:
    """Where `loss` is cross-entropy: targets of a shape that fits the logits'.

    The plan may stand for a part of the samples, a `batch` of them, while the targets are of all.
    """
    shapes = plan.sample_shapes(skip)
    if isinstance(known_loss(loss), CrossEntropy) and len(shapes) == len(targets) == 1:
        (given,) = targets
        samples = shapes[0][0] if batch is None else given.shape[1]
        check_class_targets(name, given, (given.shape[0], samples, *shapes[0][1:]))


def check_labels_of(name: str, loss: LossOp | None, plan: Plan, targets: Sequence[Tensor]) -> None:
    """Where `loss` is cross-entropy of labels: each within the logits' classes."""
    if isinstance(loss, CrossEntropy):
        (labels,), (logits,) = targets, plan.output_shapes
        check_labels(name, labels, logits[1], ignore_index=loss.ignore_index)
