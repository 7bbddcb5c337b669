"""Whole meta-steps on Triton kernels, in interpreter mode or on a GPU, and what they are held to."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from golden_cases import learner_of as learner_of_case
from meta_steps import classification, mlp
from torch import nn

import fastmeta

knobs = pytest.importorskip("triton").knobs
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_kernels = pytest.mark.skipif(
    DEVICE == "cpu" and not knobs.runtime.interpret, reason="needs a GPU or TRITON_INTERPRET=1"
)


def results(model, batch, backend, dtype, algorithm=fastmeta.MAML, *, update=False, **options):
    """Losses, meta-gradient and outputs in float64, and on demand the updates φ_K − θ, by a second inner loop."""
    device = DEVICE if backend == "triton" else "cpu"
    model = copy.deepcopy(model).to(device, dtype)
    batch = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in batch]
    learner = algorithm(
        model, backend=backend, **({"inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options)
    )
    out = learner(*batch)
    out.loss.backward()
    found = {
        "losses": out.task_losses.detach(),
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
        "outputs": out.outputs.detach(),
    }
    if update:
        with torch.no_grad():
            phi = learner.adapt(*batch[:2]).parameters()
        found["update"] = torch.cat([(phi[n] - p).detach().flatten() for n, p in model.named_parameters()])
    return found


def assert_as_good_as_torch(model, batch, **options):
    """‖kernels − truth‖ ≤ 2 ‖torch in float32 − truth‖ + atol, for every kind of result."""
    truth = results(model, batch, "reference", torch.float64, **options)
    torch_error = results(model, batch, "torch", torch.float32, **options)
    got = results(model, batch, "triton", torch.float32, **options)
    for name, want in truth.items():
        error, allowed = ((r[name].double().cpu() - want).norm() for r in (got, torch_error))
        assert got[name].isfinite().all(), name
        assert error <= 2 * allowed + 1e-6 * want.norm(), (name, (error / want.norm()).item())


def check_golden(golden):
    """A golden case's meta-step."""
    batch = [golden[name] for name in ("support_x", "support_y", "query_x", "query_y")]
    learner = learner_of_case(golden)
    options = {name: getattr(learner, name) for name in ("inner_loss", "inner_optimizer", "inner_steps")}
    assert_as_good_as_torch(learner.module, batch, algorithm=type(learner), **options)


def check_smoothed_and_ignored_labels():
    """Cross-entropy where one support and one query label do not count."""
    batch = classification(4, tasks=2, support=6, query=6, classes=3)
    batch.support_y[0, 2] = batch.query_y[1, 0] = 255
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=255)
    assert_as_good_as_torch(mlp(4, 9, 3), batch, inner_loss=loss)


def check_any_order(monkeypatch, learner, batch):
    """The same bits of the meta-gradient when the interpreter runs the programs of a launch in another order."""
    if DEVICE == "cuda":
        pytest.skip("the interpreter's order is what is permuted")
    from triton.runtime.interpreter import InterpreterBuilder

    def gradient():
        learner.zero_grad()
        learner(*batch).loss.backward()
        return torch.cat([p.grad.flatten() for p in learner.module.parameters()])

    first = gradient()
    begin = InterpreterBuilder.set_grid_idx

    def permuted(builder, x, *rest):
        order = list(range(builder.grid_dim[0]))
        random.Random(1).shuffle(order)
        begin(builder, order[x], *rest)

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", permuted)
    assert torch.equal(gradient(), first)
