"""One call on one meta-batch: the user's trees in, the backend's functions with everything they need out.

A session binds a batch to the backend planned for its shapes. Plans are made once per state of the module, options and
shapes, and the ones used last are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.optim.base import State
from fastmeta.program.layout import Layout
from fastmeta.program.program import Program, leaves_of

from .adjoint import Cotangents, Displacement, Implicit
from .autograd import Adapt, MetaStep, QueryOutputs, Sources, numerics
from .backends.base import Backend, Planned
from .backends.cuda_graph import MANY_RECORDED, OFTEN_RECORDED, REFERENCE, MetaStepGraphs
from .backends.one_by_one import OneByOne
from .batch import TaskBatch, Tree, finite_tasks
from .boundary import in_turn
from .call import (
    Call,
    check_implicit,
    check_layout,
    check_row,
    checked_start,
    checked_weights,
    signature,
    trainable_alone,
)
from .checks import check_trainable, warn_running_statistics
from .grads import GradRow, added
from .ladder import Ladder
from .meta_step import MetaGradient, MetaInputs, only_finite
from .notices import warn_user
from .objective import Context, Data
from .options import Kind, Options
from .recent import Recent
from .watch import ModuleState, Watch


class Session(NamedTuple):
    """A meta-batch on its way through a backend."""

    options: Options
    module: nn.Module
    program: Program
    backend: Backend
    batch: TaskBatch
    at: MetaInputs
    context: Context
    kind: Kind
    plans: PlanCache
    graphs: MetaStepGraphs | None  # where the meta-step is to be replayed
    support: Data  # the batch's tensors
    query: Data
    adapts: Callable[[str], bool] | None

    @property
    def layout(self) -> Layout:
        """Of a row of fast weights."""
        return self.program.layout

    def _sources(self, at: MetaInputs, query: Data) -> Sources:
        return Sources.of(at, self.program.layout, self.program.shared, self.support, query)

    def meta_step(self, *, keep: bool, shares: bool = True) -> MetaGradient:
        """Losses, outputs and, where `keep` says so, the meta-gradient, without a graph of autograd's; where `shares`
        asks for them, the tasks' shares of it too."""
        with self._recording(), self.numerics():
            if self.graphs is None:
                return self._on_device(self.at, self.support, self.query, self.context, keep=keep, shares=shares)
            step = partial(self._on_device, keep=keep)
            return self.graphs.run(step, self.at, self.support, self.query, self.context, keep=keep)

    def differentiable_step(self) -> tuple[Tensor, Tensor, MetaGradient]:
        """The mean loss and the task losses [T] of a meta-step, differentiable where gradients are enabled."""
        keep = torch.is_grad_enabled()
        step = self.meta_step(keep=keep)
        if not keep or self.backend.records:
            return step.loss, step.tasks.losses, step
        sources = self._sources(self.at, self.query)
        loss, losses = MetaStep.apply(step, sources, *sources.tensors())  # pyright: ignore[reportGeneralTypeIssues]
        return loss, losses, step

    def accumulated_step(self) -> tuple[Tensor, Tensor, MetaGradient]:
        """As `differentiable_step`, with the mean loss's gradient added to `.grad` of all that it reaches, and without
        a graph; autograd is called only where it has more to do than to add."""
        step = self.meta_step(keep=True, shares=False)
        loss, losses = step.loss, step.tasks.losses
        if not self.backend.records:
            assert step.gradient is not None, "a meta-step without its gradient"
            sources = self._sources(self.at, self.query)
            if added(sources, step.gradient, self.plans.grad_row):
                return loss, losses, step
            loss, losses = MetaStep.apply(step, sources, *sources.tensors())  # pyright: ignore[reportGeneralTypeIssues]
        loss.backward()
        return loss.detach(), losses.detach(), step

    def _on_device(
        self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool, shares: bool = True
    ) -> MetaGradient:
        """All of a meta-step that the device does: what a CUDA graph holds."""
        self.backend.check_labels(support, query)
        return self.backend.meta_step(at, support, query, context, keep=keep, shares=shares)

    def adapt(self) -> tuple[Tensor, State, Tensor]:
        """φ_K [T, P], the rule's state, differentiable where gradients are enabled, and which tasks stayed finite."""
        support, keep = self.support, torch.is_grad_enabled()
        finite: list[Tensor] = []

        def run() -> tuple[Tensor, State, Callable[[Tensor, State], Cotangents]]:
            with self._recording(), self.numerics():
                self.backend.check_labels(support, None)
                phi, state, pull = self.backend.adapt(self.at, support, self.context, keep=keep)
            finite.append(kept := finite_tasks(support.inputs, phi))
            # a task that diverged has no gradient to give: its 0 · NaN must not reach the others'
            return phi, state, self._in_numerics(lambda lam, sigma: only_finite(pull(lam, sigma), kept))

        if not keep or self.backend.records:
            phi, state, _ = run()
            return phi, state, finite[0]
        sources = self._sources(self.at, Data((), ()))
        phi, *rest = Adapt.apply(run, sources, *sources.tensors())  # pyright: ignore[reportGeneralTypeIssues]
        return phi, tuple(rest), finite[0]

    def outputs(self, phi: Tensor, query_x: Tree) -> Tree:
        """The module's outputs [T, M, ...] at φ [T, P], differentiable where gradients are enabled."""
        here = self.on(query_x)
        support, inputs = here.support, leaves_of(query_x)
        context = here.context

        def run() -> tuple[list[Tensor], Callable[[Sequence[Tensor | None]], Cotangents]]:
            with here._recording(), self.numerics():
                outputs, pull = here.backend.outputs(
                    phi if here.backend.records else phi.detach(), support, inputs, context
                )
            return outputs, self._in_numerics(lambda ds: self._without_diverged(pull(ds), phi))

        at = MetaInputs(phi, here.at.shared)
        sources = here._sources(at, Data(inputs, ()))
        tensors = sources.tensors()
        if torch.is_grad_enabled() and not here.backend.records and any(x.requires_grad for x in tensors):
            outputs: Sequence[Tensor] = QueryOutputs.apply(run, sources, *tensors)  # pyright: ignore[reportAssignmentType]
        else:
            outputs, _ = run()
        return here.backend.output_tree(outputs)

    def _without_diverged(self, found: Cotangents, phi: Tensor) -> Cotangents:
        """What all tasks share must not meet a diverged task's 0 · NaN; φ's own cotangents are dropped in `adapt`."""
        if found.shared is None and not found.support and not found.query:
            return found
        return only_finite(found, finite_tasks(self.support.inputs, phi))

    @in_turn
    def on(self, query_x: Tree) -> Session:
        """The same tasks with query inputs, planned for their shapes and for the module as it is now."""
        batch, query = TaskBatch(self.batch.support_x, self.batch.support_y, query_x), Data(leaves_of(query_x), ())
        trainable = {*self.program.layout.names, *self.program.shared.names}
        # whoever froze a parameter since has fast weights of it all the same
        with trainable_alone(self.module, trainable):
            state = self.plans.state(self.module, self.options)
            program = self.plans.program(self.module, self.options, state, self.adapts)
            check_layout(self.program.layout, program.layout)
            backend = self.plans.backend(
                program, self.module, self.options, batch, self.kind, losses=state.losses, with_loss=False
            )
        if program is self.program:
            return self._replace(batch=batch, backend=backend, query=query)
        at = self.at._replace(shared=tuple(program.shared_of(state.trainable)))
        context = Context(at.shared, program.constants(), backend.keys())
        return self._replace(program=program, batch=batch, backend=backend, query=query, at=at, context=context)

    def _recording(self) -> AbstractContextManager[Any]:
        """Without autograd, but for a backend whose own results it is."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.backend.records)

    def _in_numerics(self, function: Callable[..., Cotangents]) -> Callable[..., Cotangents]:
        """A sweep that autograd calls later, perhaps from under an autocast of the user's."""

        def run(*cotangents: Any) -> Cotangents:
            with self.numerics():
                return function(*cotangents)

        return run

    def numerics(self) -> AbstractContextManager[Any]:
        """Precision is the learner's, whatever autocast surrounds the call."""
        return numerics(self.layout.device, self.options.precision)


_MANY_COMPILED = 5
_OFTEN_COMPILED = (
    f"compile=True has compiled the same meta-step more than {_MANY_COMPILED} times, because something that the module "
    "or a loss reads changes between calls, such as an annealed number. Pass it as a tensor, an attribute or buffer "
    "torch.tensor(0.1) that is changed in place by fill_(): that compiles nothing anew. Or use compile=False"
)
_PLAIN = Call(0)[1:]  # of an algorithm that says nothing of its own
_Moves = tuple[bool, ...] | None  # of the trainable parameters, in order; None: all
_Latest = tuple[Program, Options, Hashable, Backend]


class PlanCache:
    """Programs of one learner's module, by its state, and the backends planned for them."""

    def __init__(self) -> None:
        self._programs: Recent[Hashable, Program] = Recent()
        self._backends: Recent[Hashable, Backend] = Recent()
        self._warned: set[str] = set()
        self._ladder = Ladder(self._warn_once)
        self._compiled: Recent[Hashable, list[int]] = (
            Recent()
        )  # how many states of module and losses a call was compiled for
        self._recorded: Recent[Hashable, list[int]] = Recent()  # how many graphs were recorded of a call
        self._watch = Watch()
        self._latest: _Latest | None = None
        self.grad_row = GradRow()
        self._plain: tuple[ModuleState, Options, int, tuple[Program, MetaInputs, Kind]] | None = (
            None  # of the last call
        )
        self.latest_graphs: MetaStepGraphs | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PlanCache:
        return PlanCache()  # a copied learner holds another module, and makes its own plans

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, ()

    @in_turn
    def open(self, module: nn.Module, options: Options, batch: TaskBatch, call: Call) -> Session:
        """A session on `batch`, which is checked; without a query set only `adapt` may be called on it."""
        state = self.state(module, options)
        support = Data(leaves_of(batch.support_x), leaves_of(batch.support_y))
        program, at, kind = self._inputs(module, state, options, batch, support, call)
        with_loss = batch.query_x is not None
        backend = self.backend(program, module, options, batch, kind, losses=state.losses, with_loss=with_loss)
        graphs = self._graphs_of(backend, options, kind, batch) if options.cuda_graph and with_loss else None
        context = Context(at.shared, program.constants(), backend.keys())
        query = Data(leaves_of(batch.query_x), leaves_of(batch.query_y))
        return Session(
            options, module, program, backend, batch, at, context, kind, self, graphs, support, query, call.adapts
        )  # fmt: skip

    def _inputs(
        self, module: nn.Module, state: ModuleState, options: Options, batch: TaskBatch, support: Data, call: Call
    ) -> tuple[Program, MetaInputs, Kind]:
        """The module's program, what the meta-step is differentiated by, and what of that makes another plan."""
        plain = call[1:] == _PLAIN and options.inner_optimizer.learned is None
        known = self._plain
        # with the module and the options as they were, the parameters and a fixed step size are those of the last call
        if plain and known is not None and known[0] is state and known[1] is options and known[2] == call.steps:
            return known[3]
        program = self.program(module, options, state, call.adapts)
        if program.shared.size and isinstance(options.adjoint, Displacement):
            raise ValueError(
                f"Reptile trains what its inner loop moves, and adapts() keeps {list(program.shared.names)} out of it; "
                "freeze them with requires_grad_(False), or use MAML or FOMAML"
            )
        first, rule_state = 0, None
        start: tuple[Tensor, ...] | Tensor = tuple(program.fast_of(state.trainable))
        if call.going_on is not None:
            start, rule_state, first = call.going_on
            check_row(start, program.layout)
            rule_state = rule_state or None
        elif call.start is not None:
            start = checked_start(call.start(program.layout.row(start), support), program.layout, batch.tasks)
        meta = options.inner_optimizer.meta(program.layout, first + call.steps)
        weights, asked = checked_weights(call.weights, call.steps, program.layout)
        if isinstance(options.adjoint, Implicit):
            check_implicit(call, asked)
        at = MetaInputs(start, tuple(program.shared_of(state.trainable)), meta, weights, rule_state)
        kind = Kind(call.steps, first, asked, _form_of(start), tuple(map(_form_of_meta, meta)), call.ends)
        if plain and options.inner_optimizer.fixed:
            self._plain = (state, options, call.steps, (program, at, kind))
        return program, at, kind

    def state(self, module: nn.Module, options: Options) -> ModuleState:
        """The state of the module and of the losses now."""
        return self._watch.look(module, options.inner_loss, options.outer_loss)

    def _count_compiled(self, call: Hashable) -> None:
        """Warns once of a learner that compiles the same call again and again."""
        count = self._compiled.get(call, lambda: [0])
        count[0] += 1
        if count[0] > _MANY_COMPILED:
            self._warn_once(_OFTEN_COMPILED)

    def _count_recorded(self, count: list[int]) -> None:
        """Warns once of a learner that records a graph for the same call again and again."""
        count[0] += 1
        if count[0] > MANY_RECORDED:
            self._warn_once(OFTEN_RECORDED)

    def _graphs_of(self, backend: Backend, options: Options, kind: Kind, batch: TaskBatch) -> MetaStepGraphs | None:
        if not isinstance(backend, Planned):
            if not (isinstance(backend, OneByOne) and backend.why):  # else that was said when it was made
                self.warn_no_graph(REFERENCE)
            return None
        if backend.graphs is None:
            count = self._recorded.get((options.key, kind, signature(batch)), lambda: [0])
            backend.graphs = MetaStepGraphs(backend, self.warn_no_graph, partial(self._count_recorded, count))
        self.latest_graphs = backend.graphs
        return self.latest_graphs

    def warn_no_graph(self, why: str) -> None:
        """Warns, once for each reason, that `cuda_graph` does nothing."""
        self._warn_once(f"cuda_graph=True runs without a graph: {why}")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn_user(message, UserWarning)

    def program(
        self, module: nn.Module, options: Options, state: ModuleState | None = None,
        adapts: Callable[[str], bool] | None = None,
    ) -> Program:  # fmt: skip
        """The program of the module in its present state."""
        state = self.state(module, options) if state is None else state
        moves: _Moves = None if adapts is None else tuple([bool(adapts(name)) for name in state.names])

        def make() -> Program:
            check_trainable(module)  # its parameters may have been frozen since the meta-learner was made
            warn_running_statistics(module)
            if adapts is None:
                return Program(module)
            if not any(moves or ()):
                raise ValueError(
                    f"adapts() is true of none of the trainable parameters {list(state.names)}, so that there is "
                    "nothing to adapt; let it be true of some"
                )
            return Program(module, adapts)

        return self._programs.get((state.key, moves), make)

    @property
    def latest(self) -> Backend | None:
        """The backend of the latest session."""
        return None if self._latest is None else self._latest[3]

    def backend(
        self, program: Program, module: nn.Module, options: Options, batch: TaskBatch, kind: Kind, *,
        losses: Hashable, with_loss: bool,
    ) -> Backend:  # fmt: skip
        """The backend for a batch like this one, which is checked where there has been none like it.

        `losses` is the state that the losses are in.
        """
        key = (kind, with_loss, losses, signature(batch))
        latest = self._latest
        # most calls are like the one before, and equality of the same objects is sooner known than their hash
        if (
            latest is not None
            and latest[0] is program
            and (latest[1] is options or latest[1].key == options.key)
            and latest[2] == key
        ):
            return latest[3]

        def make() -> Backend:
            if options.compile and options.backend != "reference":
                self._count_compiled((options.key, kind, with_loss, key[-1]))
            return self._ladder.backend(program, module, options, batch, kind, losses, with_loss=with_loss)

        backend = self._backends.get((program, options.key, key), make)
        self._latest = (program, options, key, backend)
        return backend


def _form_of(start: tuple[Tensor, ...] | Tensor) -> str:
    if not isinstance(start, Tensor):
        return "θ"
    return "row" if start.dim() == 1 else "rows"


def _form_of_meta(x: Tensor) -> Hashable:
    return x.shape, x.dtype, x.requires_grad and torch.is_grad_enabled()
