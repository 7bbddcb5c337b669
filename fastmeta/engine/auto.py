"""What backend="auto" does where Triton kernels take a program: a proof and a short timing on the user's own device.

The kernels' results on the meta-batch are held against float64 (`kernel_proof.py`); where they are right, both ways are
timed on it, and the faster one runs from then on. The verdict is kept on disk (`backends/verdicts.py`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastmeta.internals import cuda_driver_version
from fastmeta.program.losses import PlannedLoss
from fastmeta.program.program import Program, leaves_of

from .autograd import numerics
from .backends.choose import Choice
from .backends.convnet import Graph
from .backends.cuda_graph import MetaStepGraphs
from .backends.torch_ops import TorchBackend
from .backends.verdicts import Compared, KernelVerdict, VerdictStore, digest
from .batch import TaskBatch
from .kernel_proof import Asked, KernelsFail, Undecided, call_of, prove, wait, watched
from .meta_step import Engine
from .objective import Objective
from .options import Kind, Options
from .proof import undisturbed
from .recent import Recent

if TYPE_CHECKING:  # Triton is optional
    from .backends.triton import TritonBackend

Clock = Callable[[Callable[[], object], int, torch.device], float]
"""(call, how often, device) → seconds of one of the calls."""

_ROUNDS = 5
_ROUND_S = 5e-3
"""A round of one way is that long, or one call."""
_MOST_CALLS = 20
_SECONDS = 2.0
"""All rounds take that long, or there are fewer."""
_WARM_UP = 2
"""Calls before the first that is timed: a CUDA graph is recorded at the second."""


class KernelTrials:
    """What is known of the kernels for one learner's programs.

    Args:
        warn: says a message once.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._known: Recent[str, KernelVerdict] = Recent()

    def decided(
        self, made: TorchBackend, program: Program, options: Options, batch: TaskBatch, kind: Kind, *, with_loss: bool
    ) -> TorchBackend | TritonBackend:
        """Torch ops as they were made, or Triton kernels in their place.

        Raises:
            ValueError: precision="bfloat16", which torch ops do not have, and kernels do not run the program.
            RuntimeError: the kernels left the GPU in a state in which nothing runs on it any more.
        """
        graph = made.choice.candidate
        assert graph is not None, "there is something to decide"
        why = left_out(made.engine, options, batch)
        if why:
            return _on_torch(made, options, why)
        verdict = self._verdict(made.engine, graph, program, options, batch, kind, with_loss=with_loss)
        if verdict is None:
            return _on_torch(made, options, 'proof="off" leaves out the proof that Triton kernels run after')
        details = (f"auto: {verdict.source}; {_options(options)}", *verdict.lines())
        if not verdict.taken:
            return _on_torch(made, options, verdict.why, details, failed=verdict.failed)
        kernels = make_kernels(made.engine, graph, batch.tasks, options)
        kernels.proof = made.proof
        kernels.choice = Choice("triton", verdict.why, graph, details=details)
        return kernels

    def _verdict(
        self, engine: Engine, graph: Graph, program: Program, options: Options, batch: TaskBatch, kind: Kind,
        *, with_loss: bool,
    ) -> KernelVerdict | None:  # fmt: skip
        """What is known here or on disk, else what a trial says; None where there must be none."""
        device = program.layout.device
        facts = facts_of(engine, graph, options, batch, kind, with_loss=with_loss, machine=machine_of(device))
        store, key = VerdictStore(), digest(facts)
        found = store.get(facts) if key not in self._known else None
        if key not in self._known and found is None and options.proof == "off":
            return None

        def make() -> KernelVerdict:
            if found is not None:
                return found
            trial = KernelTrial(Asked.of(engine, program, options, batch, kind, with_loss=with_loss), graph, options)
            return self._kept(*trial.verdict(), store, facts, device)

        return self._known.get(key, make)

    def _kept(
        self, verdict: KernelVerdict, final: bool, store: VerdictStore, facts: dict[str, Any], device: torch.device
    ) -> KernelVerdict:
        """A new verdict on disk, where it holds for other processes too, and what the user must know of it."""
        if final:
            earlier = store.get(facts)  # of another process, meanwhile: all of them do the same
            if earlier is not None:
                return earlier
            store.put(facts, verdict)
            if store.problem:
                self._warn(
                    "what fastmeta found out about Triton kernels cannot be kept, and every process finds it anew: "
                    f"{store.problem}. FASTMETA_CACHE names another folder"
                )
        if verdict.failed:
            self._warn(
                f"{verdict.why}. Torch ops run this program in their place: results are right, at the speed of torch "
                "ops. Please report it"
            )
            _check_alive(device)
        return verdict


class KernelTrial:
    """One trial of kernels beside torch ops.

    Args:
        asked: the call on the user's meta-batch.
        graph: what the kernels run of its program.
        options: the learner's.
        clock: what takes the time; None: `seconds`.
    """

    def __init__(self, asked: Asked, graph: Graph, options: Options, *, clock: Clock | None = None) -> None:
        self._asked, self._graph, self._options = asked, graph, options
        self._clock = seconds if clock is None else clock
        self._device = asked.layout.device
        self._compared: tuple[Compared, ...] = ()
        self._setting = ""

    def verdict(self) -> tuple[KernelVerdict, bool]:
        """The verdict, and whether it holds for other processes too."""
        found: tuple[KernelVerdict, bool] | None = None
        try:
            with undisturbed(self._device), torch.no_grad(), numerics(self._device, self._options.precision):
                found = self._outcome()
        except Exception:
            if found is None or not found[0].failed:
                raise
            # kernels that left the GPU in disorder, so that its random state cannot be set back
        return found

    def _outcome(self) -> tuple[KernelVerdict, bool]:
        try:
            return self._tried(), True
        except KernelsFail as failure:
            return self._says(False, f"Triton kernels are not used: {failure}", failed=True), True
        except Undecided as reason:
            return self._says(False, f"Triton kernels could not be tried: {reason}"), False

    def _tried(self) -> KernelVerdict:
        asked, options = self._asked, self._options
        with watched():
            kernels = make_kernels(asked.engine, self._graph, asked.tasks, options)
        self._compared, self._setting = prove(asked, kernels, options.precision)
        wrong = [c for c in self._compared if c.wrong]
        if wrong:
            raise KernelsFail(f"their numbers are wrong: {wrong[0].line()}")
        if options.precision == "bfloat16":
            return self._says(True, "Triton kernels proved right, and nothing else has bfloat16")
        return self._faster(kernels)

    def _faster(self, kernels: TritonBackend) -> KernelVerdict:
        """The kernels are right: which way is faster."""
        asked = self._asked
        plain = TorchBackend(asked.engine, asked.tasks, chunk=self._options.task_chunk, compiled=False)
        on_torch, on_kernels = self._way(plain), self._way(kernels)
        try:
            finite = asked.run(plain).finite
            _warm_up(on_torch)
        except torch.OutOfMemoryError:
            return self._says(True, "Triton kernels proved right, and torch ops do not fit into the device's memory")
        lost = int((finite & ~asked.on_kernels(kernels).finite).sum())
        if lost:
            raise KernelsFail(f"{lost} task(s) come out of them not finite, and finite out of torch ops")
        with watched():
            _warm_up(on_kernels)
            wait(self._device)
        try:
            torch_s, kernels_s = self._timed(on_torch, on_kernels)
        except torch.OutOfMemoryError:
            raise Undecided("torch ops and Triton kernels do not fit into the device's memory side by side") from None
        if kernels_s < torch_s:
            return self._says(True, "Triton kernels proved right and faster", (torch_s, kernels_s))
        return self._says(False, "Triton kernels proved right, and torch ops are no slower", (torch_s, kernels_s))

    def _way(self, backend: TorchBackend | TritonBackend) -> Callable[[], object]:
        """The call as sessions make it."""
        asked = self._asked
        if asked.call != "meta-step" or not self._options.cuda_graph:
            return partial(asked.run, backend)
        graphs = MetaStepGraphs(backend, lambda _: None, lambda: None)
        step = partial(backend.meta_step, keep=True)
        return partial(graphs.run, step, asked.at, asked.support, asked.query, asked.context, keep=True)

    def _timed(self, *ways: Callable[[], object]) -> list[float]:
        """Seconds of a call of each way: medians of a few rounds, in turn."""
        first = [self._clock(way, 1, self._device) for way in ways]
        calls = [max(1, min(_MOST_CALLS, int(_ROUND_S / max(s, 1e-9)))) for s in first]
        spent = sum(s * n for s, n in zip(first, calls, strict=True))
        rounds = max(1, min(_ROUNDS, int(_SECONDS / max(spent, 1e-9))))
        found = [[self._clock(way, n, self._device) for way, n in zip(ways, calls, strict=True)] for _ in range(rounds)]
        return [statistics.median(times) for times in zip(*found, strict=True)]

    def _says(
        self, taken: bool, why: str, times: Sequence[float] | None = None, *, failed: bool = False
    ) -> KernelVerdict:
        torch_s, kernels_s = times or (None, None)
        return KernelVerdict(
            taken, why, self._asked.call, datetime.now(UTC).strftime("%Y-%m-%d"), failed, self._setting, torch_s,
            kernels_s, self._compared,
        )  # fmt: skip


def _warm_up(way: Callable[[], object]) -> None:
    for _ in range(_WARM_UP):
        way()


def left_out(engine: Engine, options: Options, batch: TaskBatch) -> str:
    """Why "auto" does not try kernels that take the program: an option or a call that they would not honour."""
    if options.compile:
        return "compile=True asks for compiled torch ops, which Triton kernels are not"
    row = torch.empty(1, 0, dtype=engine.outer.layout.dtype, device=engine.outer.layout.device)
    if batch.query_x is None and engine.loop.rule.init(row):
        return f"adapt_further needs the state of {engine.loop.rule!r}, which Triton kernels keep inside"
    return ""


def make_kernels(engine: Engine, graph: Graph, tasks: int, options: Options) -> TritonBackend:
    """The backend of Triton kernels."""
    from .backends.triton import TritonBackend

    return TritonBackend(engine, graph, tasks, chunk=options.task_chunk, precision=options.precision)


def seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one of `times` calls in a row, by the device's clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def _on_torch(
    made: TorchBackend, options: Options, why: str, details: tuple[str, ...] = (), *, failed: bool = False
) -> TorchBackend:
    if options.precision == "bfloat16":
        raise ValueError(
            f'precision="bfloat16" needs Triton kernels, and this runs on torch ops: {why}. Use precision="float32" '
            'or "tf32"'
        )
    made.choice = Choice("torch", why, details=details, failed=failed)
    return made


def _check_alive(device: torch.device) -> None:
    try:
        wait(device)
    except Exception as error:
        raise RuntimeError(
            "Triton kernels of this program left the GPU in a state in which nothing runs on it any more. That is "
            'kept, and the next process takes torch ops at once; start it again, or with backend="torch". Please '
            "report it"
        ) from error


def _options(options: Options) -> str:
    """What the two ways that were compared were told."""
    given = {"precision": options.precision, "memory": options.memory, "task_chunk": options.task_chunk,
             "cuda_graph": options.cuda_graph}  # fmt: skip
    return f"both ways with {', '.join(f'{name}={value!r}' for name, value in given.items())}"


# What a verdict is about. ---------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """A device and what runs on it."""

    device: dict[str, Any]
    versions: dict[str, str]


def machine_of(device: torch.device) -> Machine:
    """Name and size of a device, versions of all that decides how fast it is and what it computes."""
    facts: dict[str, Any] = {"name": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts = {
            "name": properties.name, "capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count, "memory": properties.total_memory,
        }  # fmt: skip
    versions = {
        "torch": torch.__version__, "triton": triton_version(), "cuda": str(torch.version.cuda or torch.version.hip),
        "driver": str(cuda_driver_version()), "fastmeta": f"{getattr(sys.modules['fastmeta'], '__version__', '')}"
        f" {_sources()}",
    }  # fmt: skip
    return Machine(facts, versions)


def triton_version() -> str:
    """Of the package; empty where it is not installed."""
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _sources() -> str:
    """A name for the kernels and what launches them as they are now."""
    spec = importlib.util.find_spec("fastmeta.kernels")
    folders = [Path(__file__).parent / "backends", *map(Path, (spec and spec.submodule_search_locations) or ())]
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def facts_of(
    engine: Engine, graph: Graph, options: Options, batch: TaskBatch, kind: Kind, *, with_loss: bool, machine: Machine
) -> dict[str, Any]:
    """All that a verdict depends on, but for the values of parameters and data."""
    layout, loop = engine.outer.layout, engine.loop
    trees = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    return {
        "device": machine.device,
        "versions": machine.versions,
        "call": call_of(batch, with_loss=with_loss),
        "program": [repr(stage) for stage in graph.stages],
        "sources": [list(sources) for sources in graph.sources],
        "offsets": list(layout.offsets),
        "losses": [_loss(loop.objective), _loss(engine.outer)],
        "rule": [_described(loop.rule), _described(engine.adjoint)],
        "steps": [kind.steps, kind.first, kind.start, loop.batch],
        "rates": [[list(shape), str(dtype), bool(wanted)] for shape, dtype, wanted in kind.meta],  # pyright: ignore[reportGeneralTypeIssues]
        "shapes": [[[list(x.shape), str(x.dtype)] for x in leaves_of(tree)] for tree in trees],
        "support in front": engine.outer.skip,
        "options": [options.precision, options.memory, options.task_chunk, options.cuda_graph],
    }


def _loss(objective: Objective) -> str:
    """A loss without what it holds of the user's."""
    loss = objective.loss
    if isinstance(loss, PlannedLoss):
        return f"{loss.name}: {', '.join(node.op.name for node in loss.behind.plan.nodes)}"
    return "" if loss is None else _described(loss)


def _described(x: object) -> str:
    """The same in every process: no address."""
    return repr(x) if is_dataclass(x) else type(x).__qualname__
