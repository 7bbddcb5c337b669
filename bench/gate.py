"""No speed without correctness: a peer's meta-gradient against float64 truth, on the batch it is timed on.

A float32 meta-gradient has an error of its own, set by the workload (kinks of ReLU and max-pool), not by the
peer. So the bound is adaptive: twice the error that `fastmeta.reference` makes in float32, plus SLACK. All
errors are ‖g − truth‖ / ‖truth‖ over all parameters. The gate also knows how far MAML and first-order MAML
lie apart: a peer that drops the second-order term must not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastmeta
from bench.workloads import LOSSES, Workload
from fastmeta import reference

SLACK = 1e-4


@dataclass(frozen=True)
class Gate:
    """Truth for one workload and algorithm.

    Attributes:
        truth: meta-gradient in float64, flat, parameters in the model's order.
        names: the parameters' names in that order.
        float32_error: error of the reference in float32.
        order_gap: ‖g_maml − g_fomaml‖ / ‖g_maml‖ in float64.
    """

    truth: Tensor
    names: tuple[str, ...]
    float32_error: float
    order_gap: float

    @property
    def bound(self) -> float:
        """The largest error that passes."""
        return 2 * self.float32_error + SLACK

    def error(self, gradient: Mapping[str, Any]) -> float:
        """Error of a peer's meta-gradient; NaN where it holds NaN.

        Raises:
            ValueError: a parameter is missing or has another shape.
        """
        parts = []
        for name in self.names:
            value = gradient.get(name)
            if value is None:
                raise ValueError(f"no gradient for {name}")
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
            parts.append(tensor.flatten().double())
        flat = torch.cat(parts)
        if flat.shape != self.truth.shape:
            raise ValueError(f"expected {self.truth.numel()} gradient elements, got {flat.numel()}")
        return _relative(flat, self.truth)


def make_gate(workload: Workload, *, first_order: bool) -> Gate:
    """Compute the truth, and what float32 makes of it.

    Raises:
        RuntimeError: MAML and first-order MAML lie within the bound of each other on this batch, so passing
            would prove nothing.
    """
    truths = {order: _flat_gradient(workload, first_order=order, dtype=torch.float64) for order in (False, True)}
    single = _flat_gradient(workload, first_order=first_order, dtype=torch.float32)
    gate = Gate(
        truth=truths[first_order],
        names=tuple(name for name, _ in workload.model().named_parameters()),
        float32_error=_relative(single.double(), truths[first_order]),
        order_gap=_relative(truths[True], truths[False]),
    )
    if gate.order_gap <= 3 * gate.bound:
        raise RuntimeError(
            f"{workload.name}: MAML and first-order MAML differ by {gate.order_gap:.1e}, the gate allows "
            f"{gate.bound:.1e}; choose another learning rate or batch"
        )
    return gate


def _flat_gradient(workload: Workload, *, first_order: bool, dtype: torch.dtype) -> Tensor:
    model = workload.model().to(dtype)
    support_x, support_y, query_x, query_y = (_cast(x, dtype) for x in workload.batch())
    loss: Callable[[Any, Any], Tensor] = LOSSES[workload.loss]
    phi = reference.adapt(
        model,
        inner_loss=loss,
        inner_optimizer=fastmeta.SGD(lr=workload.lr),
        steps=workload.steps,
        support_x=support_x,
        support_y=support_y,
        first_order=first_order,
    )
    losses = reference.task_losses(loss, reference.apply(model, phi, query_x), query_y)
    gradients = torch.autograd.grad(losses.mean(), list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _relative(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).norm() / truth.norm())
