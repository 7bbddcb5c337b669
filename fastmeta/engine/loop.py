"""The inner loop of all tasks at once, and its exact adjoint by forward-over-reverse.

Functions of tensors only: nothing here touches autograd, so `torch.compile(fullgraph=True)` takes a whole
second-order meta-step, and memory is the trajectory φ_0 … φ_K plus what `memory` says is kept of a step.

Notation (derivations: kernels/README.md): θ meta-parameters, φ [T, P] fast weights, λ [T, P] adjoint
∂(outer loss)/∂φ, σ the adjoint of the inner optimiser's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.optim import InnerOptimizer
from fastmeta.optim.base import State

from .objective import Context, Data, Evaluation, Objective


class Record(NamedTuple):
    """What an inner step computed on its way: its gradient, evaluation and the cotangents inside the plan."""

    # None where the optimiser's vjp does not read it: kept, it takes the cache (25 sinusoids: 6.0 ms for 5.6)
    g: Tensor | None
    at: Evaluation
    cotangents: list[Any]


class Trajectory(NamedTuple):
    """φ_k and the optimiser's state before every inner step; a step without a record is computed again from φ_k."""

    phis: list[Tensor]
    states: list[State]
    records: list[Record | None]


@dataclass(frozen=True)
class InnerLoop:
    """K steps of the inner optimiser on the support set of every task."""

    objective: Objective
    optimizer: InnerOptimizer
    steps: int
    batch: int | None  # samples a step, taken from the support set cyclically; None: all of them
    recompute: bool  # keep φ_k alone, not the step's activations

    def _batch(self, support: Data, k: int) -> Data:
        samples = (*support.inputs, *support.targets)[0].shape[1]
        if self.batch is None or self.batch == samples:
            return support
        start = k * self.batch % samples
        if start + self.batch <= samples:
            return support.take(slice(start, start + self.batch), 1)
        device = support.inputs[0].device
        return support.take((torch.arange(self.batch, device=device) + start) % samples, 1)

    def _gradient(self, phi: Tensor, k: int, support: Data, context: Context, *, keep: bool) -> tuple[Tensor, Record]:
        data = self._batch(support, k)
        at = self.objective.evaluate(phi, data, context.at(k, self.objective.plan))
        g, cotangents = self.objective.gradient(at, data, keep=keep)
        return g, Record(g if self.optimizer.vjp_reads_gradient else None, at, cotangents)

    def run(self, phi: Tensor, support: Data, context: Context, *, keep: bool) -> tuple[Tensor, Trajectory]:
        """φ_0 → φ_K, and the trajectory where `keep` asks for it."""
        state = self.optimizer.init(phi)
        trajectory = Trajectory([], [], [])
        for k in range(self.steps):
            g, record = self._gradient(phi, k, support, context, keep=keep and not self.recompute)
            if keep:
                trajectory.phis.append(phi)
                trajectory.states.append(state)
                trajectory.records.append(None if self.recompute else record)
            phi, state = self.optimizer.step(phi, g, state, k)
        return phi, trajectory

    def adjoint(self, trajectory: Trajectory, support: Data, context: Context, lam: Tensor) -> Tensor:
        """λ_K → λ_0, exactly, by the optimiser's vjp and the loss's Hessian at every φ_k. Uses the records up."""
        sigma = self.optimizer.init(lam)
        phis, states, records = trajectory
        for k in range(len(phis) - 1, -1, -1):
            record, records[k] = records[k], None
            if record is None:
                _, record = self._gradient(phis[k], k, support, context, keep=True)
            pulled = self.optimizer.vjp(phis[k], record.g, states[k], k, lam, sigma)
            data = self._batch(support, k)
            product = self.objective.hessian_product(record.at, data, record.cotangents, pulled.v)
            lam, sigma = pulled.direct.add(product, alpha=pulled.factor), pulled.state
        return lam
