"""One call on one meta-batch: the user's trees in, the backend's functions with everything they need out.

A session binds a batch to the engine planned for its shapes. Plans are made once per (shapes, train/eval mode,
trainable parameters) and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .autograd import no_autocast
from .backends import Backend, TorchBackend, choose
from .batch import TaskBatch, warn_running_statistics
from .engine import Context, Data, Engine, InnerLoop, MetaGradient, Objective
from .layout import Layout
from .losses import check_labels_of, loss_op
from .ops.opaque import Opaque
from .plan import Plan
from .program import Program, leaves_of
from .survey import Survey, survey

if TYPE_CHECKING:
    from .algorithms import MetaLearner

Tree = Any

_MOST_PROGRAMS = 16  # kept of a module whose state goes on changing


@dataclass(frozen=True)
class Session:
    """A meta-batch on its way through a backend."""

    learner: MetaLearner
    state: Survey
    program: Program
    backend: Backend
    batch: TaskBatch
    context: Context
    steps: int

    @property
    def layout(self) -> Layout:
        return self.program.layout

    @property
    def params(self) -> list[nn.Parameter]:
        """θ in the layout's order."""
        return self.state.trainable

    def _support(self) -> Data:
        return Data(leaves_of(self.batch.support_x), leaves_of(self.batch.support_y))

    def _query_inputs(self) -> tuple[Tensor, ...]:
        query = leaves_of(self.batch.query_x)
        if self.backend.engine.outer.skip:  # the support set in front lends its batch-norm statistics
            return tuple(torch.cat(pair, 1) for pair in zip(leaves_of(self.batch.support_x), query, strict=True))
        return query

    def _check_labels(self) -> None:
        plan = self.backend.engine.loop.objective.plan
        check_labels_of(
            "support_y", self.learner.inner_loss, plan, self.batch.support_y, batch=self.learner.inner_batch_size
        )

    def meta_step(self, *, keep: bool) -> MetaGradient:
        self._check_labels()
        outer = self.backend.engine.outer
        check_labels_of("query_y", self.learner.outer_loss, outer.plan, self.batch.query_y, skip=outer.skip)
        query = Data(self._query_inputs(), leaves_of(self.batch.query_y))
        with torch.no_grad(), self.numerics():
            return self.backend.meta_step(self.params, self._support(), query, self.context, keep=keep)

    def adapt(self, *, keep: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        self._check_labels()
        with torch.no_grad(), self.numerics():
            phi, adjoint = self.backend.adapt(self.params, self._support(), self.context, keep=keep)
        return phi, self._in_numerics(adjoint)

    def on(self, query_x: Tree) -> Session:
        """The same tasks with query inputs, planned for their shapes."""
        batch = replace(self.batch, query_x=query_x, query_y=None)
        sessions = self.learner._sessions
        backend = sessions.backend(self.learner, self.state, batch, self.steps, with_loss=False)
        return replace(self, batch=batch, backend=backend)

    def apply(self, phi: Tensor) -> tuple[list[Tensor], Callable[[Sequence[Tensor | None]], Tensor]]:
        with torch.no_grad(), self.numerics():
            outputs, pullback = self.backend.apply(
                phi, self._query_inputs(), self.context.at(self.steps, self.backend.engine.outer.plan)
            )
        return outputs, self._in_numerics(pullback)

    def output_tree(self, outputs: Sequence[Tensor]) -> Tree:
        return self.backend.engine.outer.plan.output_tree(outputs)

    def _in_numerics(self, function: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """A sweep that autograd calls later, perhaps from under an autocast of the user's."""

        def run(cotangent: Any) -> Tensor:
            with self.numerics():
                return function(cotangent)

        return run

    @contextmanager
    def numerics(self) -> Iterator[None]:
        """Precision is the learner's, whatever autocast surrounds the call."""
        device = self.layout.device.type
        with no_autocast(device):
            if device != "cuda":
                yield
                return
            backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
            before = [backend.allow_tf32 for backend in backends]
            for backend in backends:
                setattr(backend, "allow_tf32", self.learner.precision == "tf32")  # noqa: B010  typed as a plain module
            try:
                yield
            finally:
                for backend, value in zip(backends, before, strict=True):
                    setattr(backend, "allow_tf32", value)  # noqa: B010


class Sessions:
    """Programs of one meta-learner, by the state of its module, each with its backends, by what they were made for."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, tuple[Program, dict[Hashable, Backend]]] = {}
        self.last: Backend | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Sessions:
        return Sessions()  # a copied learner holds another module, and makes its own plans

    def __reduce__(self) -> tuple[Any, ...]:
        return Sessions, ()

    def open(self, learner: MetaLearner, batch: TaskBatch, steps: int) -> Session:
        """A session on `batch`, which is checked; without a query set only `adapt` may be called on it."""
        state = survey(learner.module)
        backend = self.backend(learner, state, batch, steps, with_loss=batch.query_x is not None)
        program, _ = self._programs[state.key]
        return Session(learner, state, program, backend, batch, Context(program.constants(), backend.keys()), steps)

    def program(self, learner: MetaLearner, state: Survey | None = None) -> Program:
        """The program of the module in its present state."""
        key = (survey(learner.module) if state is None else state).key
        if key not in self._programs:
            warn_running_statistics(learner.module)
            if len(self._programs) == _MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = Program(learner.module), {}
        return self._programs[key][0]

    def backend(self, learner: MetaLearner, state: Survey, batch: TaskBatch, steps: int, *, with_loss: bool) -> Backend:
        """The backend for a batch like this one, which is checked where there has been none like it."""
        options = (
            learner.inner_loss, learner.outer_loss, learner.inner_optimizer, learner.inner_batch_size, learner.memory,
            learner.task_chunk, learner.bn_statistics, learner.compile_step, learner.backend, learner.precision,
        )  # fmt: skip
        key = (steps, with_loss, options, _signature(batch))
        _, backends = self._programs.get(state.key, (None, {}))
        if key not in backends:
            if with_loss or batch.query_x is None:  # the parts of any other were checked when they came
                learner._check(batch, query_required=with_loss)
            program = self.program(learner, state)
            _, backends = self._programs[state.key]
            backends[key] = _make(learner, program, batch, steps, with_loss)
        self.last = backends[key]
        return self.last


def _make(learner: MetaLearner, program: Program, batch: TaskBatch, steps: int, with_loss: bool) -> Backend:
    size = learner.inner_batch_size
    head_x, head_y = pytree.tree_map_only(Tensor, lambda x: x[:, :size], (batch.support_x, batch.support_y))
    plan = program.plan(head_x)
    layout = program.layout
    inner = Objective(plan, loss_op("inner_loss", learner.inner_loss, plan, head_y), layout)
    outer = Objective(plan, None, layout)
    if batch.query_x is not None:
        skip, seen = 0, batch.query_x
        if learner.bn_statistics == "support":
            skip = batch.support_samples
            seen = pytree.tree_map(lambda a, b: torch.cat([a, b], 1), batch.support_x, batch.query_x)
        plan = program.plan(seen, rows=skip or None)
        loss = loss_op("outer_loss", learner.outer_loss, plan, batch.query_y, skip=skip) if with_loss else None
        outer = Objective(plan, loss, layout, skip)
    if learner.compile_step:
        _refuse_compiled_draws(inner.plan, outer.plan)
    loop = InnerLoop(inner, learner.inner_optimizer, steps, size, learner.memory == "recompute")
    engine = Engine(loop, outer, learner.order)
    choice = choose(learner.backend, layout.device, engine)
    if choice.graph is not None:
        from .triton_backend import TritonBackend

        return TritonBackend(engine, choice.graph, batch.tasks, chunk=learner.task_chunk, precision=learner.precision)
    if learner.precision == "bfloat16":
        raise ValueError(
            f'precision="bfloat16" needs Triton kernels, and this runs on the torch backend ({choice.why}). Use '
            'precision="float32" or "tf32"'
        )
    return TorchBackend(engine, batch.tasks, chunk=learner.task_chunk, compiled=learner.compile_step)


def _refuse_compiled_draws(*plans: Plan) -> None:
    """An opaque op seeds its random numbers in Python, which a compiled step would do once and for all.

    Raises:
        ValueError: such an op is in one of the plans.
    """
    drawn = {node.label for plan in plans for node in plan.nodes if isinstance(node.op, Opaque) and node.op.random}
    if drawn:
        raise ValueError(
            f"compile=True cannot take random numbers drawn inside {', '.join(sorted(drawn))}, which has no op of its "
            "own; use compile=False, nn.Dropout for the randomness, or eval mode"
        )


def _signature(batch: TaskBatch) -> tuple[Hashable, ...]:
    """Batches of equal signature pass the same checks and share a plan."""
    return tuple(_kinds(tree) for tree in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))


def _kinds(tree: Tree) -> Hashable:
    if isinstance(tree, Tensor):
        return _kind(tree)
    leaves, spec = pytree.tree_flatten(tree)
    return spec, tuple(_kind(x) if isinstance(x, Tensor) else x.__class__ for x in leaves)


def _kind(x: Tensor) -> Hashable:
    """All that `check_batch` looks at."""
    return x.shape, x.dtype, x.device, x.requires_grad and torch.is_grad_enabled()
