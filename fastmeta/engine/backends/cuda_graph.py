"""Meta-steps as CUDA graphs: recorded once, replayed whole, so that no launch waits for Python.

A graph works on memory that stays in its place. θ, frozen parameters and buffers are read where they lie, as
optimisers update them in place; a meta-batch is copied in, and what the user keeps is copied out. All tasks' λ_0, which
only the gradients of single tasks' losses need, stays inside until the next replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from fastmeta.engine.adjoint import Cotangents
from fastmeta.engine.meta_step import Engine, MetaGradient, MetaInputs, TaskResults, flattened, rebuilt
from fastmeta.engine.objective import Context, Data
from fastmeta.internals import copy_all
from fastmeta.program.messages import first_line
from fastmeta.program.plan import seeded_in_python

from .turns import Turns

Step = Callable[[MetaInputs, Data, Data, Context], MetaGradient]

DEVICES = ("cuda",)
"""Where there are graphs."""

REFERENCE = "the reference runs one task at a time, by autograd"

MANY_RECORDED = 4
OFTEN_RECORDED = (
    f"cuda_graph=True has recorded the same meta-step more than {MANY_RECORDED} times, because parameters or buffers "
    "lie in other memory than before. A recording takes as long as several meta-steps, and every graph keeps its "
    "memory. Write into the tensors that are there: p.copy_(value) under torch.no_grad() in place of p.data = value, "
    "and load_state_dict() without assign=True. Or use cuda_graph=False"
)

_MOST_GRAPHS = 4  # of one backend: with and without the meta-gradient, for θ in two places

_SPOILED: list[torch.cuda.CUDAGraph] = []  # PyTorch's allocator goes on asking a graph whose capture broke off


def obstacle(device: torch.device, engine: Engine | None = None) -> str:
    """Why a meta-step cannot be a graph, as far as that is known before its first; "" where nothing is."""
    if device.type not in DEVICES:
        return f"the module is on {device}, and CUDA graphs are for GPUs"
    drawn = [] if engine is None else seeded_in_python(engine.loop.objective.plan, engine.outer.plan)
    if drawn:
        return f"Python seeds the random numbers drawn inside {', '.join(drawn)}, which has no op of its own"
    return ""


def record(step: Callable[[], MetaGradient], device: torch.device) -> tuple[Callable[[], None], MetaGradient]:
    """Captures `step`; what replays it, and the tensors that every replay writes.

    Raises:
        RuntimeError: `step` does what a graph cannot hold.
    """
    with torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            step()  # compiles what is left to compile, makes libraries' handles and workspaces
            _without_waiting(step)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # the outer one leads back where a broken capture does not; other threads may go on using the GPU. Without
            # a stream it would be PyTorch's own for captures, which is of one device, whichever came first
            with torch.cuda.stream(here), torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                results = step()
        except Exception:
            _SPOILED.append(graph)
            raise
    return graph.replay, results


def _without_waiting(step: Callable[[], MetaGradient]) -> None:
    """Runs `step` on the watch for what makes the host wait, since a capture that breaks off leaves PyTorch's allocator
    and generators in disorder."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # not "error", which would reach other threads
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "called a synchronizing CUDA operation" in str(warning.message):
            raise RuntimeError(f"{warning.filename}:{warning.lineno} makes the host wait for the GPU")


class Recorded(Protocol):
    """What is asked of the backend whose meta-steps are recorded."""

    engine: Engine

    def apart(self, own: dict[Hashable, Tensor]) -> AbstractContextManager[None]:
        """Inside, memory that launches leave to the next ones is in `own`: other launches may run beside a replay."""
        ...


class Recording:
    """One graph. Calling it replays it and copies the results out, but for the single tasks' cotangents."""

    def __init__(self, step: Callable[[], MetaGradient], backend: Recorded) -> None:
        self._own: dict[Hashable, Tensor] = {}  # memory of the backend's that no other launch may use

        def apart() -> MetaGradient:
            with backend.apart(self._own):
                return step()

        self._replay, self._results = record(apart, backend.engine.outer.layout.device)
        self._replays = 0
        results, tasks = self._results, self._results.tasks
        found: list[Tensor] = []
        self._shape: Cotangents | None = None
        if results.gradient is not None:
            found, self._shape = flattened(results.gradient)
        self._given = [results.loss, tasks.losses, tasks.finite, *tasks.outputs, *tasks.ends, *tasks.notes, *found]
        # one launch copies tensors of one dtype
        self._alike = [i for i, x in enumerate(self._given) if x.dtype is results.loss.dtype and x.is_contiguous()]
        self._others = [i for i in range(len(self._given)) if i not in self._alike]

    def __call__(self) -> MetaGradient:
        self._replay()
        self._replays += 1
        given, tasks = self._given, self._results.tasks
        made = [torch.empty_like(x) for x in given]
        copy_all([made[i] for i in self._alike], [given[i] for i in self._alike])
        for i in self._others:
            made[i].copy_(given[i])
        rest = iter(made)
        loss, losses, finite = next(rest), next(rest), next(rest)
        outputs = list(islice(rest, len(tasks.outputs)))
        ends, notes = (tuple(islice(rest, len(xs))) for xs in (tasks.ends, tasks.notes))
        kept = TaskResults(losses, outputs, finite, None, ends, notes)
        if self._shape is None:
            return MetaGradient(loss, None, kept)
        gradient = rebuilt(self._shape, rest)
        if tasks.cotangents is None:
            return MetaGradient(loss, gradient, kept)
        return MetaGradient(loss, gradient, kept, partial(self._of_tasks, tasks.cotangents, self._replays))

    def _of_tasks(self, cotangents: Cotangents, replay: int) -> Cotangents:
        if replay != self._replays:
            raise RuntimeError(
                "a later meta-step has overwritten the single tasks' gradients, which cuda_graph=True keeps for the "
                "last one only: differentiate task_losses before the next call, or use cuda_graph=False. "
                "loss.backward() is not affected"
            )
        return cotangents


class MetaStepGraphs:
    """The graphs of one backend's meta-step, each recorded at the second call of its kind.

    Args:
        backend: whose meta-steps they are.
        tell: takes the reason why there are none.
        recorded: called at every recording.
    """

    def __init__(self, backend: Recorded, tell: Callable[[str], None], recorded: Callable[[], None]) -> None:
        self._backend, engine = backend, backend.engine
        self._device = engine.outer.layout.device
        self._random = engine.random
        self._tell, self._recorded = tell, recorded
        self._turns = Turns(self._device)
        self._buffers: list[Tensor] = []
        self._graphs: dict[Hashable, Recording | None] = {}  # by what they are for; None: seen once
        self.why_not = obstacle(self._device, engine)

    @property
    def state(self) -> str:
        """What `explain()` says."""
        recorded = sum(graph is not None for graph in self._graphs.values())
        return f"none: {self.why_not}" if self.why_not else f"{recorded} recorded, each at the second call of its kind"

    def run(
        self, step: Step, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool
    ) -> MetaGradient:
        """`step` on what follows it: replayed where it can be. `keep` says whether it computes the meta-gradient."""
        if self.why_not:
            self._tell(self.why_not)
            return step(at, support, query, context)
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return step(at, support, query, context)  # into a graph of the user's own
        # parameters and buffers are read where they lie; what is made anew for every step is copied in
        params = () if isinstance(at.start, Tensor) else at.start
        key = keep, *[(t.data_ptr(), t.stride()) for t in (*params, *context.shared, *context.constants)]
        with self._turns:
            graph = self._graphs.pop(key, self)  # and in again, behind those that were not called for longer
            if graph is self:
                if len(self._graphs) == _MOST_GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[key] = None
                return step(at, support, query, context)
            data = self._data(at, support, query, context)
            if not self._buffers:
                with torch.inference_mode(False):  # a tensor made in it could not be written outside of it
                    self._buffers = [torch.empty_like(x) for x in data]
            copy_all(self._buffers, data)  # one launch, not four
            if not isinstance(graph, Recording):
                graph = self._record(step, at, support, query, context)
                if graph is None:
                    return step(at, support, query, context)
            self._graphs[key] = graph
            return graph()

    def _record(self, step: Step, at: MetaInputs, support: Data, query: Data, context: Context) -> Recording | None:
        """A graph of a step like this one, on the buffers; None where there can be none."""
        held = self._held(at, support, query, context)
        try:
            graph = Recording(partial(step, *held), self._backend)
        except Exception as error:  # whatever the user's own functions do
            self.why_not = first_line(error)
            self._tell(self.why_not)
            self._graphs.clear()
            self._buffers.clear()
            return None
        self._recorded()
        return graph

    def _data(self, at: MetaInputs, support: Data, query: Data, context: Context) -> list[Tensor]:
        """What is copied in."""
        keys = [context.keys] if self._random else []
        made = [at.start] if isinstance(at.start, Tensor) else []
        weights = [] if at.weights is None else [at.weights]
        return [
            *support.inputs, *support.targets, *query.inputs, *query.targets, *made, *at.meta, *weights,
            *(at.state or ()), *keys,
        ]  # fmt: skip

    def _held(
        self, at: MetaInputs, support: Data, query: Data, context: Context
    ) -> tuple[MetaInputs, Data, Data, Context]:
        """All of a meta-step where the graphs read it."""
        rest = iter(self._buffers)
        support, query = _like(support, rest), _like(query, rest)
        held = MetaInputs(
            next(rest) if isinstance(at.start, Tensor) else tuple(p.detach() for p in at.start),
            tuple(p.detach() for p in at.shared),
            tuple(next(rest) for _ in at.meta),
            None if at.weights is None else next(rest),
            None if at.state is None else tuple(next(rest) for _ in at.state),
        )
        shared = tuple(p.detach() for p in context.shared)
        return held, support, query, context._replace(shared=shared, keys=next(rest, context.keys))


def _like(data: Data, rest: Iterator[Tensor]) -> Data:
    return Data(tuple(next(rest) for _ in data.inputs), tuple(next(rest) for _ in data.targets))
