"""The steps of `python -m bench gpu`, in the order of what a failure would cost: right first, then fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TRITON, GRAPH, EAGER = "fastmeta triton", "fastmeta triton graph", "fastmeta eager graph"
KERNEL_TESTS, GRAPH_TESTS = "tests/kernels/test_kernels_gpu.py", "tests/engine/test_cuda_graph_gpu.py"
OTHER_TESTS = ("tests/engine/test_batch.py", "tests/tasks/test_tasks_navigation.py")

PERCEPTRONS = "sinusoid"
CONVOLUTIONS = "(options-maml and own)"
"""Of the short form of KERNEL_TESTS: the two networks that stand for all, each at three precisions."""

PATIENT = 0.6
"""Share of a step's time that one peer's first call may take: the next one gets its turn."""

EXACT, TF32, BFLOAT16 = "float32", "tf32", "bfloat16"


@dataclass(frozen=True)
class Call:
    """One run of a step.

    Attributes:
        quick: tiny sizes, to see that it starts and ends.
        out: the file it is to write.
        limit_s: what it has.
    """

    device: str
    quick: bool
    out: Path
    limit_s: float


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        limit_s: its time.
        command: its arguments to Python.
        measures: what it writes is a result, and no log.
        beside: the next step begins at once.
    """

    limit_s: float
    command: Callable[[Call], Sequence[str]]
    measures: bool = True
    beside: bool = False


@dataclass(frozen=True)
class Timed:
    """Command of meta-steps beside peers: workloads, precision, peers in the order in which they are admitted."""

    precision: str
    workloads: tuple[str, ...]
    peers: tuple[str, ...]
    patience_s: float = 60

    def __call__(self, call: Call) -> Sequence[str]:
        head = ("-m", "bench", "run", "--device", call.device, "--precision", self.precision, "--out", str(call.out))
        if call.quick:  # a perceptron stands for all: the interpreter takes its time over images
            small = ("--quick", "--workload", "sinusoid", "--rounds", "1", "--budget", "0.1")
            return (*head, *small, "--patience", "60", "--peer", *self.peers)
        patience_s = min(self.patience_s, PATIENT * call.limit_s)
        options = ("--budget", "1", "--rounds", "7", "--patience", f"{patience_s:g}")
        return (*head, "--workload", *self.workloads, *options, "--peer", *self.peers)


@dataclass(frozen=True)
class Pytest:
    """Command of tests on a GPU: files, and which of the short form."""

    files: tuple[str, ...]
    which: str = ""

    def __call__(self, call: Call) -> Sequence[str]:
        options = ("-o", "addopts=", "-W", "default", "-p", "no:cacheprovider", "-vv", "-rfEs", "--tb=short")
        chosen = ("-k", self.which) if self.which else ()
        return ("-m", "pytest", *self.files, "-m", "gpu", *chosen, *options, f"--junit-xml={call.out}")


@dataclass(frozen=True)
class Compiled:
    """Command that compiles kernels: of (workload, precision)."""

    kernels: tuple[tuple[str, str], ...]

    def __call__(self, call: Call) -> Sequence[str]:
        limit = ("--limit", f"{max(1.0, call.limit_s - 10):g}", "--out", str(call.out), "--device", call.device)
        names = tuple(f"{workload}:{precision}" for workload, precision in self.kernels)
        if call.quick:
            names = tuple(dict.fromkeys(f"sinusoid:{precision}" for _, precision in self.kernels))
        target = ("--target", "sm_90") if call.device == "cpu" else ()
        return (
            "-m",
            "bench.compile_ahead",
            *limit,
            *target,
            *(("--quick",) if call.quick else ()),
            "--kernels",
            *names,
        )


@dataclass(frozen=True)
class Module:
    """Command of a module of its own."""

    name: str
    options: tuple[str, ...] = ()

    def __call__(self, call: Call) -> Sequence[str]:
        quick = ("--quick",) if call.quick else ()
        head = ("-m", f"bench.{self.name}", "--device", call.device, "--out", str(call.out))
        return (*head, *quick, *self.options)


def kernels_of(steps: dict[str, Step], *more: tuple[str, str]) -> Compiled:
    """All kernels that the steps launch, each step's in turn."""
    pairs = [
        (workload, step.command.precision) for step in steps.values() if isinstance(step.command, Timed)
        and {TRITON, GRAPH} & {*step.command.peers} for workload in step.command.workloads
    ]  # fmt: skip
    return Compiled(tuple(dict.fromkeys((*pairs, *more))))


LAUNCHES_TIMED = ("sinusoid", "sinusoid-10k", "omniglot-20w1s", "siren-64")
PRECISIONS = (EXACT, TF32, BFLOAT16)

_FIRST = {
    "tests-perceptrons": Step(90, Pytest((KERNEL_TESTS,), PERCEPTRONS), measures=False),
    "tests-convolutions": Step(60, Pytest((KERNEL_TESTS,), CONVOLUTIONS), measures=False),
    "sinusoid": Step(40, Timed(EXACT, ("sinusoid",), (GRAPH, TRITON, "torch.func vmap graph"))),
    "omniglot": Step(50, Timed(EXACT, ("omniglot-20w1s",), (GRAPH, TRITON, EAGER))),
    "launch-times": Step(40, Module("launch_times", ("--workload", *LAUNCHES_TIMED))),
    "tests-graphs": Step(40, Pytest((GRAPH_TESTS,)), measures=False),
    "sinusoid-jax": Step(30, Timed(EXACT, ("sinusoid",), (GRAPH, "jax vmap"))),
}
_SECOND = {
    "tf32": Step(45, Timed(TF32, ("omniglot-20w1s", "torchbench-maml", "sinusoid-10k", "sinusoid"), (GRAPH, TRITON))),
    "bfloat16": Step(40, Timed(BFLOAT16, ("omniglot-20w1s", "torchbench-maml", "sinusoid-10k"), (GRAPH, TRITON))),
    "others": Step(
        60,
        Timed(
            EXACT, ("torchbench-maml", "sinusoid-10k", "siren-64", "mini-5w1s", "omniglot-5w1s", "mini-5w5s"),
            (GRAPH, EAGER),
        ),
    ),
    # vmap is wrong on batch norm with weights of each task's own, so the loop stands beside it
    "torch-func": Step(
        40, Timed(EXACT, ("torchbench-maml", "omniglot-20w1s"), (GRAPH, "torch.func vmap", "torch.func loop"))
    ),
    "jax": Step(60, Timed(EXACT, ("sinusoid-10k", "omniglot-20w1s", "torchbench-maml"), (GRAPH, "jax vmap"))),
    "tests-rest": Step(
        90,
        Pytest((KERNEL_TESTS, *OTHER_TESTS), f"not {PERCEPTRONS} and not {CONVOLUTIONS}"),
        measures=False,
    ),
    # what other steps leave of the time
    "launches": Step(40, Module("launches")),
    "sweep": Step(60, Module("sweep", ("--compile-limit", "25"))),
    "compiled": Step(200, Timed(EXACT, ("sinusoid", "omniglot-20w1s"), (GRAPH, "fastmeta compiled"), 150)),
}  # fmt: skip

FIRST = {
    "compile": Step(
        110, kernels_of(_FIRST, *((name, precision) for name in LAUNCHES_TIMED for precision in PRECISIONS)),
        measures=False, beside=True,
    ),
    **_FIRST,
}  # fmt: skip
SECOND = {"compile-rest": Step(110, kernels_of(_SECOND), measures=False, beside=True), **_SECOND}
LEFT = ("launches", "sweep", "compiled")
"""Steps of the second command that take what the others leave."""
MORE = {
    "ceilings": Step(30, Module("ceilings")),
    "sweep-images": Step(340, Module("sweep", ("--workload", "omniglot-20w1s", "mini-5w1s", "--compile-limit", "150"))),
}
"""Only where named."""
EVERY = {**FIRST, **SECOND, **MORE}
