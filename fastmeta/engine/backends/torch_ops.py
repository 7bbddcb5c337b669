"""The engine on torch ops, eager or compiled, on slices of the tasks.

The slices bound memory, and on a CPU they keep a slice's activations in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastmeta.engine.adjoint import Cotangents
from fastmeta.engine.loop import Trajectory
from fastmeta.engine.meta_step import Engine, MetaGradient, MetaInputs, TaskResults, over_tasks
from fastmeta.engine.objective import Context, Data
from fastmeta.ops.dropout import task_keys
from fastmeta.ops.opaque import Opaque
from fastmeta.optim.base import State

from .base import Adapted, Planned, Pullback
from .compiled import Compiled
from .convnet import has_convolutions
from .workers import side_by_side

# Bytes of one pass's values that a slice of tasks may hold on a CPU, for each thread that works on it; one task is
# always allowed. Compiled, that is about a core's second-level cache: 1,000 sinusoid tasks, 5 steps: 84 ms in slices of
# 50 tasks (0.7 MiB), 95 of 125, 157 of 1,000.
_COMPILED_SLICE_BYTES = 2**20
# Op by op every slice costs Python's time again: on two threads 84 ms in slices of 250, 92 of 125, 148 of 50.
_EAGER_SLICE_BYTES = 2**21
# A convolution has a fixed cost as well: Conv4-16, 16 tasks: 255 ms in slices of 8 (42 MiB), 271 of 4, 344 of 2.
_EAGER_CONVOLUTION_SLICE_BYTES = 20 * 2**20
# And so has a deep plan of small values: GPT-2 of two layers, 130 nodes, 4 tasks of 1.5 MiB: `python -m bench loop`.
_EAGER_NODE_BYTES = 2**18

# Bytes of one pass's values from which on a CPU's threads take slices of their own; with less, waking a thread takes
# longer than it saves. Compiled, of all tasks, a thread: 1,000 sinusoids 51 → 42 ms on two threads; Conv4-64, 8 tasks:
# 165 → 143; 25 sinusoids: 1.7 → 2.0, so not those.
_COMPILED_THREAD_BYTES = 2**20
# Op by op, of one task, as only one thread at a time runs Python: 8 tasks of Conv4-64 (21 MiB each) 290 → 265 ms,
# but of Conv4-32 (10 MiB) 217 → 269, and 1,000 sinusoids 84 → 163.
_EAGER_THREAD_BYTES = 2**24


class TorchBackend(Planned):
    """The engine on torch ops, on any device.

    Args:
        engine: the engine for one set of shapes.
        tasks: T.
        chunk: tasks a slice; None chooses, and runs slices side by side where that pays.
        compiled: send each whole function through `torch.compile(fullgraph=True)`.
    """

    def __init__(self, engine: Engine, tasks: int, *, chunk: int | None, compiled: bool) -> None:
        super().__init__(engine)
        self.chunk, self.runs_by = chunk, "own sweeps"
        self._random = engine.random
        self._zero_keys = torch.zeros(tasks, dtype=torch.int64, device=engine.outer.layout.device)
        opaque = _is_opaque(engine)
        # an opaque op that is not compiled calls the user's module, which is one for all threads
        alone = chunk is not None or (opaque and not compiled)
        self.threads = 1 if alone else _slices_at_once(engine, tasks, compiled=compiled)
        chunk = chunk or _tasks_a_slice(engine, tasks, self.threads, compiled=compiled)
        self.slices = _slices(tasks, chunk, self.threads)

        def ready(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
            if compiled:
                return Compiled(function, threads=None if self.threads == 1 else 1).prepare
            if opaque:  # torch.func needs the bookkeeping
                return lambda *args: partial(function, *args)
            return lambda *args: partial(_untracked, function, *args)

        self._whole = compiled and len(self.slices) == 1  # then the means over tasks are compiled along
        whole = partial(_whole, engine) if self._whole else engine.meta_step
        self._evaluate = ready(partial(whole, keep=False))
        self._meta_step = ready(partial(whole, keep=True))
        if compiled:  # from one compiled function to the next only the trajectory travels
            engine = replace(engine, loop=replace(engine.loop, recompute=True))
        self._adapt_only = ready(partial(engine.adapt, keep=False))
        self._adapt = ready(partial(engine.adapt, keep=True))
        self._pull = ready(engine.pull)
        self._outputs = ready(engine.outputs)
        self._pullback = ready(engine.pullback)

    def keys(self) -> Tensor:
        """The tasks' random keys, from PyTorch's own generator; a module that draws nothing leaves that alone."""
        if not self._random:
            return self._zero_keys
        return task_keys(int(torch.randint(2**31, ())), self._zero_keys.shape[0], self._zero_keys.device)

    def _run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        return [call() for call in calls] if self.threads == 1 else side_by_side(calls)

    def meta_step(
        self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool, shares: bool = True
    ) -> MetaGradient:
        """Losses, outputs and, where `keep` says so, the meta-gradient and each task's share of it."""
        prepare = self._meta_step if keep else self._evaluate
        if self._whole:
            return prepare(at, support, query, context)()
        if len(self.slices) == 1:
            calls = [prepare(at, support, query, context)]
        else:
            calls = [prepare(at.take(s), support.take(s, 0), query.take(s, 0), context.take(s)) for s in self.slices]
        return MetaGradient.of(TaskResults.joined(self._run(calls)), one_start=at.one_start)

    def adapt(self, at: MetaInputs, support: Data, context: Context, *, keep: bool) -> Adapted:
        """φ_K of every task, and the function (λ_K, σ_K) → cotangents at φ_0, which may be called again."""
        data = [(at.take(s), support.take(s, 0), context.take(s)) for s in self.slices]
        prepare = self._adapt if keep else self._adapt_only
        results = self._run([prepare(*given) for given in data])
        runs: list[Trajectory] = [run for _, run in results]

        def pull(lam: Tensor, sigma: State) -> Cotangents:
            parts = zip(runs, data, self.slices, strict=True)
            calls = [self._pull(run, *given, lam[s], tuple(x[s] for x in sigma)) for run, given, s in parts]
            return over_tasks(torch.cat, self._run(calls))

        states = [run.state for run in runs]
        state = tuple(torch.cat(xs) for xs in zip(*states, strict=True))
        return Adapted(torch.cat([phi for phi, _ in results]), state, pull)

    def outputs(
        self, phi: Tensor, support: Data, inputs: tuple[Tensor, ...], context: Context
    ) -> tuple[list[Tensor], Pullback]:
        """Outputs [T, M, ...] at φ [T, P], and their pullback, which computes them again."""

        def given(s: slice) -> tuple[Any, ...]:
            return phi[s], support.take(s, 0), tuple(x[s] for x in inputs), context.take(s)

        parts = self._run([self._outputs(*given(s)) for s in self.slices])

        def pullback(d_outputs: Sequence[Tensor | None]) -> Cotangents:
            ds = [[None if d is None else d[s] for d in d_outputs] for s in self.slices]
            calls = [self._pullback(*given(s), d) for s, d in zip(self.slices, ds, strict=True)]
            return over_tasks(torch.cat, self._run(calls))

        return [torch.cat(ys) for ys in zip(*parts, strict=True)], pullback


def _whole(engine: Engine, *args: Any, keep: bool) -> MetaGradient:
    at = args[0]
    return MetaGradient.of(engine.meta_step(*args, keep=keep), one_start=at.one_start)


def _bytes_per_task(engine: Engine) -> int:
    return max(engine.loop.objective.plan.bytes_per_task, engine.outer.plan.bytes_per_task)


def _slices_at_once(engine: Engine, tasks: int, *, compiled: bool) -> int:
    threads, task = min(tasks, torch.get_num_threads()), _bytes_per_task(engine)
    worth_it = tasks * task >= threads * _COMPILED_THREAD_BYTES if compiled else task >= _EAGER_THREAD_BYTES
    return threads if worth_it and engine.outer.layout.device.type == "cpu" else 1


def _is_opaque(engine: Engine) -> bool:
    """Whether torch.func runs any part of it."""
    return any(isinstance(node.op, Opaque) for plan in engine.plans for node in plan.nodes)


def _untracked(function: Callable[..., Any], *args: Any) -> Any:
    """Outside autograd's bookkeeping, which is a seventh of the time of 25 sinusoids. What comes of it may only leave
    through an operation that makes a new tensor: here `torch.cat`."""
    with torch.inference_mode():
        return function(*args)


def _tasks_a_slice(engine: Engine, tasks: int, threads: int, *, compiled: bool) -> int:
    """At most; `threads` slices run side by side, and one alone has all threads in its ops."""
    if engine.outer.layout.device.type != "cpu":
        return tasks
    size = _COMPILED_SLICE_BYTES
    if not compiled:
        size = _EAGER_CONVOLUTION_SLICE_BYTES if has_convolutions(engine) else _EAGER_SLICE_BYTES
        size = max(size, _EAGER_NODE_BYTES * len(engine.outer.plan.nodes))
        size *= torch.get_num_threads() // threads
    return max(1, min(-(-tasks // threads), size // _bytes_per_task(engine)))


def _slices(tasks: int, chunk: int, threads: int) -> list[slice]:
    """Slices of the tasks; all of one size where twice as many allow it, as compiled code is made per size."""
    least = -(-tasks // min(chunk, tasks))
    count = next((n for n in range(least, 2 * least) if tasks % n == 0 and n % threads == 0), least)
    bounds = [i * tasks // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]
