"""One call on one meta-batch: the user's trees in, the backend's functions with everything they need out.

A session binds a batch to the engine planned for its shapes. Plans are made once per (shapes, train/eval mode,
trainable parameters) and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastmeta.engine.backends.base import Backend
from fastmeta.engine.backends.choose import choose
from fastmeta.engine.backends.cuda_graph import MetaStepGraphs
from fastmeta.engine.backends.torch_ops import TorchBackend
from fastmeta.program.layout import Layout
from fastmeta.program.losses import check_labels_of, check_targets_of, loss_op
from fastmeta.program.plan import Plan, seeded_in_python
from fastmeta.program.program import Program, leaves_of

from .autograd import no_autocast
from .batch import TaskBatch, Tree
from .checks import warn_running_statistics
from .loop import InnerLoop
from .meta_step import Engine, MetaGradient
from .notices import warn_user
from .objective import Context, Data, Objective
from .watch import Survey, Watch

if TYPE_CHECKING:
    from fastmeta.algorithms.base import MetaLearner

_Key = tuple[int, bool, Hashable, Hashable]  # what a plan is for: steps, with loss or not, options, the batch's kind

_MOST_PROGRAMS = 16  # kept of a module whose state goes on changing
_MOST_GRAPHED = 16  # backends with CUDA graphs, each of which keeps a meta-step's memory


class Session(NamedTuple):
    """A meta-batch on its way through a backend."""

    learner: MetaLearner
    state: Survey
    program: Program
    backend: Backend
    batch: TaskBatch
    context: Context
    steps: int
    graphs: MetaStepGraphs | None  # where the meta-step is to be replayed

    @property
    def layout(self) -> Layout:
        return self.program.layout

    @property
    def params(self) -> list[nn.Parameter]:
        """θ in the layout's order."""
        return self.state.trainable

    def _support(self) -> Data:
        return Data(leaves_of(self.batch.support_x), leaves_of(self.batch.support_y))

    def _behind_support(self, support: tuple[Tensor, ...], query: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Query inputs, behind the support set where that lends its batch-norm statistics."""
        if self.backend.engine.outer.skip:
            return tuple(torch.cat(pair, 1) for pair in zip(support, query, strict=True))
        return query

    def _check_support_labels(self, targets: tuple[Tensor, ...]) -> None:
        inner = self.backend.engine.loop.objective
        check_labels_of("support_y", inner.loss, inner.plan, targets)

    def meta_step(self, *, keep: bool) -> MetaGradient:
        support, query = self._support(), Data(leaves_of(self.batch.query_x), leaves_of(self.batch.query_y))
        with torch.no_grad(), self.numerics():
            if self.graphs is None:
                return self._on_device(self.params, support, query, self.context, keep=keep)
            step = partial(self._on_device, keep=keep)
            return self.graphs.run(step, self.params, support, query, self.context, keep=keep)

    def _on_device(
        self, params: Sequence[Tensor], support: Data, query: Data, context: Context, *, keep: bool
    ) -> MetaGradient:
        """All of a meta-step that the device does: what a CUDA graph holds."""
        outer = self.backend.engine.outer
        self._check_support_labels(support.targets)
        check_labels_of("query_y", outer.loss, outer.plan, query.targets)
        query = Data(self._behind_support(support.inputs, query.inputs), query.targets)
        return self.backend.meta_step(params, support, query, context, keep=keep)

    def adapt(self, *, keep: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        support = self._support()
        with torch.no_grad(), self.numerics():
            self._check_support_labels(support.targets)
            phi, adjoint = self.backend.adapt(self.params, support, self.context, keep=keep)
        return phi, self._in_numerics(adjoint)

    def on(self, query_x: Tree) -> Session:
        """The same tasks with query inputs, planned for their shapes."""
        batch = TaskBatch(self.batch.support_x, self.batch.support_y, query_x)
        sessions = self.learner._sessions
        _, backend = sessions.planned(self.learner, self.state, batch, self.steps, with_loss=False)
        return self._replace(batch=batch, backend=backend)

    def apply(self, phi: Tensor) -> tuple[list[Tensor], Callable[[Sequence[Tensor | None]], Tensor]]:
        with torch.no_grad(), self.numerics():
            inputs = self._behind_support(leaves_of(self.batch.support_x), leaves_of(self.batch.query_x))
            outputs, pullback = self.backend.apply(
                phi, inputs, self.context.at(self.steps, self.backend.engine.outer.plan)
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

    def numerics(self) -> AbstractContextManager[Any]:
        """Precision is the learner's, whatever autocast surrounds the call."""
        device = self.layout.device.type
        return self._gpu_numerics() if device == "cuda" else no_autocast(device)

    @contextmanager
    def _gpu_numerics(self) -> Iterator[None]:
        backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            setattr(backend, "allow_tf32", self.learner.precision == "tf32")  # noqa: B010  typed as a plain module
        try:
            with no_autocast("cuda"):
                yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                setattr(backend, "allow_tf32", value)  # noqa: B010


class Sessions:
    """Programs of one meta-learner, by the state of its module, each with its backends, by what they were made for."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, tuple[Program, dict[Hashable, Backend]]] = {}
        self._graphs: WeakKeyDictionary[Backend, MetaStepGraphs] = WeakKeyDictionary()
        self._told: set[str] = set()
        self._watch = Watch()
        self._latest: tuple[Survey, _Key, Program, Backend] | None = None  # the latest plan, and for what it is
        self.last_graphs: MetaStepGraphs | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Sessions:
        return Sessions()  # a copied learner holds another module, and makes its own plans

    def __reduce__(self) -> tuple[Any, ...]:
        return Sessions, ()

    def open(self, learner: MetaLearner, batch: TaskBatch, steps: int) -> Session:
        """A session on `batch`, which is checked; without a query set only `adapt` may be called on it."""
        state = self._watch.look(learner.module)
        with_loss = batch.query_x is not None
        program, backend = self.planned(learner, state, batch, steps, with_loss=with_loss)
        graphs = self._graphs_of(backend) if learner.cuda_graph and with_loss else None
        context = Context(program.constants(), backend.keys())
        return Session(learner, state, program, backend, batch, context, steps, graphs)

    def _graphs_of(self, backend: Backend) -> MetaStepGraphs:
        if backend not in self._graphs:
            if len(self._graphs) == _MOST_GRAPHED:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[backend] = MetaStepGraphs(backend.engine, self.tell_no_graph)
        self.last_graphs = self._graphs[backend]
        return self.last_graphs

    def tell_no_graph(self, why: str) -> None:
        """Warns, once for each reason, that `cuda_graph` does nothing."""
        if why not in self._told:
            self._told.add(why)
            warn_user(f"cuda_graph=True runs without a graph: {why}", UserWarning)

    def program(self, learner: MetaLearner, state: Survey | None = None) -> Program:
        """The program of the module in its present state."""
        key = (self._watch.look(learner.module) if state is None else state).key
        if key not in self._programs:
            warn_running_statistics(learner.module)
            if len(self._programs) == _MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = Program(learner.module), {}
        return self._programs[key][0]

    @property
    def last(self) -> Backend | None:
        """The backend of the latest session."""
        return None if self._latest is None else self._latest[3]

    def planned(
        self, learner: MetaLearner, state: Survey, batch: TaskBatch, steps: int, *, with_loss: bool
    ) -> tuple[Program, Backend]:
        """Program and backend for a batch like this one, which is checked where there has been none like it."""
        options = (
            learner.inner_loss, learner.outer_loss, learner.inner_optimizer, learner.inner_batch_size, learner.memory,
            learner.task_chunk, learner.bn_statistics, learner.compile_step, learner.backend, learner.precision,
        )  # fmt: skip
        key = (steps, with_loss, options, _signature(batch))
        latest = self._latest
        # most calls are like the one before, and equality of the same objects is sooner told than their hash
        if latest is None or latest[0] is not state or latest[1] != key:
            latest = self._latest = (state, key, *self._look_up(learner, state, key, batch))
        return latest[2:]

    def _look_up(self, learner: MetaLearner, state: Survey, key: _Key, batch: TaskBatch) -> tuple[Program, Backend]:
        program, backends = self._programs.get(state.key, (None, {}))
        if program is None or key not in backends:
            steps, with_loss, *_ = key
            if with_loss or batch.query_x is None:  # the parts of any other were checked when they came
                learner._check(batch, query_required=with_loss)
            program = self.program(learner, state)
            _, backends = self._programs[state.key]
            backends[key] = _make(learner, program, batch, steps, with_loss)
        return program, backends[key]


def _make(learner: MetaLearner, program: Program, batch: TaskBatch, steps: int, with_loss: bool) -> Backend:
    size = learner.inner_batch_size
    head_x, head_y = pytree.tree_map_only(Tensor, lambda x: x[:, :size], (batch.support_x, batch.support_y))
    plan = program.plan(head_x)
    layout = program.layout
    check_targets_of("support_y", learner.inner_loss, plan, leaves_of(batch.support_y), batch=size)
    inner = Objective(plan, loss_op("inner_loss", learner.inner_loss, plan, head_y), layout)
    outer = Objective(plan, None, layout)
    if batch.query_x is not None:
        skip, seen = 0, batch.query_x
        if learner.bn_statistics == "support":
            skip = batch.support_samples
            seen = pytree.tree_map(lambda a, b: torch.cat([a, b], 1), batch.support_x, batch.query_x)
        plan = program.plan(seen, rows=skip or None)
        loss = None
        if with_loss:
            check_targets_of("query_y", learner.outer_loss, plan, leaves_of(batch.query_y), skip=skip)
            loss = loss_op("outer_loss", learner.outer_loss, plan, batch.query_y, skip=skip)
        outer = Objective(plan, loss, layout, skip)
    if learner.compile_step:
        _refuse_compiled_draws(inner.plan, outer.plan)
    loop = InnerLoop(inner, learner.inner_optimizer, steps, size, learner.memory == "recompute")
    engine = Engine(loop, outer, learner.order)
    choice = choose(learner.backend, layout.device, engine)
    if choice.graph is not None:
        from fastmeta.engine.backends.triton import TritonBackend

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
    drawn = seeded_in_python(*plans)
    if drawn:
        raise ValueError(
            f"compile=True cannot take random numbers drawn inside {', '.join(drawn)}, which has no op of its "
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
