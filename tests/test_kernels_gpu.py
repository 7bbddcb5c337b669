"""The perceptron tables on a GPU, at every precision and number of pipeline stages: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import results
from meta_steps import classification, mlp, regression
from test_kernels_mlp_loop import CASES, SHAPES
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# ‖kernels − truth‖ / ‖truth‖: tf32 keeps 11 bits of an operand, bfloat16 8; a step's error grows with the steps.
ALLOWED = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-1}


def check(monkeypatch, model, batch, precision, stages, **options):
    """Against float64 truth, and twice for the same bits."""
    from fastmeta.kernels import mlp as launcher

    monkeypatch.setattr(launcher, "STAGES", stages)
    truth = results(model, batch, "reference", torch.float64, **options)
    first, second = (results(model, batch, "triton", torch.float32, precision=precision, **options) for _ in range(2))
    for name, want in truth.items():
        assert torch.equal(first[name], second[name]), name
        error = (first[name].double().cpu() - want).norm()
        assert error <= ALLOWED[precision] * want.norm(), (name, error)  # without steps there is no update: 0 ≤ 0


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("precision", ALLOWED)
@pytest.mark.parametrize("name", CASES)
def test_regression(monkeypatch, name, precision, stages):
    widths, activation, options = CASES[name]
    batch = regression(features=widths[0], outputs=widths[-1])
    model = mlp(*widths, activation=nn.Tanh if activation is nn.ReLU else activation)  # no kinks to fall over
    check(monkeypatch, model, batch, precision, stages, inner_loss=F.mse_loss, **options)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("precision", ALLOWED)
@pytest.mark.parametrize("name", SHAPES)
def test_classification(monkeypatch, name, precision, stages):
    case = SHAPES[name]
    widths = case["widths"]
    batch = classification(
        widths[0], tasks=case["tasks"], support=case["support"], query=case["query"], classes=widths[-1]
    )
    options = {"inner_steps": case.get("steps", 2), "inner_loss": F.cross_entropy}
    check(monkeypatch, mlp(*widths, activation=nn.Tanh), batch, precision, stages, **options)


@pytest.mark.parametrize("seed", range(10))
def test_random_shapes(monkeypatch, seed):
    torch.manual_seed(seed)
    depth = int(torch.randint(1, 5, ()))
    widths = torch.randint(1, 129, (depth + 1,)).tolist()
    tasks, support, query = (int(torch.randint(1, top, ())) for top in (9, 129, 129))
    batch = regression(tasks=tasks, support=support, query=query, features=widths[0], outputs=widths[-1])
    check(monkeypatch, mlp(*widths), batch, "float32", 1, inner_loss=F.mse_loss)
