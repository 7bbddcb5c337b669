"""The perceptron tables on a GPU, at every precision and number of pipeline stages: `pytest -m gpu`.

Nearly all of the time is the compiler's, so every kernel is compiled first, by as many processes as there are cores.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import test_kernels_linear
import test_kernels_mlp_loop
import torch
import torch.nn.functional as F
from kernel_runs import results
from meta_steps import mlp, regression
from torch import nn

import fastmeta
from fastmeta.batch import TaskBatch
from fastmeta.models import siren

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# ‖kernels − truth‖ / ‖truth‖: tf32 keeps 11 bits of an operand, bfloat16 8; a step's error grows with the steps.
ALLOWED = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-1}
STAGES = (1, 2, 3)
RANDOM = 10


class Case(NamedTuple):
    """One meta-step: a row of a table, precision and stages."""

    table: str
    name: str
    precision: str = "float32"
    stages: int = 1

    @property
    def id(self) -> str:
        return "-".join(map(str, self))


def meta_step(case: Case) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Model, batch and options of a case."""
    torch.manual_seed(0)
    table, _, kind = case.table.partition(" ")
    if kind == "siren":
        batch = regression(tasks=3, support=300, query=301, features=2, outputs=3)
        return siren().double(), batch, {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.01)}
    if kind == "random":
        torch.manual_seed(int(case.name))
        widest = 129 if table == "loop" else 400
        widths = torch.randint(1, widest, (int(torch.randint(2, 6, ())),)).tolist()
        tasks, support, query = (int(torch.randint(1, top, ())) for top in (9, widest, widest))
        batch = regression(tasks=tasks, support=support, query=query, features=widths[0], outputs=widths[-1])
        return mlp(*widths), batch, {"inner_loss": F.mse_loss}
    if kind == "regression":
        widths, activation, options = test_kernels_mlp_loop.CASES[case.name]
        batch = regression(features=widths[0], outputs=widths[-1])
        activation = nn.Tanh if activation is nn.ReLU else activation  # no kinks to fall over
        return mlp(*widths, activation=activation), batch, {"inner_loss": F.mse_loss, **options}
    shape = (test_kernels_mlp_loop if table == "loop" else test_kernels_linear).SHAPES[case.name]
    return mlp(*shape.widths), shape.batch(), shape.options()


@contextmanager
def launched_as(case: Case) -> Iterator[None]:
    """Sets the pipeline stages, and sends small perceptrons to the kernels of single layers too."""
    from fastmeta.kernels import mlp as loop
    from fastmeta.kernels import tiles

    from fastmeta import triton_backend

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((loop, "STAGES"), (tiles, "LAYER_STAGES"), (tiles, "WEIGHT_STAGES")):
            patch.setattr(module, name, case.stages)
        if case.table.startswith("layers"):
            patch.setattr(triton_backend, "fits_loop", lambda *_: False)
        yield


def table() -> Iterator[Case]:
    names = {
        "loop regression": test_kernels_mlp_loop.CASES, "layers regression": test_kernels_linear.OPTIONS,
        "loop classification": test_kernels_mlp_loop.SHAPES, "layers classification": test_kernels_linear.SHAPES,
        "layers siren": ("siren",),
    }  # fmt: skip
    for name, rows in names.items():
        for row in rows:
            for precision in ALLOWED:
                for stages in STAGES:
                    yield Case(name, row, precision, stages)
    for seed in range(RANDOM):
        yield Case("loop random", str(seed))
        yield Case("layers random", str(seed))


def compile_case(case: Case, target: str) -> list[str]:
    """Leaves a case's kernels in Triton's cache, without a GPU; their names."""
    from fastmeta.kernels.ahead_of_time import compiled_for

    model, batch, options = meta_step(case)
    batch = TaskBatch(*(x.float() if x.is_floating_point() else x for x in batch))
    settings = {"inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options
    algorithm = settings.pop("algorithm", fastmeta.MAML)
    learner = algorithm(model.float(), backend="triton", precision=case.precision, **settings)
    names = []
    with compiled_for(target, lambda name, *_: names.append(name)), launched_as(case), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing has run, so what came out is whatever memory held
        learner._sessions.open(learner, batch, learner.inner_steps).meta_step(keep=True)
        learner.adapt(batch.support_x, batch.support_y)
    return names


@pytest.fixture(scope="module", autouse=True)
def _compiled(request: pytest.FixtureRequest) -> None:
    """Compiles what the selected tests launch."""
    from fastmeta.kernels.ahead_of_time import TARGETS

    if not torch.cuda.is_available():
        return
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    selected = [item.callspec.params for item in request.session.items if item.module is request.module]
    cases = [params["case"] for params in selected]
    if target in TARGETS and len(cases) > 1:
        spawn = multiprocessing.get_context("spawn")  # a fork would share the parent's CUDA
        with spawn.Pool(min(os.cpu_count() or 1, len(cases))) as pool:
            pool.starmap(compile_case, [(case, target) for case in cases], chunksize=1)


@pytest.mark.parametrize("case", list(table()), ids=lambda case: case.id)
def test_meta_step(case: Case) -> None:
    """Against float64 truth, and twice for the same bits."""
    model, batch, options = meta_step(case)
    truth = results(model, batch, "reference", torch.float64, **options)
    with launched_as(case):
        first, second = (
            results(model, batch, "triton", torch.float32, precision=case.precision, **options) for _ in range(2)
        )
    for name, want in truth.items():
        assert torch.equal(first[name], second[name]), name
        error = (first[name].double().cpu() - want).norm()
        assert error <= ALLOWED[case.precision] * want.norm(), (name, error)  # without steps no update: 0 ≤ 0
