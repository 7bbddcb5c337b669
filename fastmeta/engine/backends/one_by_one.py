"""The reference as a backend: one task at a time by PyTorch's own autograd, for any module, loss and rule.

It shares no code with the engine's sweeps: rows are taken apart into named parameters, and `fastmeta.reference` does
the rest. Results carry their graph, so that they can be differentiated again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from fastmeta.engine.adjoint import Adjoint, Cotangents, Displacement, Identity, Implicit, Unrolled
from fastmeta.engine.batch import TaskBatch, Tree, finite_tasks
from fastmeta.engine.meta_step import MetaGradient, MetaInputs, TaskResults, finite_count, mean_finite
from fastmeta.engine.objective import Context, Data
from fastmeta.engine.options import Kind, Options
from fastmeta.engine.prior import Prior
from fastmeta.implicit import Solver
from fastmeta.internals import pytree
from fastmeta.optim.adam import Adam
from fastmeta.optim.base import State, reads_loss
from fastmeta.optim.sgd import SGD
from fastmeta.program.layout import Layout
from fastmeta.program.program import Program
from fastmeta.reference import Learner, Outer, Variant, run_tasks, task_outputs
from fastmeta.stateless import stacked

from .base import Adapted, Pullback

P = ParamSpec("P")
R = TypeVar("R")


def _explained(method: Callable[Concatenate[OneByOne, P], R]) -> Callable[Concatenate[OneByOne, P], R]:
    """`method`, whose errors say why a program ran here that was meant for other backends."""

    @functools.wraps(method)
    def call(self: OneByOne, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            if self.why and hasattr(error, "add_note"):
                error.add_note(
                    f"fastmeta ran the model and losses task by task under plain autograd, because: {self.why}. A "
                    "plain loop over the tasks raises this error as well: mend it there"
                )
            raise

    return call


class OneByOne:
    """`fastmeta.reference` behind the interface of the other backends.

    Args:
        module: the user's.
        program: says which parameters are fast; nothing is traced.
        options: the learner's.
        batch: of the shapes and trees to come.
        kind: what is asked for beside them.
        why: the reason for this backend, where it was not asked for; for explain().
    """

    records: ClassVar[bool] = True
    chunk: int | None = 1
    runs_by = "autograd through the unrolled loop"

    def __init__(
        self, module: nn.Module, program: Program, options: Options, batch: TaskBatch, kind: Kind, why: str = ""
    ) -> None:
        _check_adjoint(options.adjoint)
        self._module, self._layout, self._options, self._kind = module, program.layout, options, kind
        self.why = why
        self._penalty = _penalty(program.layout, options.prior)
        self._constant = options.adjoint == Unrolled(hessian=False)
        self._trees = TaskBatch(*pytree.tree_map(lambda leaf: None if leaf is None else True, tuple(_fields(batch))))
        self._keys = torch.zeros(batch.tasks, dtype=torch.int64, device=program.layout.device)
        self._output_spec: Any = None

    def keys(self) -> Tensor:
        """None are drawn here: a module draws its random numbers itself."""
        return self._keys

    def check_labels(self, support: Data, query: Data | None) -> None:
        """PyTorch's losses do."""

    def output_tree(self, outputs: Sequence[Tensor]) -> Any:
        """Outputs in the structure that the module returned last."""
        return pytree.tree_unflatten(list(outputs), self._output_spec)

    @_explained
    def meta_step(
        self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool, shares: bool = True
    ) -> MetaGradient:
        """Losses [T] with their graph, outputs, and which tasks stayed finite."""
        weights = [0.0] * self._kind.steps + [1.0] if at.weights is None else at.weights.tolist()
        outer = Outer(
            self._options.outer_loss, self._filled(self._trees.query_x, query.inputs),
            self._filled(self._trees.query_y, query.targets), weights, self._options.bn_statistics,
            self._options.query_batch_size,
        )  # fmt: skip
        learners = self._run(at, support, outer)
        losses = [cast("Tensor", learner.loss) for learner in learners]
        if isinstance(self._options.adjoint, Displacement) and keep:
            losses = [x.detach() + _pull(learner) for x, learner in zip(losses, learners, strict=True)]
        total = torch.stack(losses)
        with torch.no_grad():
            leaves, self._output_spec = pytree.tree_flatten(stacked([learner.outputs for learner in learners]))
            # as in every backend: the inner loop's end, not its start, says whether a task diverged
            finite = finite_tasks(*support.inputs, _ends(learners, losses))
        every = keep and all(finite.tolist())
        if keep and not every:
            total = torch.stack(_of_finite(losses, finite))
        if keep and not total.requires_grad:
            total = total + _zero(at, context)  # what no task's results depend on has a gradient of zero
        mean = total.mean() if every else mean_finite(total, finite, finite_count(finite))
        ends = self._last(learners) if self._kind.ends else ()
        notes = self._notes(learners, losses) if keep else ()
        return MetaGradient(mean, None, TaskResults(total, leaves, finite, None, ends, notes))

    def _notes(self, learners: list[Learner], losses: list[Tensor]) -> tuple[Tensor, ...]:
        """How well implicit derivatives are solved for: relative residuals, and norms of the gradients at φ_K, [T]."""
        if not isinstance(self._options.adjoint, Implicit):
            return ()
        solvers = [learner.solver for learner in learners]
        if not self._kind.steps:
            zero = torch.stack(losses).detach() * 0.0
            return zero, zero * torch.nan
        for solver, loss in zip(solvers, losses, strict=True):
            cast("Solver", solver).look(loss)
        return tuple(
            torch.stack([getattr(solver, name) for solver in solvers]) for name in ("residual", "stationarity")
        )

    def _run(self, at: MetaInputs, support: Data, outer: Outer | None) -> list[Learner]:
        x, y = self._filled(self._trees.support_x, support.inputs), self._filled(self._trees.support_y, support.targets)
        options, adjoint = self._options, self._options.adjoint
        return run_tasks(
            self._module, inner_loss=options.inner_loss, inner_optimizer=options.inner_optimizer,
            steps=self._kind.steps, support_x=x, support_y=y, inner_batch_size=options.inner_batch_size,
            first_order=isinstance(adjoint, Identity | Displacement), variant=self._variant(at), outer=outer,
        )  # fmt: skip

    def _variant(self, at: MetaInputs) -> Variant:
        layout, rule = self._layout, self._options.rule
        own = isinstance(at.start, Tensor) and at.start.dim() == 2
        if not isinstance(at.start, Tensor):
            start = dict(zip(layout.names, at.start, strict=True))
        else:
            named = layout.named(at.start if own else at.start.unsqueeze(0))
            start = named if own else {name: p[0] for name, p in named.items()}
        known = type(rule) in (SGD, Adam)
        return Variant(
            start=start, own_start=own, rate=_rate(layout, at.meta) if known else None,
            update=None if known else _by_rows(layout, self._options, at), clip_norm=self._options.inner_clip_norm,
            penalty=self._penalty, implicit=_implicit(self._options.adjoint), constant_gradients=self._constant,
            first=self._kind.first, states=_named_states(layout, at.state, known=known),
        )  # fmt: skip

    def _last(self, learners: Sequence[Learner]) -> tuple[Tensor, ...]:
        """φ_K and the rule's state, without their graph."""
        layout = self._layout
        phi = torch.stack([layout.row(layout.take(learner.phi)) for learner in learners])
        state = _state_rows(layout, [learner.state for learner in learners])
        return tuple(x.detach() for x in (phi, *state))

    @staticmethod
    def _filled(tree: Tree, leaves: Sequence[Tensor]) -> Tree:
        if tree is True or tree is None:
            return leaves[0] if tree else None
        rest = iter(leaves)
        return pytree.tree_map(lambda leaf: None if leaf is None else next(rest), tree)

    @_explained
    def adapt(self, at: MetaInputs, support: Data, context: Context, *, keep: bool) -> Adapted:
        """φ_K of every task with its graph."""
        learners, layout = self._run(at, support, None), self._layout
        rows = [layout.row(layout.take(learner.phi)) for learner in learners]
        phi = torch.stack(rows)
        if keep:
            phi = torch.stack(_of_finite(rows, finite_tasks(support.inputs, phi)))
            if not phi.requires_grad:
                phi = phi + _zero(at, context)
        return Adapted(phi, _state_rows(layout, [learner.state for learner in learners]), _recorded)

    @_explained
    def outputs(
        self, phi: Tensor, support: Data, inputs: tuple[Tensor, ...], context: Context
    ) -> tuple[list[Tensor], Pullback]:
        """Query outputs with their graph."""
        by_support = self._options.bn_statistics == "support"
        outputs = task_outputs(
            self._module, self._layout.named(phi), self._filled(self._trees.query_x, inputs),
            support_x=self._filled(self._trees.support_x, support.inputs) if by_support else None,
            # as in a meta-step: what all tasks share must not meet a diverged task's 0 · NaN
            differentiable=finite_tasks(support.inputs, phi).tolist() if torch.is_grad_enabled() else None,
            inner_step=max(self._kind.first + self._kind.steps - 1, 0),
        )  # fmt: skip
        leaves, self._output_spec = pytree.tree_flatten(stacked(outputs))
        return leaves, _recorded


def _recorded(*_: Any) -> Cotangents:
    raise AssertionError("the reference's results are differentiated by PyTorch")


def _fields(batch: TaskBatch) -> tuple[Tree, ...]:
    return batch.support_x, batch.support_y, batch.query_x, batch.query_y


def _ends(learners: Sequence[Learner], losses: Sequence[Tensor]) -> Tensor:
    """φ_K and query loss of every task, [T, P + 1]."""
    parts = [x.flatten() for learner, loss in zip(learners, losses, strict=True) for x in (*learner.phi.values(), loss)]
    return torch.cat(parts).view(len(learners), -1)


def _of_finite(values: list[Tensor], finite: Tensor) -> list[Tensor]:
    """A task that diverged stays out of the graph: its 0 · NaN would reach the others' gradients."""
    return [x if kept else x.detach() for x, kept in zip(values, finite.tolist(), strict=True)]


def _pull(learner: Learner) -> Tensor:
    """Zero whose gradient with respect to θ is θ − φ_K of a task."""
    terms = []
    for name, fast in learner.phi.items():
        start = learner.start[name]
        # of complex numbers the real part of the product with the conjugate
        term = (start - start.detach()) * (start - fast).detach().conj()
        terms.append((term.real if term.is_complex() else term).sum())
    return torch.stack(terms).sum()


def _zero(at: MetaInputs, context: Context) -> Tensor:
    """Zero with a graph, where no task's results have one."""
    start = [at.start] if isinstance(at.start, Tensor) else at.start
    known = [x for x in (*start, *context.shared, *at.meta) if x.requires_grad]
    zeros = [((x.real if x.is_complex() else x) * 0.0).sum() for x in known]
    return torch.stack(zeros).sum() if zeros else context.keys.new_zeros((), dtype=torch.float)


def _rate(layout: Layout, meta: tuple[Tensor, ...]) -> Callable[[str, int], Any]:
    """The step size of a parameter in step k out of rates [K, P] or what broadcasts to it."""
    (rates,) = meta
    rates = rates.real if rates.is_complex() else rates
    if rates.shape[1] == 1 and not rates.requires_grad:
        numbers = rates.flatten().tolist()  # nothing to differentiate: a number costs less than a tensor
        return lambda name, k: numbers[k if len(numbers) > 1 else 0]
    where = {
        name: (shape, at, torch.empty((), dtype=dtype).real.dtype)
        for name, shape, at, dtype in zip(layout.names, layout.shapes, layout.offsets, layout.dtypes, strict=True)
    }

    def rate(name: str, k: int) -> Tensor:
        row = rates[k if rates.shape[0] > 1 else 0]
        shape, at, dtype = where[name]
        return (row[0] if row.shape[0] == 1 else row[at : at + shape.numel()].view(shape)).to(dtype)

    return rate


def _by_rows(layout: Layout, options: Options, at: MetaInputs) -> Any:
    """The user's own rule, which takes rows, as an update of named parameters."""
    rule = options.rule
    if layout.dtype.is_complex:
        raise ValueError(
            f"{type(rule).__name__} steps rows of real numbers, and the module has complex parameters; use "
            "fastmeta.SGD or fastmeta.Adam"
        )

    def update(phi: Any, grads: Any, state: Any, k: int, loss: Tensor) -> Any:
        row, g = (layout.pack([x.unsqueeze(0) for x in layout.take(named)], 1) for named in (phi, grads))
        meta = at.meta
        if rule.meta_by_step:
            meta = tuple(m[k if m.shape[0] > 1 else 0] for m in meta)
        given = {"loss": loss.unsqueeze(0)} if reads_loss(rule) else {}
        row, state = rule.step(row, g, rule.init(row) if state is None else state, k, meta, **given)
        return {name: p[0] for name, p in layout.named(row).items()}, state

    return update


def _named_states(layout: Layout, state: State | None, *, known: bool) -> list[Any] | None:
    """The rule's state of every task as the reference has it."""
    if state is None:
        return None
    tasks = range(state[0].shape[0])
    if not known:
        return [tuple(s[t : t + 1] for s in state) for t in tasks]
    rows = [layout.named(s) for s in state]
    return [{name: tuple(row[name][t] for row in rows) for name in layout.names} for t in tasks]


def _state_rows(layout: Layout, states: Sequence[Any]) -> State:
    """And back, [T, ...] each."""
    first = states[0]
    if first is None or (isinstance(first, dict) and not any(first.values())):
        return ()
    if not isinstance(first, dict):
        return tuple(torch.cat(parts) for parts in zip(*states, strict=True))
    count = len(next(iter(first.values())))
    return tuple(
        layout.pack([torch.stack([state[name][i] for state in states]) for name in layout.names], len(states))
        for i in range(count)
    )


def _check_adjoint(adjoint: Adjoint) -> None:
    if not isinstance(adjoint, Unrolled | Identity | Displacement | Implicit):
        raise ValueError(
            f'backend="reference" does not know {adjoint}, of fastmeta.engine.adjoint it has all others; use '
            'backend="torch"'
        )


def _implicit(adjoint: Adjoint) -> tuple[float, int] | None:
    return (adjoint.strength, adjoint.steps) if isinstance(adjoint, Implicit) else None


def _penalty(layout: Layout, prior: Prior | None) -> Callable[[Any, Any], Tensor] | None:
    """The prior of one task by names, whatever its gradient says of itself."""
    if prior is None:
        return None
    value = getattr(prior, "value", None)
    if value is None:
        raise ValueError(
            f'backend="reference" needs a prior that has a method value(phi, start), got {prior}; use backend="torch"'
        )

    def penalty(phi: Any, start: Any) -> Tensor:
        return value(*(layout.row(layout.take(named)).unsqueeze(0) for named in (phi, start)))[0]

    return penalty
