"""The inner loop of all tasks at once, and one step of its exact adjoint by forward-over-reverse.

Memory is the trajectory φ_0 … φ_K plus what `memory` says is kept of a step.

Notation (derivations: kernels/README.md): θ meta-parameters, φ [T, P] fast weights, λ [T, P] adjoint
∂(outer loss)/∂φ, σ the adjoint of the inner rule's state, η what the rule learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.optim.base import InnerRule, Meta, State, reads_loss

from .clip import clipped, clipped_vjp
from .objective import Context, Data, Evaluation, Objective, Slopes, among_all, plus_shared
from .prior import Prior


class Record(NamedTuple):
    """What an inner step computed on its way: its gradient, evaluation and the cotangents inside the plan."""

    g: Tensor | None  # None where no vjp reads it
    at: Evaluation
    cotangents: list[Any]
    loss: Tensor | None = None  # [T], where the rule reads it


class Trajectory(NamedTuple):
    """Where an inner loop went, as far as it was kept.

    φ_k and the rule's state before every inner step; a step without a record is computed again from φ_k.
    """

    start: Tensor  # φ_0 [T, P]
    last: Tensor  # φ_K [T, P]
    state: State  # after the last step
    phis: list[Tensor]
    states: list[State]
    records: list[Record | None]


class Step(NamedTuple):
    """What an adjoint gives at one inner step."""

    lam: Tensor  # λ_k
    sigma: State
    slopes: Slopes | None  # of everything else that gets a gradient; its `phi` is not meant
    factor: float | Tensor  # of `slopes`
    start: Tensor | None  # a prior's share of ∂/∂φ_0
    meta: Meta  # ∂/∂η of this step


@dataclass(frozen=True)
class InnerLoop:
    """K steps of the inner rule on the support set of every task, from step `first` on."""

    objective: Objective
    rule: InnerRule  # its structure: step sizes and η come as `meta`
    steps: int
    batch: int | None  # samples a step, taken from the support set cyclically; None: all of them
    recompute: bool  # keep φ_k alone, not the step's activations
    clip_norm: float | None = None  # largest norm of a task's inner gradient
    prior: Prior | None = None  # added to the support loss
    first: int = 0

    @cached_property
    def _reads_loss(self) -> bool:
        return reads_loss(self.rule)

    def _batch(self, support: Data, k: int) -> Data:
        rows = support.rows(self.batch, k)
        return support if rows is None else support.take(rows, 1)

    def metas(self, meta: Meta) -> list[Meta]:
        """What every step that is run is handed of η."""
        steps = range(self.first, self.first + self.steps)
        if not self.rule.meta_by_step or not self.steps:
            return [meta] * self.steps
        rows = [m.unbind(0) for m in meta]
        return [tuple([row[k if len(row) > 1 else 0] for row in rows]) for k in steps]

    def gradient(
        self, phi: Tensor, start: Tensor, k: int, support: Data, context: Context, *, keep: bool, read: bool
    ) -> tuple[Tensor, Record]:
        """The inner gradient of step k as the rule takes it, and its record; `read` keeps the raw one in that."""
        data = self._batch(support, k)
        at = self.objective.evaluate(phi, data, context.at(k, self.objective.plan))
        slopes, cotangents = self.objective.gradient(at, data, keep=keep)
        g = slopes.phi if self.prior is None else slopes.phi + self.prior.gradient(phi, start)
        read = read or self.rule.reads_gradient or self.clip_norm is not None
        used = g if self.clip_norm is None else clipped(g, self.clip_norm)
        loss = self.objective.losses(at) if self._reads_loss else None
        return used, Record(g if read else None, at, cotangents, loss)

    def run(
        self, start: Tensor, state: State | None, support: Data, context: Context, meta: Meta, *, keep: str,
        wanted: bool,
    ) -> Trajectory:  # fmt: skip
        """φ_0 → φ_K.

        Args:
            start: φ_0 [T, P].
            state: the rule's at φ_0; None: that of new tasks.
            keep: "nothing", "gradients" (φ_k and inner gradients, no activations) or "trajectory".
            wanted: whether ∂/∂η is.
        """
        phi, state = start, self.rule.init(start) if state is None else state
        phis: list[Tensor] = []
        states: list[State] = []
        records: list[Record | None] = []
        whole = keep == "trajectory" and not self.recompute
        for k, handed in enumerate(self.metas(meta), self.first):
            g, record = self.gradient(phi, start, k, support, context, keep=whole, read=wanted)
            if keep != "nothing":
                phis.append(phi)
                states.append(state)
                if keep == "gradients":
                    record = record._replace(at=None, cotangents=[])
                records.append(None if keep == "trajectory" and self.recompute else record)
            phi, state = self.rule.step(phi, g, state, k, handed, **_given(record.loss))
        return Trajectory(start, phi, state, phis, states, records)

    def pull(
        self, run: Trajectory, at: int, support: Data, context: Context, handed: Meta, lam: Tensor, sigma: State,
        *, wanted: bool, hessian: bool,
    ) -> Step:  # fmt: skip
        """λ_{k+1}, σ_{k+1} → λ_k, σ_k at the `at`-th step that was run. Uses its record up.

        `handed` is what the step had of η. Without `hessian` inner gradients count as constants.
        """
        k, phi = self.first + at, run.phis[at]
        record, run.records[at] = run.records[at], None
        if record is None:
            _, record = self.gradient(phi, run.start, k, support, context, keep=hessian, read=wanted)
        g = record.g if record.g is None or self.clip_norm is None else clipped(record.g, self.clip_norm)
        pulled = self.rule.vjp(phi, g, run.states[at], k, handed, lam, sigma, wanted=wanted, **_given(record.loss))
        if not hessian:
            return Step(pulled.direct, pulled.state, None, 1.0, None, pulled.meta)
        v = pulled.v
        if self.clip_norm is not None:
            assert record.g is not None, "clipping reads the gradient"
            v = clipped_vjp(record.g, self.clip_norm, v)
        # before the Hessian product, which uses the tapes up
        of_loss = None if pulled.loss is None else self._through_loss(pulled.loss, record, phi, run.start, support, k)
        slopes = self.objective.hessian_product(record.at, self._batch(support, k), record.cotangents, v)
        product, of_start = slopes.phi, None
        if self.prior is not None:
            to_phi, to_start = self.prior.hessian_product(phi, run.start, v)
            product, of_start = product + to_phi, to_start * pulled.factor
        if isinstance(pulled.factor, Tensor):
            lam = torch.addcmul(pulled.direct, product, pulled.factor)
        else:
            lam = pulled.direct.add(product, alpha=pulled.factor)
        rest = self._spread(slopes, support, k) if self.objective.shared_or_data else None
        if of_loss is None:
            return Step(lam, pulled.state, rest, pulled.factor, of_start, pulled.meta)
        if rest is not None:
            rest = plus_shared(self._spread(of_loss, support, k), rest, pulled.factor)
        return Step(lam + of_loss.phi, pulled.state, rest, 1.0, of_start, pulled.meta)

    def _through_loss(
        self, cotangent: Tensor, record: Record, phi: Tensor, start: Tensor, support: Data, k: int
    ) -> Slopes:
        """The cotangent [T] of the support loss, without a prior, times its gradient by all that gets one."""
        if self.objective.shared_or_data:
            slopes, _ = self.objective.gradient(record.at, self._batch(support, k), keep=True, whole=True)
        else:
            assert record.g is not None, "a rule that reads the loss reads the gradient"
            g = record.g if self.prior is None else record.g - self.prior.gradient(phi, start)
            slopes = Slopes(g, None, ())

        def times(x: Tensor | None) -> Tensor | None:
            return None if x is None else x * cotangent.view(-1, *(1,) * (x.dim() - 1))

        return Slopes(slopes.phi * cotangent.unsqueeze(1), times(slopes.shared), tuple(map(times, slopes.data)))

    def _spread(self, slopes: Slopes, support: Data, k: int) -> Slopes:
        """Gradients of an inner batch's samples as those of the whole support set."""
        rows = support.rows(self.batch, k)
        if rows is None or not slopes.data:
            return slopes
        data = (*support.inputs, *support.targets)
        return slopes._replace(data=tuple(among_all(d, x, rows) for d, x in zip(slopes.data, data, strict=True)))


def _given(loss: Tensor | None) -> dict[str, Tensor]:
    """What a rule is handed beside the rest."""
    return {} if loss is None else {"loss": loss}
