"""The tables of perceptrons and convolutions on a GPU, at every precision and pipeline depth.

`pytest -m gpu` runs the short form: every kind of inner loop once, and two networks at all precisions and depths.
`pytest -m "gpu or gpu_full"` runs everything, for some ten minutes. Nearly all of the time is the compiler's, so every
kernel is compiled first, by as many processes as there are cores.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import convolutions
import perceptrons
import pytest
import torch
import torch.nn.functional as F
from kernel_runs import results
from meta_steps import classification, mlp, regression
from torch import nn

import fastmeta
from fastmeta.engine.batch import TaskBatch
from fastmeta.models import siren

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# ‖kernels − truth‖ / ‖truth‖: tf32 keeps 11 bits of an operand, bfloat16 8; a step's error grows with the steps.
ALLOWED = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-1}
# Of maxima, where rounding swaps winners: a gradient that goes to wrong ones altogether is off by more than its size.
ALLOWED_OF_MAXIMA = {"float32": 1e-4, "tf32": 2e-1, "bfloat16": 5e-1}
MAXIMA = ("21×21, 7 channels, 5 images", "16 channels")
OWN = 0
"""Stages as the kernels themselves choose them: what users run."""
STAGES = (OWN, 1, 3)
STAGES_OF_LOOPS = (OWN,)
"""Barriers stop the compiler's pipeliner, so a perceptron's inner loop is the same code at any depth."""
SHARES = 4
"""Jobs that the kernels of a case are dealt out to."""
COMPILE_S = 75.0
"""What compiling the short form may take; a case that is not done by then fails. All of it has ten times as long."""
RANDOM = 10
CONV4 = {"28×28": ((1, 28, 28), 64), "84×84": ((3, 84, 84), 32)}
"""Image and most channels of networks of four blocks, of random sizes by seed."""
CONV4_RANDOM = 3


class Case(NamedTuple):
    """One meta-step: a row of a table, precision and stages."""

    table: str
    name: str
    precision: str = "float32"
    stages: int = OWN

    @property
    def id(self) -> str:
        return "-".join((self.table, self.name, self.precision, str(self.stages or "own")))


def smoothed(model: nn.Sequential) -> nn.Sequential:
    """Means for maxima: which of two near values wins is a matter of rounding, and moves a gradient by percents."""
    return nn.Sequential(*(nn.AvgPool2d(2) if isinstance(layer, nn.MaxPool2d) else layer for layer in model))


def conv4(name: str) -> tuple[nn.Module, Any]:
    """Four blocks, with channels, tasks and samples that no tile divides, of a size and seed."""
    (channels, *sides), most = CONV4[name.rpartition(" ")[0]]
    torch.manual_seed(int(name.rpartition(" ")[2]))
    widths = [channels, *torch.randint(most // 2 - 3, most + 1, (4,)).tolist()]
    blocks = [convolutions.conv(a, b, activation=nn.SiLU, pool=nn.MaxPool2d(2)) for a, b in itertools.pairwise(widths)]
    model = convolutions.net(*(part for block in blocks for part in block), image=(channels, *sides))
    tasks, support, query = (int(torch.randint(1, top, ())) for top in (4, 5, 8))
    return model, classification(channels, *sides, tasks=tasks, support=support + 1, query=query + 1, classes=3)


def convolutional(case: Case) -> tuple[nn.Module, Any, dict[str, Any]]:
    """As `meta_step`. Outside of their own table maxima are taken in float32 only, where rounding swaps no winners."""
    options: dict[str, Any] = {"inner_loss": F.cross_entropy}
    if case.table == "conv options":
        make, more = convolutions.OPTIONS[case.name]
        model, batch = make(), convolutions.batch_of(2, 6, 5)
        options |= more
    elif case.table in ("conv shapes", "conv maxima"):
        image, support, layers = convolutions.SHAPES[case.name]
        model = convolutions.net(*layers(), image=image)
        batch = convolutions.batch_of(*image, support=support, tasks=1)
    else:
        model, batch = conv4(case.name)
    kept = case.precision == "float32" or case.table == "conv maxima"
    return model if kept else smoothed(model), batch, options


def meta_step(case: Case) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Model, batch and options of a case."""
    torch.manual_seed(0)
    table, _, kind = case.table.partition(" ")
    if table == "conv":
        return convolutional(case)
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
        widths, activation, options = perceptrons.CASES[case.name]
        batch = regression(features=widths[0], outputs=widths[-1])
        activation = nn.Tanh if activation is nn.ReLU else activation  # no kinks to fall over
        return mlp(*widths, activation=activation), batch, {"inner_loss": F.mse_loss, **options}
    shape = (perceptrons.LOOP_SHAPES if table == "loop" else perceptrons.LAYER_SHAPES)[case.name]
    return mlp(*shape.widths), shape.batch(), shape.options()


@contextmanager
def launched_as(case: Case) -> Iterator[None]:
    """Sets all kernels' pipeline stages to the case's, and sends small perceptrons to kernels of single layers too."""
    from fastmeta.kernels import tiles

    from fastmeta.engine.backends import triton as triton_backend

    with pytest.MonkeyPatch.context() as patch:
        names = [name for name in vars(tiles) if name.endswith("_STAGES")]
        assert {"LAYER_STAGES", "WEIGHT_STAGES"} <= {*names}, "those of layers and convolutions"
        if case.stages != OWN:
            for name in names:
                patch.setattr(tiles, name, case.stages)
        if case.table.startswith("layers"):
            patch.setattr(triton_backend, "fits_loop", lambda *_: False)
        yield


def table() -> Iterator[Case]:
    names = {
        "loop regression": perceptrons.CASES, "layers regression": perceptrons.LAYER_OPTIONS,
        "loop classification": perceptrons.LOOP_SHAPES, "layers classification": perceptrons.LAYER_SHAPES,
        "layers siren": ("siren",), "conv options": convolutions.OPTIONS,
        "conv shapes": convolutions.SHAPES,
        "conv random": [f"{size} {seed}" for size in CONV4 for seed in range(CONV4_RANDOM)],
    }  # fmt: skip
    for name, rows in names.items():
        for row in rows:
            for precision in ALLOWED:
                for stages in STAGES_OF_LOOPS if name.startswith("loop") else STAGES:
                    yield Case(name, row, precision, stages)
    for name in MAXIMA:
        for precision in ("tf32", "bfloat16"):
            yield Case("conv maxima", name, precision)
    for seed in range(RANDOM):
        yield Case("loop random", str(seed))
        yield Case("layers random", str(seed))


def in_short_form(case: Case) -> bool:
    """Whether `-m gpu` alone selects it: of loops and layers each kind of rule once, random sizes once; convolutions by
    MAML at every precision and in one at every depth, by another rule, and of odd sizes."""
    table, name, exact = case.table, case.name, case.precision == "float32"
    first, varied = exact and case.stages == OWN, case.stages == OWN or case.precision == "tf32"
    rules = ("first-order", "reptile", "momentum", "adam", "batches")
    return {
        "loop regression": name == "sinusoid" or (exact and name in rules),
        "loop classification": name in ("257 tasks", "20 classes") and exact,
        "loop random": name == "0",
        "layers random": name == "0",
        "layers regression": name in ("adam", "nesterov") and first,
        "layers classification": name in ("more samples than a tile", "300 classes") and first,
        "layers siren": varied,
        "conv options": (name == "maml" and varied) or (name == "adam" and first),
        "conv shapes": name == "stride 2, odd sides" and first,
    }.get(table, False)  # fmt: skip


def launch_all(case: Case) -> fastmeta.MetaLearner:
    """What a case's test launches, for whatever `launch.run` does; the learner. Its numbers mean nothing."""
    model, batch, options = meta_step(case)
    batch = TaskBatch(*(x.float() if x.is_floating_point() else x for x in batch))
    settings = {"inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options
    algorithm = settings.pop("algorithm", fastmeta.MAML)
    learner = algorithm(model.float(), backend="triton", precision=case.precision, **settings)
    with launched_as(case), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing has run, so what came out is whatever memory held
        learner.session(batch).meta_step(keep=True)
        learner.adapt(batch.support_x, batch.support_y)
    return learner


def compile_share(case: Case, target: str, share: int) -> None:
    """Leaves a share of a case's kernels in Triton's cache, without a GPU."""
    from fastmeta.kernels import launch
    from fastmeta.kernels.ahead_of_time import compiled_for, keep_launcher

    count = itertools.count()

    def every_nth(*args) -> None:
        if next(count) % SHARES == share:
            compile_one(*args)

    with compiled_for(target, lambda *seen: keep_launcher(seen[-1])), launch.through(every_nth) as compile_one:
        launch_all(case)


def failures(
    cases: list[Case], target: str, compiles: Callable[[Case, str, int], None] = compile_share
) -> dict[Case, str]:  # fmt: skip
    """Compiles the kernels of all cases side by side; why those of some do not compile."""
    from fastmeta.kernels.side_by_side import side_by_side

    limit_s = COMPILE_S if all(map(in_short_form, cases)) else 10 * COMPILE_S
    jobs = [partial(compiles, case, target, share) for case in cases for share in range(SHARES)]
    preload = ("fastmeta.engine.backends.triton", "fastmeta.kernels.ahead_of_time")
    ended = side_by_side(jobs, limit_s=limit_s, preload=preload)
    return {cases[done.place // SHARES]: done.failure for done in ended if done.failure}


@pytest.fixture(scope="module")
def not_compiled(request: pytest.FixtureRequest) -> dict[Case, str]:
    """Compiles what the selected tests launch; why that of some cases does not compile."""
    from fastmeta.kernels.ahead_of_time import TARGETS

    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    selected = [item for item in request.session.items if item.module is request.module]
    cases = [item.callspec.params["case"] for item in selected]
    return failures(cases, target) if target in TARGETS and len(cases) > 1 else {}


@lru_cache
def truth_of(case: Case) -> dict[str, torch.Tensor]:
    """In float64, by autograd."""
    model, batch, options = meta_step(case)
    return results(model, batch, "reference", torch.float64, update=True, **options)


def parameter(case: Case) -> Any:
    return pytest.param(case, id=case.id, marks=() if in_short_form(case) else pytest.mark.gpu_full)


@pytest.mark.parametrize("case", [parameter(case) for case in table()])
def test_meta_step(case: Case, not_compiled: dict[Case, str]) -> None:
    """Against float64 truth, and twice for the same bits."""
    assert case not in not_compiled, not_compiled[case]
    model, batch, options = meta_step(case)
    truth = truth_of(case._replace(stages=OWN))
    with launched_as(case):
        first, second = (
            results(model, batch, "triton", torch.float32, update=True, precision=case.precision, **options)
            for _ in range(2)
        )
    allowed = ALLOWED_OF_MAXIMA if case.table == "conv maxima" else ALLOWED
    for name, want in truth.items():
        assert torch.equal(first[name], second[name]), name
        error = (first[name].double().cpu() - want).norm()
        assert error <= allowed[case.precision] * want.norm(), (name, error)  # without steps no update: 0 ≤ 0
