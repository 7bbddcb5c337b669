"""What no fast weight reaches, such as a body below an adapted head, computed once and not in every inner step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from fastmeta.ops.base import total
from fastmeta.program.layout import Layout
from fastmeta.program.plan import Plan, Tape
from fastmeta.program.split import split

from .adjoint import Cotangents
from .objective import Context, Data, Objective


@dataclass(frozen=True)
class Stem:
    """An objective in two: `plan` runs once, `rest` at every φ_k on what comes of it.

    Gradients are exact: the stem's values are data to the rest, so that an adjoint gives their cotangents, summed over
    the steps, and one backward sweep takes those to ψ and to the samples.
    """

    plan: Plan
    rest: Objective
    shared: Layout  # of ψ

    @classmethod
    def of(cls, objective: Objective) -> Stem | None:
        """None where every op depends on fast weights or random numbers."""
        parts = split(objective.plan)
        if parts is None:
            return None
        shared = objective.shared
        if not parts.rest.shared_slots:
            shared = replace(shared, names=(), shapes=(), offsets=(), size=0, dtypes=())
        rest = replace(objective, plan=parts.rest, shared=shared)
        return cls(parts.stem, rest, objective.shared)


class Features(NamedTuple):
    """What the rest of an objective is evaluated on; all of it, where there is no stem."""

    stem: Stem | None
    data: Data  # a set of samples, and behind its inputs what the stem makes of them
    context: Context
    tape: Tape  # the stem's

    @classmethod
    def of(cls, stem: Stem | None, data: Data, context: Context, *, keep: bool) -> Features:
        """Runs the stem; `keep`: with the tape for `pulled`."""
        if stem is None:
            return cls(None, data, context, [])
        values, tape = stem.plan.forward([], context.shared, data.inputs, context.constants, context.keys, keep=keep)
        if not stem.rest.shared.size:
            context = context._replace(shared=())
        return cls(stem, Data((*data.inputs, *values), data.targets), context, tape)

    def pulled(self, found: Cotangents, of: Literal["support", "query"]) -> Cotangents:
        """Cotangents of the data and of ψ, with those of the stem's values taken through it. Consumes the tape."""
        slopes: tuple[Tensor | None, ...] = getattr(found, of)
        if self.stem is None or not slopes:
            return found
        plan, shared = self.stem.plan, self.stem.shared
        first, end = len(plan.input_slots), len(plan.input_slots) + len(plan.output_slots)
        inputs, values, psi = slopes[:first], slopes[first:end], found.shared
        if any(d is not None for d in values):
            gradients, _ = plan.backward(self.tape, values, whole=True)
            inputs = tuple(total(x, y) for x, y in zip(inputs, gradients.inputs, strict=True))
            psi = total(psi, shared.pack(gradients.shared, found.start.shape[0]) if shared.size else None)
        samples = (*inputs, *slopes[end:])
        if all(d is None for d in samples):
            samples = ()
        return found._replace(shared=psi, **{of: samples})
