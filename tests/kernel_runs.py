"""Whole meta-steps on Triton kernels, in interpreter mode or on a GPU, and what they are held to."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import fastmeta

knobs = pytest.importorskip("triton").knobs
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_kernels = pytest.mark.skipif(
    DEVICE == "cpu" and not knobs.runtime.interpret, reason="needs a GPU or TRITON_INTERPRET=1"
)


def results(model, batch, backend, dtype, algorithm=fastmeta.MAML, **options):
    """Losses, meta-gradient, outputs and the learners' updates φ_K − θ, in float64."""
    device = DEVICE if backend == "triton" else "cpu"
    model = copy.deepcopy(model).to(device, dtype)
    batch = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in batch]
    learner = algorithm(
        model, backend=backend, **({"inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options)
    )
    out = learner(*batch)
    out.loss.backward()
    with torch.no_grad():
        phi = learner.adapt(*batch[:2]).parameters()
    return {
        "losses": out.task_losses.detach(),
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
        "outputs": out.outputs.detach(),
        "update": torch.cat([(phi[n] - p).detach().flatten() for n, p in model.named_parameters()]),
    }


def assert_as_good_as_torch(model, batch, **options):
    """‖kernels − truth‖ ≤ 2 ‖torch in float32 − truth‖ + atol, for every kind of result (DESIGN, numerics)."""
    truth = results(model, batch, "reference", torch.float64, **options)
    torch_error = results(model, batch, "torch", torch.float32, **options)
    got = results(model, batch, "triton", torch.float32, **options)
    for name, want in truth.items():
        error, allowed = ((r[name].double().cpu() - want).norm() for r in (got, torch_error))
        assert got[name].isfinite().all(), name
        assert error <= 2 * allowed + 1e-6 * want.norm(), (name, (error / want.norm()).item())


def permuted_programs(monkeypatch):
    """From here on the interpreter runs the programs of a launch in another order."""
    from triton.runtime.interpreter import InterpreterBuilder

    begin = InterpreterBuilder.set_grid_idx

    def permuted(builder, x, *rest):
        order = list(range(builder.grid_dim[0]))
        random.Random(1).shuffle(order)
        begin(builder, order[x], *rest)

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", permuted)
