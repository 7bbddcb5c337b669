"""The engine as differentiable PyTorch operations: adapt, query outputs, and the two with a loss between them in one.

Each is one autograd.Function over all that it is differentiated by, `Sources`. Gradients reach `.grad` of the module's
own parameters, of learned rates and of data, so optimisers, gradient clipping, schedulers, DDP and loggers need no
change. The meta-gradient itself cannot be differentiated again, which raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastmeta.program.layout import Layout

from .adjoint import Cotangents
from .meta_step import MetaGradient, MetaInputs, flattened, over_tasks, rebuilt
from .objective import Data

_ONCE = (
    "fastmeta's meta-gradient is computed, not recorded, and cannot be differentiated again. "
    'Use backend="reference" for derivatives of the meta-gradient'
)

_AS_IT_IS = nullcontext()


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Without autocast, where there is one: entering and leaving it takes 10 µs."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _AS_IT_IS


def numerics(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Precision is the learner's inside, whatever autocast surrounds the call."""
    return _gpu_numerics(precision) if device.type == "cuda" else no_autocast(device.type)


@contextmanager
def _gpu_numerics(precision: str) -> Iterator[None]:
    wanted = precision == "tf32"
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    other = [backend for backend in backends if backend.allow_tf32 != wanted]  # asking takes less than setting
    for backend in other:
        setattr(backend, "allow_tf32", wanted)  # noqa: B010  typed as a plain module
    try:
        with no_autocast("cuda"):
            yield
    finally:
        for backend in other:
            setattr(backend, "allow_tf32", not wanted)  # noqa: B010


def no_grad() -> AbstractContextManager[Any]:
    """Without recording for autograd, where it records: in a backward only create_graph=True asks for that."""
    return torch.no_grad() if torch.is_grad_enabled() else _AS_IT_IS


class _OnlyOnce(Function):
    """Identity whose backward says why there is none."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(_ONCE)


def _only_once(values: tuple[Tensor | None, ...], *sources: Tensor | None) -> tuple[Tensor | None, ...]:
    """`values`, where create_graph=True asks for a graph, with one to `sources` that raises."""
    if not torch.is_grad_enabled():
        return values
    given = [x for x in (*values, *sources) if x is not None]
    marked = iter(_OnlyOnce.apply(*given))  # pyright: ignore[reportArgumentType]
    return tuple(None if x is None else next(marked) for x in values)


class Sources(NamedTuple):
    """All that an operation is differentiated by, and how its cotangents lie in them.

    Attributes:
        at: φ_0, ψ, η, weights and state.
        layout: of φ_0, where `at.start` is the module's own parameters.
        shared: of ψ.
        data: support inputs and targets, then the query set's; () where none of them requires grad.
        sizes: how many of them are of the support and of the query set.
    """

    at: MetaInputs
    layout: Layout
    shared: Layout
    data: tuple[Tensor, ...]
    sizes: tuple[int, int]

    @classmethod
    def of(cls, at: MetaInputs, layout: Layout, shared: Layout, support: Data, query: Data) -> Sources:
        """With the data, where any of it requires grad."""
        parts = (*support.inputs, *support.targets), (*query.inputs, *query.targets)
        data = (*parts[0], *parts[1])
        wanted = any(x.requires_grad for x in data)
        return cls(at, layout, shared, data if wanted else (), (len(parts[0]), len(parts[1])))

    def tensors(self) -> list[Tensor]:
        """What autograd is shown, in the order of `gradients`."""
        start = [self.at.start] if isinstance(self.at.start, Tensor) else self.at.start
        return [*start, *self.at.shared, *self.at.meta, *(self.at.state or ()), *self.data]

    def gradients(self, found: Cotangents) -> tuple[Tensor | None, ...]:
        """Gradients of `tensors()` out of cotangents that are summed over tasks as `MetaGradient.gradient` is."""
        if isinstance(self.at.start, Tensor):
            start: tuple[Tensor | None, ...] = (found.start,)
        else:
            start = self.layout.split(found.start)
        shared: tuple[Tensor | None, ...] = (None,) * len(self.at.shared)
        if found.shared is not None:
            shared = self.shared.split(found.shared)
        meta = found.meta or (None,) * len(self.at.meta)
        state = (found.state or (None,) * len(self.at.state)) if self.at.state else ()
        data: tuple[Tensor | None, ...] = ()
        if self.data:
            parts = zip((found.support, found.query), self.sizes, strict=True)
            data = tuple(d for part, size in parts for d in (*part, *(None,) * (size - len(part))))
        return (*start, *shared, *meta, *state, *data)

    def summed(self, found: Cotangents, weights: Tensor | None) -> Cotangents:
        """Per-task cotangents as `gradients` takes them: each task's times its weight [T], None for one."""

        def scaled(x: Tensor) -> Tensor:
            return x if weights is None else x * weights.view(-1, *(1,) * (x.dim() - 1))

        def total(x: Tensor) -> Tensor:
            return x.sum(0) if weights is None else (weights @ x.flatten(1)).view(x.shape[1:])

        def each(xs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(None if x is None else scaled(x) for x in xs)

        return Cotangents(
            total(found.start) if self.at.one_start else scaled(found.start),
            None if found.shared is None else total(found.shared),
            tuple(total(x) for x in found.meta),
            each(found.support),
            each(found.query),
            tuple(scaled(x) for x in found.state),
        )


class MetaStep(Function):
    """Sources → mean loss, task losses [T] of a meta-step that has run, so that all tasks' cotangents are there."""

    @staticmethod
    def forward(ctx: Any, step: MetaGradient, sources: Sources, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        assert step.gradient is not None, "a meta-step without its gradient"
        ctx.sources, ctx.tensors, ctx.of_tasks = sources, tensors, step.of_tasks
        # through `save_for_backward`, which frees them with the graph and refuses a second backward
        saved, ctx.shape = flattened(step.gradient)
        if step.tasks.cotangents is not None:
            of_tasks, ctx.shape_of_tasks = flattened(step.tasks.cotangents)
            saved = [*saved, *of_tasks]
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return step.loss, step.tasks.losses

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, d_losses: Tensor | None) -> Any:
        sources: Sources = ctx.sources
        if d_loss is None and d_losses is None:
            return (None,) * (2 + len(ctx.tensors))
        saved = iter(ctx.saved_tensors)
        gradient = rebuilt(ctx.shape, saved)
        with no_grad(), no_autocast(gradient.start.device.type):
            parts: list[Cotangents] = []
            if d_loss is not None:
                parts.append(over_tasks(lambda xs: xs[0] * d_loss, [gradient]))
            if d_losses is not None:
                tasks = ctx.of_tasks() if ctx.of_tasks else rebuilt(ctx.shape_of_tasks, saved)
                parts.append(sources.summed(tasks, d_losses))
            found = parts[0] if len(parts) == 1 else over_tasks(lambda xs: xs[0] + xs[1], parts)
            grads = sources.gradients(found)
        return (None, None, *_only_once(grads, d_loss, d_losses, *ctx.tensors))


class Adapt(Function):
    """Sources → φ_K [T, P] and the inner rule's state; the backward is the adjoint recursion.

    `run` gives φ_K, the state, and a function (λ_K, σ_K) → cotangents of each task.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], sources: Sources, *tensors: Tensor) -> tuple[Tensor, ...]:
        phi, state, ctx.adjoint = run()
        ctx.sources = sources
        ctx.save_for_backward(*tensors)  # an update of a parameter before the backward raises, as everywhere in PyTorch
        return (phi, *state)

    @staticmethod
    def backward(ctx: Any, lam: Tensor, *sigma: Tensor) -> Any:
        sources: Sources = ctx.sources
        tensors = ctx.saved_tensors
        with no_grad():
            grads = sources.gradients(sources.summed(ctx.adjoint(lam, sigma), None))
        return (None, None, *_only_once(grads, lam, *tensors))


class QueryOutputs(Function):
    """(φ [T, P], ψ, data) → outputs [T, M, ...]; the backward is one sweep.

    `run` gives the outputs and a map of their cotangents to those of each task; `sources.at.start` is φ.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], sources: Sources, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, ctx.pullback = run()
        ctx.sources = sources
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(y for y in outputs if not (y.is_floating_point() or y.is_complex())))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Any:
        sources: Sources = ctx.sources
        tensors = ctx.saved_tensors
        with no_grad():
            grads = sources.gradients(sources.summed(ctx.pullback(list(d_outputs)), None))
        return (None, None, *_only_once(grads, *d_outputs, *tensors))
