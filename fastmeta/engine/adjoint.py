"""How what the query set says of φ_K reaches φ_0, ψ, η and the data: one class a way.

λ [T, P] is the adjoint ∂(outer loss)/∂φ; ψ are parameters that all tasks share, η what the inner rule learns. Every
cotangent is each task's own, so that a task that diverged can be left out afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fastmeta.ops.base import total
from fastmeta.optim.base import Meta, State, check_number

from .loop import InnerLoop, Trajectory
from .objective import Context, Data, Slopes, plus_shared

Keeps = Literal["nothing", "gradients", "trajectory"]


class Cotangents(NamedTuple):
    """Of all that a meta-step is differentiated by, each task's own; None is zero, or nothing of the kind is there."""

    start: Tensor  # of φ_0, [T, P]
    shared: Tensor | None = None  # of ψ, [T, P of ψ]
    meta: tuple[Tensor, ...] = ()  # of η, [T, *shape]
    support: tuple[Tensor | None, ...] = ()  # of support inputs, then targets, [T, N, ...]
    query: tuple[Tensor | None, ...] = ()  # of query inputs, then targets, [T, M, ...]
    state: State = ()  # of the rule's state at φ_0
    notes: tuple[Tensor, ...] = ()  # [T] each: what an adjoint says of its own accuracy; no cotangents

    @property
    def start_alone(self) -> bool:
        """Whether there is nothing but φ_0's: the usual case, in which a small meta-step counts every microsecond."""
        return not (self[2] or self[3] or self[4] or self[5]) and self[1] is None


class Outer(Protocol):
    """The query pass: its gradient at φ_k, times the weight of step k; None where that weight is zero."""

    def __call__(self, k: int, phi: Tensor) -> Cotangents | None:
        """Asked at every k from K down to 0."""
        ...


class Adjoint(ABC):
    """One way; frozen and hashable, as it is part of a plan's key."""

    keeps: ClassVar[Keeps] = "nothing"
    """What the inner loop must leave for it: nothing, the fast weights and gradients of every step, or all of it."""

    @property
    def through_gradients(self) -> bool:
        """Whether it differentiates inner gradients, so that what they read of ψ and of the data gets cotangents."""
        return True

    @property
    def kernels(self) -> Literal["exact", "first", "reptile"] | None:
        """Which of the Triton kernels' adjoints it is; None: the torch backend alone runs it."""
        return None

    @abstractmethod
    def pull(
        self, loop: InnerLoop, run: Trajectory, support: Data, context: Context, meta: Meta, outer: Outer,
        *, sigma: State | None = None, wanted: bool = False,
    ) -> Cotangents:  # fmt: skip
        """Cotangents at φ_0 from those of the query pass; `sigma` is that of the last state, None for zero."""
        ...


def _through_steps(
    loop: InnerLoop, run: Trajectory, support: Data, context: Context, meta: Meta, outer: Outer,
    *, sigma: State | None, wanted: bool, hessian: bool, identity: bool = False,
) -> Cotangents:  # fmt: skip
    """The recursion through every step; `identity` takes ∂φ_{k+1}/∂φ_k for one."""
    steps = len(run.phis)
    found = outer(steps, run.last)
    lam = torch.zeros_like(run.last) if found is None else found.start
    sigma = loop.rule.init(lam) if sigma is None else sigma
    slopes = Slopes(lam, None, ())
    of_start: Tensor | None = None
    rows: list[Meta] = []
    handed = loop.metas(meta)
    for at in range(steps - 1, -1, -1):
        step = loop.pull(run, at, support, context, handed[at], lam, sigma, wanted=wanted, hessian=hessian)
        lam, sigma = lam if identity else step.lam, step.sigma
        if rows and not loop.rule.meta_by_step:  # their sum alone is asked for, and each may be large
            rows = [tuple(map(torch.add, rows[0], step.meta))]
        else:
            rows.append(step.meta)
        of_start = total(of_start, step.start)
        if step.slopes is not None:
            slopes = plus_shared(slopes, step.slopes, step.factor)
        here = outer(at, run.phis[at])
        if here is not None:
            lam = lam + here.start
            found = here if found is None else joined(found, here, lam)
    start = lam if of_start is None else lam + of_start
    mine = Cotangents(start, slopes.shared, _of_meta(loop, meta, rows[::-1]), slopes.data, (), sigma)
    return mine if found is None or found.start_alone else joined(mine, found, start)


def _of_meta(loop: InnerLoop, meta: Meta, rows: list[Meta]) -> tuple[Tensor, ...]:
    """∂/∂η, [T, *shape] each, out of that of every step, in order; () where it was not asked for."""
    if not rows or not rows[0]:
        return ()
    found: list[Tensor] = []
    for i, m in enumerate(meta):
        terms = [row[i] for row in rows]
        if not loop.rule.meta_by_step:
            found.append(torch.stack(terms).sum(0))
        elif m.shape[0] == 1:
            found.append(torch.stack(terms).sum(0).unsqueeze(1))
        else:
            d = torch.stack(terms, 1)
            # steps before `first`, of an inner loop that goes on
            found.append(torch.nn.functional.pad(d, (0, 0, loop.first, 0)) if loop.first else d)
    return tuple(found)


def joined(a: Cotangents, b: Cotangents, start: Tensor) -> Cotangents:
    """The sum of two, but for `start`, which is that of φ_0."""

    def plus(xs: tuple[Tensor | None, ...], ys: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        if not xs or not ys:
            return xs or ys
        # a query pass knows the support set's inputs alone, not its targets
        return tuple(total(x, y) for x, y in zip_longest(xs, ys))

    meta = tuple(x for x in plus(a.meta, b.meta) if x is not None)
    state = tuple(x for x in plus(a.state, b.state) if x is not None)
    return Cotangents(start, total(a.shared, b.shared), meta, plus(a.support, b.support), plus(a.query, b.query), state)


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """Through every inner step. `hessian=False` goes through the rule, but takes inner gradients for constants, as
    learned optimisers do (Andrychowicz et al. 2016, section 2.1)."""

    keeps: ClassVar[Keeps] = "trajectory"
    hessian: bool = True

    @property
    def through_gradients(self) -> bool:
        """Where it has the Hessian."""
        return self.hessian

    @property
    def kernels(self) -> Literal["exact"] | None:
        """They have the exact one."""
        return "exact" if self.hessian else None

    def pull(
        self, loop: InnerLoop, run: Trajectory, support: Data, context: Context, meta: Meta, outer: Outer,
        *, sigma: State | None = None, wanted: bool = False,
    ) -> Cotangents:  # fmt: skip
        """λ_k = a_φ + H(φ_k) a_g + w_k ∇L_q(φ_k), with the rule's vjp (a_φ, a_g)."""
        return _through_steps(
            loop, run, support, context, meta, outer, sigma=sigma, wanted=wanted, hessian=self.hessian
        )


@dataclass(frozen=True)
class Identity(Adjoint):
    """First-order MAML: ∂φ_k/∂φ_0 is one (Finn et al. 2017, section 5.2). Learned rates get their exact gradient under
    that."""

    @property
    def through_gradients(self) -> bool:
        """They are constants."""
        return False

    @property
    def kernels(self) -> Literal["first"]:
        """They have it."""
        return "first"

    def pull(
        self, loop: InnerLoop, run: Trajectory, support: Data, context: Context, meta: Meta, outer: Outer,
        *, sigma: State | None = None, wanted: bool = False,
    ) -> Cotangents:  # fmt: skip
        """λ_0 = Σ_k w_k ∇L_q(φ_k)."""
        if run.phis:
            return _through_steps(
                loop, run, support, context, meta, outer, sigma=sigma, wanted=wanted, hessian=False, identity=True
            )
        found = outer(loop.steps, run.last)
        if found is None:
            return Cotangents(torch.zeros_like(run.last), state=sigma or ())
        return found._replace(state=sigma or ())


@dataclass(frozen=True)
class Displacement(Adjoint):
    """Reptile: θ − φ_K stands for the meta-gradient (Nichol et al. 2018). Asks no query set."""

    @property
    def through_gradients(self) -> bool:
        """They are constants."""
        return False

    @property
    def kernels(self) -> Literal["reptile"]:
        """They have it."""
        return "reptile"

    def pull(
        self, loop: InnerLoop, run: Trajectory, support: Data, context: Context, meta: Meta, outer: Outer,
        *, sigma: State | None = None, wanted: bool = False,
    ) -> Cotangents:  # fmt: skip
        """φ_0 − φ_K."""
        return Cotangents(run.start - run.last, state=sigma or ())


@dataclass(frozen=True)
class Implicit(Adjoint):
    """iMAML (Rajeswaran et al. 2019, equation 6): x of (I + H(φ_K) / strength) x = λ_K, by conjugate gradients.

    All tasks are solved at once, each with step sizes of its own; H is that of the support loss at φ_K, without the
    proximal term `Proximal(strength)` of the inner loop. It is evaluated there once, and every product sweeps the same
    tape. Without inner steps φ_K is φ_0 and nothing is solved.

    Notes: the relative residual ‖λ_K − (I + H / strength) x‖ / ‖λ_K‖, and the norm of the gradient of support loss and
    proximal term at φ_K, which is zero where the inner loop has converged, as the equation assumes.

    Args:
        strength: λ of the paper, that of the proximal term; must be positive.
        steps: of conjugate gradients, from zero.
    """

    strength: float
    steps: int = 5

    def __post_init__(self) -> None:
        check_number("Implicit.strength", self.strength)
        if self.strength == 0:
            raise ValueError("Implicit.strength must be positive, got 0: the system is I + H / strength")
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"Implicit.steps must be an integer of at least 1, got {self.steps!r}")

    def pull(
        self, loop: InnerLoop, run: Trajectory, support: Data, context: Context, meta: Meta, outer: Outer,
        *, sigma: State | None = None, wanted: bool = False,
    ) -> Cotangents:  # fmt: skip
        """x is φ_0's cotangent; ψ and the data, which inner gradients read, get −∂²L_s/∂ψ∂φ x / strength as well."""
        found = outer(loop.steps, run.last)
        assert found is not None, "the query loss at φ_K has a weight"
        if not loop.steps:
            zero = found.start[:, :0].sum(1)
            return found._replace(state=sigma or (), notes=(zero, zero + torch.nan))
        k = loop.first + loop.steps
        g, record = loop.gradient(run.last, run.start, k, support, context, keep=True, read=True)
        assert record.at is not None

        def product(v: Tensor) -> Slopes:
            # sweeps drop what they have used from these lists, not from the record's
            at = record.at._replace(tape=list(record.at.tape))
            return loop.objective.hessian_product(at, support, list(record.cotangents), v)

        def system(v: Tensor) -> Tensor:
            return v.add(product(v).phi, alpha=1.0 / self.strength)

        x, residual = conjugate_gradients(system, found.start, self.steps)
        if loop.objective.shared_or_data:
            mixed = plus_shared(Slopes(x, None, ()), product(x), -1.0 / self.strength)
            found = joined(found, Cotangents(x, mixed.shared, (), mixed.data), x)
        stationarity = (g if record.g is None else record.g).square().sum(1).sqrt()
        return found._replace(start=x, state=sigma or (), notes=(residual, stationarity))


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """x [T, P] of A x = b for symmetric positive A = `product`, every row by itself, and ‖b − A x‖ / ‖b‖ [T].

    A row whose residual has come to the rounding of ‖b‖ stays. The residual is the one that the recursion carries.
    """
    x, r, p = torch.zeros_like(b), b, b
    square = first = (b * b).sum(1, keepdim=True)
    solved = first * torch.finfo(b.dtype).eps ** 2
    for _ in range(steps):
        ap = product(p)
        curvature = (p * ap).sum(1, keepdim=True)
        stays = (square <= solved) | (curvature == 0)  # of a NaN neither: it must reach x
        alpha = torch.where(stays, 0.0, square / torch.where(stays, 1.0, curvature))
        x, r = x + alpha * p, r - alpha * ap
        new = (r * r).sum(1, keepdim=True)
        p = torch.where(stays, p, r + new / torch.where(stays, 1.0, square) * p)
        square = new
    left = torch.where(first == 0, 0.0, square / torch.where(first == 0, 1.0, first))
    return x, left.sqrt().squeeze(1)
