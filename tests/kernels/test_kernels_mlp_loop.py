"""Perceptrons on Triton kernels through the public API, in interpreter mode or on a GPU, against float64 truth."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import (
    DEVICE,
    assert_as_good_as_torch,
    check_any_order,
    check_golden,
    check_smoothed_and_ignored_labels,
    needs_kernels,
)
from meta_steps import classification, mlp, regression
from perceptrons import CASES, LOOP_SHAPES, float_batch, learner_of
from torch import nn

import fastmeta

pytestmark = needs_kernels


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", CASES)
def test_regression(name):
    widths, activation, options = CASES[name]
    batch = regression(features=widths[0], outputs=widths[-1])
    assert_as_good_as_torch(mlp(*widths, activation=activation), batch, inner_loss=F.mse_loss, **options)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@pytest.mark.parametrize("name", LOOP_SHAPES)
def test_classification(name):
    shape = LOOP_SHAPES[name]
    model = mlp(*shape.widths, activation=Sine if len(shape.widths) < 9 else nn.Tanh)
    assert_as_good_as_torch(model, shape.batch(), **shape.options())


def test_smoothed_and_ignored_labels():
    check_smoothed_and_ignored_labels()


def test_layers_without_bias_and_images():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)).double()
    assert_as_good_as_torch(model, classification(3, 2, 2), inner_loss=F.cross_entropy)


@pytest.mark.golden("[!c]*")  # all but Conv4
def test_golden(golden):
    check_golden(golden)


def test_a_diverging_task_is_left_out():
    batch = float_batch()
    learner = learner_of()
    batch[0][1] = float("inf")
    with (
        pytest.warns(RuntimeWarning, match=r"non-finite values in task\(s\) \[1\]")
        if DEVICE == "cpu"
        else contextlib.nullcontext()
    ):
        out = learner(*batch)
    assert out.finite.tolist() == [True, False, True]
    out.loss.backward()
    got = [p.grad.clone() for p in learner.module.parameters()]
    learner.zero_grad()
    learner(*[x[[0, 2]] for x in batch]).loss.backward()
    for g, p in zip(got, learner.module.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [F.mse_loss, lambda y, t: (y - t).abs().mean()])
def test_evaluation_keeps_no_gradient_and_finds_what_diverged(loss):
    batch, learner = float_batch(), learner_of(outer_loss=loss)
    with torch.no_grad():
        out = learner(*batch)
        losses = learner(*batch).task_losses
    assert torch.equal(out.task_losses, losses)
    assert not out.loss.requires_grad
    assert torch.equal(learner(*batch).task_losses, losses)
    batch[1][2] = float("nan")
    warned = pytest.warns(RuntimeWarning, match="non-finite") if DEVICE == "cpu" else contextlib.nullcontext()
    with torch.no_grad(), warned:
        assert learner(*batch).finite.tolist() == [True, True, False]


def test_explain_names_the_kernels():
    learner = learner_of()
    assert "chosen" not in learner.explain()
    learner(*float_batch())
    text = learner.explain()
    assert "backend: triton (asked for)" in text
    assert text.count("Triton kernels of mlp_loop") == 8  # three ops and a loss, in the inner loop and the query pass


def test_gradients_of_task_losses_and_learners():
    batch = float_batch()
    learner = learner_of()
    weights = torch.tensor([0.2, -1.0, 3.0], device=DEVICE)

    def gradients(learner):
        learner.zero_grad()
        (learner(*batch).task_losses * weights).sum().backward()
        first = torch.cat([p.grad.flatten() for p in learner.module.parameters()])
        learner.zero_grad()
        (learner.adapt(*batch[:2])(batch[2]) ** 2).sum().backward()
        return first, torch.cat([p.grad.flatten() for p in learner.module.parameters()])

    got = gradients(learner)
    want = gradients(fastmeta.MAML(learner.module, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1),
                                   inner_steps=2, backend="torch"))  # fmt: skip
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_launches_of_a_meta_step_do_not_depend_on_steps_tasks_or_depth(monkeypatch):
    from fastmeta.kernels import launch

    names, run = [], launch.run
    monkeypatch.setattr(launch, "run", lambda kernel, *rest: (names.append(kernel.__name__), run(kernel, *rest)))
    for steps, tasks in ((1, 1), (3, 2)):
        names.clear()
        learner_of(inner_steps=steps)(*float_batch(tasks=tasks))
        assert names == ["adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"]


def test_programs_may_run_in_any_order_and_give_the_same_bits(monkeypatch):
    batch, learner = float_batch(tasks=5), learner_of()
    check_any_order(monkeypatch, learner, batch)


@pytest.mark.parametrize(
    "model, options, reason",
    [
        (lambda: nn.Sequential(nn.Linear(2, 1), nn.ELU()), {}, "no kernel for the activation elu"),
        (lambda: mlp(2, 1025), {}, "1025 outputs, the kernels take up to 1024"),
        (lambda: nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1)), {}, "no kernel for norm here"),
        (lambda: mlp(2, 1), {"inner_loss": F.l1_loss}, "the kernels have cross-entropy and mean squared error"),
    ],
)
def test_what_no_kernel_takes_is_refused_by_name(model, options, reason):
    learner = learner_of(**options)
    learner.module = model().to(DEVICE, torch.float32)
    batch = float_batch(outputs=1025 if reason.startswith("1025") else 1)
    with pytest.raises(RuntimeError, match=rf'backend="triton": .*{reason}.*Use backend="auto" or "torch"'):
        learner(*batch)
    learner.backend = "auto"
    learner(*batch).loss.backward()
    if DEVICE == "cuda":
        assert reason in learner.explain()


def test_inputs_that_lie_crooked_in_memory():
    """Transposed, or starting beside a 16-byte boundary, on which kernels like to load."""
    batch = float_batch(support=8, query=8)
    learner = learner_of()
    want = learner(*batch).task_losses

    def crooked(x):
        room = torch.empty(x.numel() + 1, device=x.device)[1:].view_as(x)
        assert room.data_ptr() % 16 == 4
        return room.copy_(x)

    assert torch.equal(learner(*map(crooked, batch)).task_losses, want)
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in batch]
    assert not transposed[0].is_contiguous()
    assert torch.equal(learner(*transposed).task_losses, want)


def test_too_little_memory_on_chip_is_said_clearly():
    from fastmeta.kernels import launch
    from triton.runtime.errors import OutOfResources

    class Kernel:
        __name__ = "adapt_kernel"

        def __getitem__(self, grid):
            raise OutOfResources(170_000, 101_376, "shared memory")

    with pytest.raises(
        RuntimeError, match=r'adapt_kernel needs 170000 of shared memory, .* 101376: use backend="torch"'
    ):
        launch.launch(Kernel(), (1,))


def test_float64_is_refused():
    learner = learner_of()
    learner.double()
    with pytest.raises(RuntimeError, match="kernels take float32 parameters, these are float64"):
        learner(*[x.double() for x in float_batch()])


@pytest.mark.usefixtures("poison")
def test_a_learning_rate_for_every_step_and_parameter():
    """What a learned learning rate will need: [K, P] rates, in the step and in its adjoint."""
    from fastmeta.kernels.mlp import MLP, Chain, InnerRule, LossRule

    chain = Chain(dims=(2, 5, 3), w_at=(0, 20), b_at=(12, 36), acts=(6, 0), args=(0.0,) * 4, size=40)  # tanh
    kernels = MLP(chain, InnerRule("sgd", (0.0, 0.0, 0.0), 2, None), LossRule("mse"), "float32")
    x, y, qx, qy = float_batch(tasks=2, features=2, outputs=3)
    theta = torch.zeros(chain.size, device=DEVICE)
    used = torch.cat([torch.arange(0, 10), torch.arange(12, 17), torch.arange(20, 35), torch.arange(36, 39)])
    theta[used] = torch.randn(len(used), device=DEVICE) / 2
    lr = torch.rand(2, chain.size, device=DEVICE) / 3

    def loss(phi, x, y):
        w0, b0, w1, b1 = phi[:10].view(5, 2), phi[12:17], phi[20:35].view(3, 5), phi[36:39]
        return F.mse_loss(torch.tanh(x @ w0.T + b0) @ w1.T + b1, y)

    want = []
    for task in range(2):
        start = theta.double().requires_grad_()
        phi = start
        for k in range(2):
            (g,) = torch.autograd.grad(loss(phi, x[task].double(), y[task].double()), phi, create_graph=True)
            phi = phi - lr[k].double() * g
        want.append(torch.autograd.grad(loss(phi, qx[task].double(), qy[task].double()), start)[0])

    adapted = kernels.adapt([theta], x, y, keep=True, rates=lr)
    lam = torch.empty(2, chain.size, device=DEVICE)
    kernels.apply(adapted, 2, qx, qy, LossRule("mse"), lam=lam)
    kernels.adjoint(adapted, lam, x, y, rates=lr)
    torch.testing.assert_close(lam[:, used].double(), torch.stack(want)[:, used], rtol=1e-5, atol=1e-6)


def test_rows_of_more_values_than_32_bits_count():
    """θ lies behind R sets of T rows of P values."""
    import triton
    import triton.language as tl
    from fastmeta.kernels.launch import launch
    from fastmeta.kernels.mlp_loop import phi_row

    @triton.jit(do_not_specialize=["T", "R"])
    def place_kernel(p_at, T, R, P: tl.constexpr, ROW: tl.constexpr):
        i_task = tl.program_id(0).to(tl.int64)
        tl.store(p_at + i_task, ROW(0, i_task, T, R) * P)

    at = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    launch(place_kernel, (2,), at, 10_000, 2, P=132_000, ROW=phi_row)
    assert at.tolist() == [2 * 10_000 * 132_000] * 2
