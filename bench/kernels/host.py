"""What `bench kernels --host` prints: microseconds of Python in a meta-step, with launches that do nothing.

Triton's own search for the compiled kernel runs as it would; the driver behind it is a stand-in, on tensors of a CPU.
CUDA graphs are replayed by a function that does nothing. What looks at numbers, which a GPU skips, is left out.
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from bench.networks import LOSSES
from bench.workloads import WORKLOADS
from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import MAML
from fastmeta.engine.backends import cuda_graph
from fastmeta.engine.backends.base import Planned
from fastmeta.optim.sgd import SGD

Row = dict[str, Any]

_WARM_UP, _ROUND, _SECONDS = 4, 20, 2.0


def _nothing(*_: object) -> None:
    """In place of what a GPU skips; a mock takes as long as what is measured."""


def _no() -> bool:
    return False


@contextmanager
def no_driver() -> Iterator[list[int]]:
    """Inside, kernels are compiled for sm_90 and launched by nobody; the list holds how many launches there were."""
    from fastmeta.kernels import ahead_of_time, launch  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py
    from triton.runtime.driver import driver

    launches = [0]

    def nothing(*_: Any) -> None:
        launches[0] += 1

    stand_in: Any = ahead_of_time._NoDevice("sm_90")
    stand_in.launcher_cls = lambda *_: nothing
    stand_in.utils = SimpleNamespace(
        load_binary=lambda *_: (object(), 0, 0, 0, 1024), unload_module=lambda _: None,
        get_device_properties=lambda _: {"max_shared_mem": ahead_of_time.SHARED_BYTES["sm_90"][0]},
    )  # fmt: skip
    before = driver._active
    driver.set_active(stand_in)
    try:
        with mock.patch.object(launch, "needs_a_gpu", _no):
            yield launches
    finally:
        driver._active = before


@contextmanager
def graphs_without_a_gpu() -> Iterator[None]:
    """Inside, a CUDA graph replays nothing."""

    def record(step: Callable[[], Any], _: torch.device) -> tuple[Callable[[], None], Any]:
        return (lambda: None), step()

    with mock.patch.object(cuda_graph, "record", record), mock.patch.object(cuda_graph, "DEVICES", ("cpu",)):
        yield


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, nobody looks at numbers: whether tasks are finite, whether labels are within the classes."""
    with (
        mock.patch.object(MetaLearner, "_warn", staticmethod(_nothing)),
        mock.patch.object(Planned, "check_labels", _nothing),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def microseconds(step: Callable[[], object], seconds: float = _SECONDS) -> float:
    """CPU time of this thread a call, the least of many short rounds: other programs slow a machine down."""
    for _ in range(_WARM_UP):
        step()
    rounds = []
    while sum(rounds) < seconds:
        begin = time.thread_time()
        for _ in range(_ROUND):
            step()
        rounds.append(time.thread_time() - begin)
    return 1e6 * min(rounds) / _ROUND


def host(workload: str, precision: str = "float32") -> Row:
    """Launches of a meta-step and microseconds of Python around them: by `loss.backward()`, by `accumulate`, and by
    `accumulate` with a CUDA graph."""
    import triton

    shape = WORKLOADS[workload]
    # of few values: a CPU would spend its time on copies that a GPU makes by itself
    shape = replace(shape, tasks=1, width=min(shape.width, 16 if len(shape.sample_shape) > 1 else 64))
    batch = shape.batch()
    row: Row = {
        "workload": workload, "precision": precision, "torch": torch.__version__, "triton": triton.__version__,
        "processor": platform.processor() or platform.machine(),
    }  # fmt: skip

    def learner(**options: Any) -> MAML:
        return MAML(
            shape.model(), inner_loss=LOSSES[shape.loss], inner_optimizer=SGD(lr=shape.lr), inner_steps=shape.steps,
            backend="triton", proof="off", **options,
            precision=precision,  # pyright: ignore[reportArgumentType]  # one of names.PRECISIONS
        )  # fmt: skip

    def backward(one: MAML) -> Callable[[], object]:
        parameters = list(one.parameters())

        def step() -> None:
            for p in parameters:
                p.grad = None
            one(*batch).loss.backward()

        return step

    def accumulate(one: MAML) -> Callable[[], object]:
        parameters = list(one.parameters())

        def step() -> None:
            for p in parameters:
                p.grad = None
            one.accumulate(*batch)

        return step

    with no_driver() as launches, graphs_without_a_gpu(), as_on_a_gpu():
        one = learner()
        step = backward(one)
        step()
        before = launches[0]
        step()
        row["launches"] = launches[0] - before
        row["backward, µs"] = round(microseconds(step), 1)
        if hasattr(one, "accumulate"):
            row["accumulate, µs"] = round(microseconds(accumulate(one)), 1)
            row["accumulate with a graph, µs"] = round(microseconds(accumulate(learner(cuda_graph=True))), 1)
        row["backward with a graph, µs"] = round(microseconds(backward(learner(cuda_graph=True))), 1)
    return row
