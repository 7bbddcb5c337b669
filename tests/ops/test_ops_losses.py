"""Cross-entropy and mean squared error, and the Hessian they make together with a small module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import check_op, randn
from torch import nn

from fastmeta.engine.objective import Context, Data, Objective
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.dropout import task_keys
from fastmeta.ops.mse import MSE
from fastmeta.program.program import Program

T, N, C = 3, 5, 7


def labels(*shape):
    return torch.randint(0, C, (T, *shape))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("positions", [(), (4,), (2, 3)], ids=str)
def test_cross_entropy(positions, smoothing):
    op = CrossEntropy(label_smoothing=smoothing)

    def plain(x, y):
        return F.cross_entropy(x, y, label_smoothing=smoothing)

    check_op(op, plain, 3 * randn(T, N, C, *positions), labels(N, *positions))


@pytest.mark.parametrize("ignored", [-100, 2, -1, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("positions", [(), (4,)], ids=str)
def test_cross_entropy_with_ignored_labels(positions, smoothing, ignored):
    y = labels(N, *positions)
    y[:, 1] = ignored
    y[0, 3] = ignored  # another number of samples in every task
    op = CrossEntropy(smoothing, ignored)

    def plain(x, y):
        return F.cross_entropy(x, y, ignore_index=ignored, label_smoothing=smoothing)

    check_op(op, plain, randn(T, N, C, *positions), y)


def test_cross_entropy_of_a_task_without_labels_is_nan_as_in_pytorch():
    x, y = randn(T, N, C), labels(N)
    y[1] = -100
    loss, _ = CrossEntropy().forward(x, y)
    assert F.cross_entropy(x[1], y[1]).isnan()
    assert loss.isnan().tolist() == [False, True, False]


def test_cross_entropy_of_huge_and_masked_logits():
    x = 1e4 * randn(T, N, C)
    x[..., 0] = -torch.inf
    y = labels(N).clamp(min=1)
    loss, saved = CrossEntropy().forward(x, y)
    torch.testing.assert_close(loss, torch.stack([F.cross_entropy(a, b) for a, b in zip(x, y, strict=True)]))
    (dx, _) = CrossEntropy().backward(saved, torch.ones_like(loss), (True, False))
    assert dx is not None
    assert dx.isfinite().all()


@pytest.mark.parametrize("shape", [(N, 7), (N, 1), (N,), (N, 2, 3)], ids=str)
def test_mse(shape):
    check_op(MSE(), F.mse_loss, randn(T, *shape), randn(T, *shape))


def swept_forward(op):
    """What both forward sweeps leave, one for each task, and the inputs that want a gradient."""
    y = labels(N) if isinstance(op, CrossEntropy) else randn(T, N, C)
    loss, saved = op.forward(randn(T, N, C), y)
    _, saved_dot = op.forward_dot(saved, (randn(T, N, C), None))
    return saved, saved_dot, torch.ones_like(loss), (True, False)


@pytest.mark.parametrize("op", [CrossEntropy(0.1), MSE()], ids=["cross_entropy", "mse"])
def test_a_cotangent_without_tangent_counts_as_zero(op):
    saved, saved_dot, dy, needs = swept_forward(op)
    absent = op.backward_dot(saved, saved_dot, dy, None, needs)[0]
    zero = op.backward_dot(saved, saved_dot, dy, torch.zeros_like(dy), needs)[0]
    assert torch.equal(absent, zero)


@pytest.mark.parametrize("op", [CrossEntropy(0.1), MSE()], ids=["cross_entropy", "mse"])
def test_no_cotangent_stands_for_one_a_task(op):
    saved, saved_dot, one, needs = swept_forward(op)
    assert torch.equal(op.backward(saved, None, needs)[0], op.backward(saved, one, needs)[0])
    implied, given = (op.backward_dot(saved, saved_dot, dy, None, needs)[0] for dy in (None, one))
    assert torch.equal(implied, given)


# --- a whole module --------------------------------------------------------------------------------------------------


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, C)
    )


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, C), nn.Softplus())


MODULES = {"conv net": (conv_net, (1, 5, 7)), "mlp": (mlp, (6,))}


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), MSE()], ids=["cross_entropy", "mse"])
@pytest.mark.parametrize("name", MODULES)
def test_hessian_is_symmetric_and_the_derivative_of_the_gradient(name, loss):
    make, shape = MODULES[name]
    module = make().double()
    x = randn(T, N, *shape)
    y = labels(N) if isinstance(loss, CrossEntropy) else randn(T, N, C)
    program = Program(module)
    objective = Objective(program.plan(x), loss, program.layout, program.shared, targets_wanted=(False,))
    context = Context((), program.constants(), task_keys(0, T, x.device))
    data = Data((x,), (y,))
    live = program.layout.pack([torch.ones(T, *s, dtype=x.dtype) for s in program.layout.shapes], T)  # no padding
    phi, u, v = (randn(T, program.layout.size) * live for _ in range(3))

    def gradient(phi):
        return objective.gradient(objective.evaluate(phi, data, context), data)[0].phi

    def product(v):
        at = objective.evaluate(phi, data, context)
        return objective.hessian_product(at, data, objective.gradient(at, data, keep=True)[1], v).phi

    hv, hu = product(v), product(u)
    assert (hv.norm(dim=1) > 0.1).all()
    torch.testing.assert_close((u * hv).sum(1), (v * hu).sum(1), rtol=1e-10, atol=1e-12)
    step = 1e-6
    torch.testing.assert_close(
        hv, (gradient(phi + step * v) - gradient(phi - step * v)) / (2 * step), rtol=1e-5, atol=1e-6
    )
