"""No speed without correctness: a peer's meta-gradient against float64 truth, on the batch it is timed on.

A meta-gradient in lower precision has an error of its own, set by the workload (kinks of ReLU and max-pool), not by
the peer. So the bound is adaptive: twice the error that `fastmeta.reference`, plain PyTorch, makes on the same device
at the same precision, plus SLACK. All errors are ‖g − truth‖ / ‖truth‖ over all parameters. The gate also knows how far
the algorithms lie apart: a peer that drops the second-order term must not pass. Algorithms with peers of their own
bring their plain form and their likely mistake (`algorithms/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastmeta
from fastmeta import reference
from fastmeta.tasks import Episodes

from .algorithms import REGISTRY, problem_of
from .device import products
from .names import ALGORITHMS
from .networks import LOSSES
from .workloads import Workload

SLACK = 1e-4


class NoGate(Exception):
    """Passing would prove nothing on this batch."""


@dataclass(frozen=True)
class Gate:
    """Truth for one workload and algorithm.

    Attributes:
        truth: meta-gradient in float64, flat, parameters in the model's order, on the CPU.
        names: the parameters' names in that order.
        rounding_error: error of the reference at the precision of the measurement.
        gap: ‖g' − g‖ / ‖g‖ in float64 of the other algorithm that lies nearest.
    """

    truth: Tensor
    names: tuple[str, ...]
    rounding_error: float
    gap: float

    @property
    def bound(self) -> float:
        """The largest error that passes."""
        return 2 * self.rounding_error + SLACK

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
            parts.append(tensor.detach().cpu().flatten().double())
        flat = torch.cat(parts)
        if flat.shape != self.truth.shape:
            raise ValueError(f"expected {self.truth.numel()} gradient elements, got {flat.numel()}")
        return relative(flat, self.truth)


def make_gate(workload: Workload, *, algorithm: str = "maml", device: str = "cpu", precision: str = "float32") -> Gate:
    """Compute the truth, and what the precision makes of it.

    Raises:
        NoGate: another algorithm's gradient lies within the bound.
    """
    workload = workload.unrepeated()
    if algorithm in REGISTRY:
        return _checked(_gate_of(workload, algorithm, device, precision))
    truths = {a: gradient(workload, a, device, torch.float64) for a in ALGORITHMS}
    truth = truths[algorithm]
    with products(device, precision):
        rounded = gradient(workload, algorithm, device, torch.float32)
    return _checked(Gate(
        truth=truth,
        names=tuple(name for name, p in workload.model().named_parameters() if p.requires_grad),
        rounding_error=relative(rounded, truth),
        gap=min(relative(other, truth) for name, other in truths.items() if name != algorithm),
    ))  # fmt: skip


def _gate_of(workload: Workload, algorithm: str, device: str, precision: str) -> Gate:
    """The gate of an algorithm in `algorithms/`: its plain form, and its mistake."""
    entry = REGISTRY[algorithm]
    problem = problem_of(workload, algorithm=algorithm, device=device)
    model = problem_of(workload, algorithm=algorithm, device=device).model.double()
    double = replace(problem, model=model, batch=Episodes(*(_cast(x, torch.float64) for x in problem.batch)))
    found = {name: g for name, g in entry.plain(double)().items() if g is not None}
    with products(device, precision):
        rounded = entry.plain(problem)()
    truth, wrong, rounded = (_flat(g, tuple(found)) for g in (found, entry.mistaken(double)(), rounded))
    return Gate(truth, tuple(found), rounding_error=relative(rounded, truth), gap=relative(wrong, truth))


def _flat(gradient: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    """A gradient as a row, in float64 on the CPU; every name must have one."""
    return torch.cat([gradient[name].detach().cpu().flatten().double() for name in names])


def _checked(gate: Gate) -> Gate:
    """The gate, if passing it proves something."""
    if gate.gap <= 3 * gate.bound:
        raise NoGate(
            f"another algorithm's gradient differs by {gate.gap:.1e}, and rounding allows {gate.bound:.1e}: "
            "nothing would be proved"
        )
    return gate


def gradient(workload: Workload, algorithm: str, device: str, dtype: torch.dtype) -> Tensor:
    """Meta-gradient of the reference, computed in `dtype`; flat, float64, on the CPU."""
    model = workload.model().to(device, dtype)
    support_x, support_y, query_x, query_y = (_cast(x.to(device), dtype) for x in workload.batch())
    loss: Callable[[Any, Any], Tensor] = LOSSES[workload.loss]
    phi = reference.adapt(
        model,
        inner_loss=loss,
        inner_optimizer=fastmeta.SGD(lr=workload.lr),
        steps=workload.steps,
        support_x=support_x,
        support_y=support_y,
        first_order=algorithm != "maml",
    )
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if algorithm == "reptile":
        gradients = [(p - phi[name].mean(0)).detach() for name, p in theta.items()]
    else:
        losses = reference.task_losses(loss, reference.apply(model, phi, query_x), query_y)
        gradients = torch.autograd.grad(losses.mean(), list(theta.values()))
    return torch.cat([g.flatten() for g in gradients]).double().cpu()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def relative(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖ / ‖truth‖."""
    return float((value - truth).norm() / truth.norm())
