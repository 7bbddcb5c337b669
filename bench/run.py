"""One row for each workload and peer: the gate first, then speed, and a reason wherever there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import ceilings, environment
from . import device as devices
from .algorithms import REGISTRY, problem_of, sized
from .floors import meta_step_bytes, meta_step_flop
from .gate import Gate, NoGate, make_gate
from .peers import PEERS, peers_for
from .problem import MetaStep, Problem, Unsupported
from .records import FORMAT, Row, describe_error, write
from .timing import MIN_ROUNDS, TooSlow, interleave, patience
from .workloads import WORKLOADS, Workload

MEASURED_TWICE_S = 4.0
"""A step slower than this is not run twice more for its memory."""


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        rounds, budget_s: of `timing.interleave`, for each peer.
        patience_s: a first call that takes longer is given up.
        at_once: a row is written with a few figures of its own as soon as it is admitted, until it has been timed in
            turn with the others: a run that is ended loses one peer.
    """

    device: str = "cpu"
    precision: str = "float32"
    rounds: int = 15
    budget_s: float = 10.0
    patience_s: float = 300.0
    threads: int = 2
    at_once: bool = False


def run(
    *,
    workloads: Iterable[str],
    peers: Iterable[str] | None,
    algorithms: Iterable[str],
    settings: Settings,
    small: bool,
    out: Path | None,
) -> dict[str, Any]:
    """Measure, printing a line for each row; the file at `out` is rewritten with every row.

    Args:
        workloads: those that an algorithm with peers of its own is not measured on, it leaves out.
        peers: of these, each algorithm those that it has; None: all that are for the device.

    Returns:
        What the file holds: environment, settings and rows.
    """
    torch.set_num_threads(settings.threads)
    devices.check_device(settings.device)
    chosen, algorithms = None if peers is None else list(peers), list(algorithms)
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment.describe(settings.device),
        "threads": settings.threads,
        "ceilings": ceilings.measure(settings.device, precisions=tuple({"float32", settings.precision})),
        "rows": [],
    }

    def keep(row: Row) -> None:
        others = [other for other in result["rows"] if not _same(other, row)]
        result["rows"] = [*others, asdict(row)]
        if out is not None:
            write(result, out)

    for name in workloads:
        workload = WORKLOADS[name].sized_for(settings.device)
        for algorithm in algorithms:
            if algorithm in REGISTRY and name not in REGISTRY[algorithm].workloads:
                continue
            rows = REGISTRY[algorithm].rows() if algorithm in REGISTRY else PEERS
            default = list(rows) if algorithm in REGISTRY else peers_for(settings.device)
            own = default if chosen is None else [peer for peer in chosen if peer in rows]
            here = sized(workload, algorithm)
            for row in measure(here.small() if small else here, own, algorithm, settings, early=keep):
                speed = f"{row.median_ms:10.3f} ms" if row.samples_ms else f"{row.status}: {row.message}"
                print(f"{row.workload:20} {row.algorithm:8} {row.peer:22} {speed}", flush=True)
                keep(row)
    return result


def _same(other: Mapping[str, Any], row: Row) -> bool:
    return all(other[name] == getattr(row, name) for name in ("workload", "algorithm", "peer"))


def measure(
    workload: Workload, peers: Iterable[str], algorithm: str, settings: Settings, *,
    early: Callable[[Row], None] = lambda _: None,
) -> Iterator[Row]:  # fmt: skip
    """Rows of one workload, in the order of `peers`.

    With `settings.at_once`, `early` takes each before the next peer is admitted, with MIN_ROUNDS figures where it has a
    speed; and again with all its figures, before memory and launches are counted.
    """
    device, precision = settings.device, settings.precision
    try:
        workload.model()
    except ModuleNotFoundError as missing:
        sizes = {"T": workload.tasks, "N": workload.support, "M": workload.query, "K": workload.steps}
        message = f"the network needs {missing.name}: pip install 'fastmeta[hub]'"
        for peer in peers:
            yield Row(workload.name, sizes, algorithm, peer, "not installed", message, device, precision)
        return
    template = Row(
        workload=workload.name,
        sizes={"T": workload.tasks, "N": workload.support, "M": workload.query, "K": workload.steps},
        algorithm=algorithm,
        peer="",
        status="ok",
        device=device,
        precision=precision,
        flop=0 if algorithm in REGISTRY else meta_step_flop(workload, algorithm),
        bytes=0 if algorithm in REGISTRY else meta_step_bytes(workload, algorithm),
    )
    try:
        gate = make_gate(workload, algorithm=algorithm, device=device, precision=precision)
    except NoGate as reason:
        for peer in peers:
            yield replace(template, peer=peer, status="no gate", message=str(reason))
        return
    rows: list[Row] = []
    steps: dict[str, MetaStep] = {}
    with devices.products(device, precision):
        for peer in peers:
            problem = problem_of(workload, algorithm=algorithm, device=device, precision=precision)
            row, step = admit(replace(template, peer=peer, bound=gate.bound), problem, gate, settings.patience_s)
            rows.append(row)
            if step is not None:
                steps[peer] = step
            if settings.at_once:
                alone = {} if step is None else _timed({peer: step}, settings, MIN_ROUNDS)
                early(_with_figures(row, alone.get(peer)))
        timings = _timed(steps, settings, settings.rounds)
        rows = [_with_figures(row, timings.get(row.peer)) for row in rows]
        for row in rows if settings.at_once else ():
            early(row)
        for row in rows:
            yield _with_counts(row, steps.pop(row.peer)) if row.samples_ms else row


def _timed(steps: Mapping[str, MetaStep], settings: Settings, rounds: int) -> dict[str, list[float] | Exception]:
    return interleave(steps, rounds=rounds, budget_s=settings.budget_s, wait=lambda: devices.wait(settings.device))


def _with_figures(row: Row, timing: list[float] | Exception | None) -> Row:
    if timing is None:
        return row
    if isinstance(timing, Exception):
        return replace(row, status="failed", message=describe_error(timing))
    return replace(row, samples_ms=tuple(1e3 * seconds for seconds in timing))


def admit(row: Row, problem: Problem, gate: Gate, patience_s: float) -> tuple[Row, MetaStep | None]:
    """Set a peer up, call it once and hold its meta-gradient against the truth; the step where it passes."""
    try:
        start = time.perf_counter()
        with patience(patience_s):
            rows = REGISTRY[row.algorithm].rows() if row.algorithm in REGISTRY else PEERS
            step = rows[row.peer](problem)
            gradient = step()
            devices.wait(problem.device)
        row = replace(row, first_call_s=time.perf_counter() - start)
        error = gate.error(gradient)
    except Unsupported as failure:
        return replace(row, status="unsupported", message=str(failure)), None
    except ModuleNotFoundError as failure:
        return replace(row, status="not installed", message=f"no module {failure.name}"), None
    except TooSlow as failure:
        return replace(row, status="too slow", message=str(failure)), None
    except Exception as failure:  # a peer's failure is its result
        return replace(row, status="failed", message=describe_error(failure)), None
    row = replace(row, error=error)
    if not error <= gate.bound:  # NaN fails too
        message = f"meta-gradient off by {error:.1e}, allowed {gate.bound:.1e}"
        return replace(row, status="wrong", message=message), None
    return row, step


def _with_counts(row: Row, step: MetaStep) -> Row:
    """Memory and launches of a timed step, and the speed as it is where they cannot be had.

    On a GPU PyTorch's allocator sees neither JAX's memory nor that of a graph, which is taken at its capture.
    """
    if row.median_ms > 1e3 * MEASURED_TWICE_S:
        return row
    try:
        if row.device == "cpu" or not (row.peer.startswith("jax") or row.peer.endswith(" graph")):
            row = replace(row, peak_mib=devices.peak_mib(step, row.device))
        return replace(row, launches=devices.launches(step, row.device))
    except Exception as failure:  # a profiler that is not there costs no speed
        return replace(row, message=describe_error(failure))
