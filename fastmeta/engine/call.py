"""What a call hands to the engine, checked against the module as it is at that moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.internals import pytree
from fastmeta.optim.base import State
from fastmeta.program.layout import Layout

from .batch import TaskBatch, Tree
from .objective import Data


class Call(NamedTuple):
    """What a learner asks for beside its options.

    Attributes:
        steps: of the inner loop.
        adapts: says of a parameter's name whether the inner loop moves it; None: all are moved.
        start: φ_0 out of θ, both rows [P], or [T, P]; None: φ_0 is θ.
        weights: of the query losses at φ_0 … φ_K; None: the last alone counts.
        going_on: fast weights and state to go on from, and the steps they went already.
        ends: whether a meta-step gives φ_K and the rule's state too.
    """

    steps: int
    adapts: Callable[[str], bool] | None = None
    start: Callable[[Tensor, Data], Tensor] | None = None
    weights: Tensor | Sequence[float] | None = None
    going_on: tuple[Tensor, State, int] | None = None
    ends: bool = False


@contextmanager
def trainable_alone(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, the parameters of these names require a gradient, and no other does."""
    changed = [p for name, p in module.named_parameters() if p.requires_grad != (name in names)]
    for p in changed:
        p.requires_grad_(not p.requires_grad)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(not p.requires_grad)


def check_row(start: Tensor, layout: Layout) -> None:
    """Raises where fast weights [T, P] to go on from have another P than `layout`."""
    if start.shape[1] != layout.size:
        raise ValueError(
            f"the module has {layout.size} trainable values that are adapted, and had {start.shape[1]} when these "
            "learners were made; parameters were frozen, freed or replaced since. Adapt again"
        )


def check_layout(adapted: Layout, now: Layout) -> None:
    """Raises where the module no longer has the parameters that were adapted."""
    then, after = (dict(zip(layout.names, layout.shapes, strict=True)) for layout in (adapted, now))
    if then != after:
        others = sorted({name for name, _ in then.items() ^ after.items()})
        raise ValueError(
            f"the module's parameters are no longer those that were adapted: {others} came, went, or have another "
            "shape. Adapt again"
        )


def checked_start(start: Tensor, layout: Layout, tasks: int) -> Tensor:
    """The user's φ_0, a row [P] or rows [T, P]."""
    legal = ((layout.size,), (tasks, layout.size))
    if not isinstance(start, Tensor) or tuple(start.shape) not in legal:
        got = list(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"start() must give a row [{layout.size}] or rows [{tasks}, {layout.size}], got {got}")
    return start


def checked_weights(
    weights: Tensor | Sequence[float] | None, steps: int, layout: Layout
) -> tuple[Tensor | None, tuple[int, ...] | None]:
    """The weights [K + 1] as a tensor on the device, and which of them are not zero."""
    if weights is None:
        return None, None
    values = torch.as_tensor(weights, dtype=layout.dtype)
    if values.requires_grad:
        raise ValueError("weights() must give numbers: a gradient of the query losses' weights is not computed")
    if tuple(values.shape) != (steps + 1,):
        raise ValueError(
            f"weights() must give {steps + 1} numbers, for the query losses at φ_0 … φ_{steps}, got shape "
            f"{list(values.shape)}"
        )
    asked = tuple(k for k, w in enumerate(values.tolist()) if w != 0)
    if not asked:
        raise ValueError("weights() must not be zero at every step: there would be no outer loss")
    return values.to(layout.device), asked


def check_implicit(call: Call, asked: tuple[int, ...] | None) -> None:
    """Raises where an implicit meta-gradient would not be that of what is asked for."""
    if call.going_on is not None:
        raise ValueError(
            "adapt_further has no implicit meta-gradient: the proximal term would be to where it goes on from, not to "
            "θ. Adapt with more steps at once, adapt(..., steps=...)"
        )
    if asked not in (None, (call.steps,)):
        raise ValueError(
            f"weights() counts the query losses at steps {list(asked or ())}, and an implicit meta-gradient is of the "
            f"last alone, {call.steps}; use MAML, or leave weights() out"
        )


def signature(batch: TaskBatch, tasks: int | None = None) -> tuple[Hashable, ...]:
    """Batches of equal signature pass the same checks and share a plan; with `tasks`, whatever their number is."""
    trees = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    if tasks is not None:
        trees = pytree.tree_map_only(Tensor, lambda x: x[:tasks], trees)
    return tuple(map(_kinds, trees))


def _kinds(tree: Tree) -> Hashable:
    if isinstance(tree, Tensor):
        return _kind(tree)
    leaves, spec = pytree.tree_flatten(tree)
    return spec, tuple(_kind(x) if isinstance(x, Tensor) else x.__class__ for x in leaves)


def _kind(x: Tensor) -> Hashable:
    """All that `check_batch` looks at, and whether it gets a gradient."""
    return x.shape, x.dtype, x.device, x.requires_grad and torch.is_grad_enabled()
