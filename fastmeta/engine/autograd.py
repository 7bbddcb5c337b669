"""The engine as differentiable PyTorch operations: adapt, apply, and the two with a loss between them in one.

Gradients reach `.grad` of the module's own parameters, so optimisers, gradient clipping, schedulers, DDP and loggers
need no change. The meta-gradient itself cannot be differentiated again, which raises.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastmeta.ops.base import total
from fastmeta.program.layout import Layout

from .meta_step import MetaGradient

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


def _only_once(values: tuple[Tensor, ...], *sources: Tensor | None) -> tuple[Tensor, ...]:
    """`values`, where create_graph=True asks for a graph, with one to `sources` that raises."""
    if not torch.is_grad_enabled():
        return values
    given = [x for x in sources if x is not None]
    return _OnlyOnce.apply(*values, *given)[: len(values)]  # pyright: ignore[reportReturnType, reportOptionalSubscript]


class MetaStep(Function):
    """(θ) → mean loss, task losses [T] of a meta-step that has run, so that all tasks' λ_0 are there."""

    @staticmethod
    def forward(ctx: Any, step: MetaGradient, layout: Layout, *params: Tensor) -> tuple[Tensor, Tensor]:
        assert step.gradient is not None, "a meta-step without its gradient"
        ctx.layout, ctx.params, ctx.lent = layout, params, step.lent
        ctx.save_for_backward(step.gradient, step.tasks.lam)
        ctx.set_materialize_grads(False)
        return step.loss, step.tasks.losses

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, d_losses: Tensor | None) -> Any:
        if d_loss is None and d_losses is None:
            return (None,) * (2 + len(ctx.params))
        gradient, lam = ctx.saved_tensors
        with no_grad(), no_autocast(gradient.device.type):
            flat = None if d_loss is None else gradient * d_loss
            if d_losses is not None:
                flat = total(flat, d_losses @ (ctx.lent() if ctx.lent else lam))
            assert flat is not None
            grads = ctx.layout.split(flat)
        return (None, None, *_only_once(grads, d_loss, d_losses, *ctx.params))


class Adapt(Function):
    """(θ) → φ_K [T, P]; the backward is the adjoint recursion. `run` gives φ_K and a function λ_K → λ_0."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], layout: Layout, *params: Tensor) -> Tensor:
        phi, ctx.adjoint = run()
        ctx.layout = layout
        ctx.save_for_backward(*params)
        return phi

    @staticmethod
    def backward(ctx: Any, lam: Tensor) -> Any:
        with no_grad():
            grads = ctx.layout.split(ctx.adjoint(lam).sum(0))
        return (None, None, *_only_once(grads, lam, *ctx.saved_tensors))


class Apply(Function):
    """(φ [T, P]) → outputs [T, M, ...]; the backward is one sweep. `run` gives outputs and a map d outputs → dφ."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], phi: Tensor) -> tuple[Tensor, ...]:
        outputs, ctx.pullback = run()
        ctx.save_for_backward(phi)
        ctx.mark_non_differentiable(*(y for y in outputs if not (y.is_floating_point() or y.is_complex())))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Any:
        with no_grad():
            d_phi = ctx.pullback(list(d_outputs))
        (d_phi,) = _only_once((d_phi,), *d_outputs, *ctx.saved_tensors)
        return None, d_phi
