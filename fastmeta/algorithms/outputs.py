"""What learners give: the results of a meta-step, and the adapted networks of all tasks."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fastmeta.engine.batch import Tree
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.checks import check_query
from fastmeta.engine.session import Session
from fastmeta.inner_step import inner_step_at, reads_inner_step
from fastmeta.internals import pytree
from fastmeta.optim.base import State

_BATCH_NORM = inspect.signature(F.batch_norm)


class MetaOutput(NamedTuple):
    """What a meta-step gives.

    Attributes:
        loss: mean of `task_losses` over the tasks that stayed finite, zero where none did; `loss.backward()` gives the
            meta-gradient.
        task_losses: [T] query losses after adaptation, differentiable.
        outputs: the module's query outputs [T, M, ...], for metrics; not differentiable (use `adapt` for that). Where
            their shapes differ from task to task, a tuple of T tensors.
        finite: [T] bool. False: the task's support data, inner loop or loss holds a NaN or infinity; the task is
            left out of `loss` and of the meta-gradient. On a CPU a RuntimeWarning names it.
    """

    loss: Tensor
    task_losses: Tensor
    outputs: Tree
    finite: Tensor

    def __repr__(self) -> str:
        shapes = pytree.tree_map_only(Tensor, lambda y: list(y.shape), self.outputs)
        lost = "" if self.finite.device.type != "cpu" else f", {int(self.finite.sum())} of them finite"
        return (
            f"MetaOutput(loss={self.loss.detach().item() if self.loss.device.type == 'cpu' else self.loss.device}, "
            f"{self.task_losses.shape[0]} tasks{lost}, outputs {shapes})"
        )


class _WithLoss(Protocol):
    """What a meta-step of any learner gives."""

    @property
    def loss(self) -> Tensor: ...

    @property
    def task_losses(self) -> Tensor: ...

    def _replace(self, **changes: Tensor) -> Any: ...


Out = TypeVar("Out", bound=_WithLoss)


def accumulated(out: Out) -> Out:
    """After `out.loss.backward()`: the same output without its graph."""
    if not (hasattr(out, "loss") and hasattr(out, "_replace")):
        raise TypeError(
            f"accumulate() needs a forward that gives a fastmeta.MetaOutput, this one gives {type(out).__name__}; call "
            "the learner, and backward() on its loss"
        )
    out.loss.backward()
    return out._replace(loss=out.loss.detach(), task_losses=out.task_losses.detach())


def check_gradients_on() -> None:
    """Raises where no gradient is computed, as `accumulate` would have none to add."""
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "accumulate() adds the meta-gradient to .grad, and gradients are off here (torch.no_grad() or "
            "inference_mode()); call it outside of that, or for losses alone call the learner itself"
        )


class _AdaptsFurther(Protocol):
    """What learners ask of the meta-learner that made them."""

    def __call__(
        self, support_x: Tree, support_y: Tree, steps: int | None, going_on: tuple[Tensor, State, int], /
    ) -> Learners: ...


class Learners:
    """All tasks' adapted networks. Call them on query inputs [T, M, ...]; differentiable in the meta-parameters.

    Attributes:
        finite: [T] bool, as `MetaOutput.finite`.
    """

    def __init__(
        self, session: Session, phi: Tensor, state: State, finite: Tensor, steps: int, further: _AdaptsFurther
    ) -> None:
        self._session, self._phi, self._state, self._steps = session, phi, state, steps
        self._further = further
        self.finite = finite

    @property
    def _module(self) -> nn.Module:
        return self._session.module

    def parameters(self) -> dict[str, Tensor]:
        """Fast weights φ_K: {name: [T, *shape]}, differentiable in the meta-parameters."""
        return self._session.layout.named(self._phi)

    @outside_of_compile
    def __call__(self, query_x: Tree) -> Tree:
        """The module's outputs [T, M, ...] at each task's fast weights."""
        check_query(
            query_x, tasks=self.finite.shape[0], module=self._module,
            bn_statistics=self._session.options.bn_statistics,
        )  # fmt: skip
        return self._session.outputs(self._phi, query_x)

    def adapt_further(self, support_x: Tree, support_y: Tree = None, *, steps: int | None = None) -> Learners:
        """Learners that went on from here, on the same support sets or on others of the same tasks.

        The inner loop goes on as if it had not stopped: momentum, moments, rates of a step and inner batches too, so
        that on the same data `adapt(x, y, steps=2).adapt_further(x, y, steps=3)` is `adapt(x, y, steps=5)`.

        Args:
            support_x, support_y: inputs and targets [T, N, ...] of the same tasks, in the same order.
            steps: how many more; None takes the meta-learner's `inner_steps`.

        Raises:
            ValueError: another number of tasks, or data that do not fit.
        """
        check_query(support_x, tasks=self.finite.shape[0], module=self._module, name="support_x")
        return self._further(support_x, support_y, steps, (self._phi, self._state, self._steps))

    def module(self, task: int) -> nn.Module:
        """The network of one task by itself: a plain `nn.Module` to evaluate, save or export.

        A copy of the meta-learner's module, frozen layers, buffers and modes included, that holds the task's fast
        weights, without a graph, and in a buffer `inner_step` the step that led to them. With `bn_statistics="support"`
        its batch norms hold the statistics of the task's support set and are in eval mode, as the learners normalise by
        them.

        Args:
            task: its number in the batch, from 0; negative ones count from the end.

        Raises:
            IndexError: there is no such task.
            RuntimeError: `bn_statistics="support"`, and a batch norm of the module was called more than once, or is
                no `nn.BatchNorm` layer, so that it cannot hold the statistics.
        """
        tasks = self.finite.shape[0]
        if not -tasks <= task < tasks:
            raise IndexError(f"task must be one of the {tasks} adapted ones, from 0 to {tasks - 1}, got {task}")
        alone = copy.deepcopy(self._module)
        named = dict(alone.named_parameters())
        with torch.no_grad():
            for name, values in self.parameters().items():
                named[name].copy_(values[task])
                named[name].grad = None
            for name, x in alone.named_buffers():
                if reads_inner_step(name, x):
                    x.copy_(inner_step_at(x, max(self._steps - 1, 0)))
        if self._session.options.bn_statistics == "support":
            x = pytree.tree_map_only(Tensor, lambda leaf: leaf[task], self._session.batch.support_x)
            _hold_statistics(alone, x)
        return alone

    def __repr__(self) -> str:
        names = self._session.layout.names
        return f"Learners({self.finite.shape[0]} tasks, {self._steps} inner steps, fast weights {', '.join(names)})"


def _hold_statistics(module: nn.Module, support_x: Tree) -> None:
    """Batch norms that would use their batch's statistics hold those of `support_x` [N, ...] from now on."""
    layers = {m: name for name, m in module.named_modules() if isinstance(m, _BatchNorm) and _by_batch(m)}
    found: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        if layer in found:
            raise RuntimeError(
                f"batch norm {layers[layer]!r} is called more than once, and has room for one set of statistics; give "
                'every call a layer of its own, or use bn_statistics="batch"'
            )
        x = args[0].detach()
        dims = [0, *range(2, x.dim())]
        found[layer] = x.mean(dims), x.var(dims, correction=0)

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    calls = _FunctionalNorms()
    try:
        with torch.no_grad(), calls:
            module(**support_x) if isinstance(support_x, dict) else module(*as_tuple(support_x))
    finally:
        for handle in handles:
            handle.remove()
    if calls.count != len(found):
        raise RuntimeError(
            "the module normalises by batch statistics outside of nn.BatchNorm layers, so that no layer can hold those "
            'of the support set; use nn.BatchNorm layers, or bn_statistics="batch"'
        )
    for layer, (mean, var) in found.items():
        layer.track_running_stats, layer.running_mean, layer.running_var = True, mean, var
        layer.eval()


class _FunctionalNorms(TorchFunctionMode):
    """Counts the calls of `F.batch_norm` that use the statistics of their batch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            self.count += bool(_BATCH_NORM.bind(*args, **(kwargs or {})).arguments.get("training"))
        return func(*args, **(kwargs or {}))


def _by_batch(layer: _BatchNorm) -> bool:
    return layer.training or layer.running_mean is None


def as_tuple(inputs: Tree) -> tuple[Any, ...]:
    """Positional arguments of a module that inputs which are no dict stand for."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
