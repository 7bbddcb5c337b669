"""iMAML: public implementations' meta-gradients, what is said of its accuracy, and what does not go together."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from golden_algorithms import WAYS, batch_of, case_of, check_case, golden_in_every_way
from golden_cases import LOSSES
from interface import check_as_reference, sharing
from meta_steps import Batch, mlp, regression, step
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Implicit, conjugate_gradients


def golden(case, *, dtype=torch.float64, **options):
    options = {"strength": case.spec["lam"], "cg_steps": case.spec["cg_iterations"] or 60} | options
    return fastmeta.IMAML(
        case.model().to(dtype), inner_loss=LOSSES[case.spec["loss"]], inner_steps=case.spec["steps"],
        inner_optimizer=fastmeta.SGD(lr=case.spec["inner"]["lr"]), **options,
    )  # fmt: skip


@golden_in_every_way("imaml*", compiled={"imaml_cg5"})
def test_as_public_implementations(name, way):
    case = case_of(name)
    check_case(case, golden(case, **WAYS[way]), batch_of(case))


@pytest.mark.parametrize("name", ["imaml_cg5", "imaml_exact"])
def test_in_float32(name):
    case = case_of(name)
    batch = [x.float() if x.is_floating_point() else x for x in batch_of(case)]
    check_case(case, golden(case, dtype=torch.float32, backend="torch"), batch, tolerance=5e-5)


@pytest.mark.parametrize("adjoint", [
    Implicit(1e9, 5),  # no linear solve
    Implicit(12.0 * 2, 5),  # the authors' system, up to a factor: (1 + 1) I + H / (λ + 10)
    Implicit(2.0, 1),
])  # fmt: skip
def test_no_case_passes_under_another_system(adjoint):
    for name in ("imaml_cg5", "imaml_exact"):
        case = case_of(name)
        learner = golden(case)
        learner.adjoint = adjoint
        with pytest.raises(AssertionError, match="gradient"):
            check_case(case, learner, batch_of(case), tolerance=1e-2)


def small(model=None, algorithm=fastmeta.IMAML, **options):
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.2), "inner_steps": 3} | options
    return algorithm(mlp(2, 5, 1) if model is None else model, **options)


@pytest.mark.parametrize("rule", [
    fastmeta.SGD(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.1), fastmeta.Adam(lr=0.05),
])  # fmt: skip
def test_shared_parameters_and_data(rule):
    """Both get what inner gradients say of them, by the system's solution."""
    learner = small(algorithm=sharing("0.", algorithm=fastmeta.IMAML), strength=1.5, inner_optimizer=rule)
    batch = regression()
    data = (batch.support_x.requires_grad_(), batch.support_y.requires_grad_(), batch.query_x.requires_grad_())
    got = check_as_reference(learner, batch, data=data)
    learner.adjoint = fastmeta.engine.adjoint.Identity()
    first = check_as_reference(learner, batch, data=data)
    assert (first["data 0"] - got["data 0"]).norm() > 0.05 * got["data 0"].norm()


def test_a_loss_that_learns_runs_in_the_plain_loop():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def forward(self, y, target):
            return (self.scale * (y - target).square()).mean()

    learner = small(inner_loss=Learned(), outer_loss=F.mse_loss, backend="reference", cg_steps=40, inner_steps=160)
    batch = regression(tasks=2)

    def loss_at(shift):
        moved = copy.deepcopy(learner)
        with torch.no_grad():
            moved.inner_loss.scale += shift
            return moved(*batch).loss.item()

    learner(*batch).loss.backward()
    slope = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4
    assert learner.stationarity.max() < 1e-8
    assert abs(learner.inner_loss.scale.grad.item() - slope) < 1e-5 * abs(slope)


def test_it_is_the_derivative_of_the_solution_where_that_is_reached():
    learner, batch = small(inner_steps=160, cg_steps=40, strength=2.0), regression(tasks=2)
    learner(*batch).loss.backward()
    assert learner.residual.max() < 1e-12
    assert learner.stationarity.max() < 1e-12
    direction = {name: torch.randn_like(p) for name, p in learner.module.named_parameters()}
    slope = sum((p.grad * direction[name]).sum() for name, p in learner.module.named_parameters())

    def loss_at(length):
        moved = copy.deepcopy(learner)
        with torch.no_grad():
            for name, p in moved.module.named_parameters():
                p.add_(direction[name], alpha=length)
            return moved(*batch).loss

    assert abs((loss_at(1e-4) - loss_at(-1e-4)) / 2e-4 - slope) < 1e-6 * abs(slope)


def test_what_it_says_of_its_accuracy():
    model, batch, found = mlp(2, 5, 1), regression(tasks=3), {}
    for backend in ("torch", "reference"):
        learner = small(model, cg_steps=2, backend=backend)
        assert learner.residual is None
        learner(*batch)
        found[backend] = learner.residual, learner.stationarity
        assert learner.residual.shape == (3,)
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    tighter = small(model, cg_steps=4)
    tighter(*batch)
    assert (tighter.residual < found["torch"][0]).all()
    with torch.no_grad():
        phi = tighter.adapt(*batch[:2]).module(1)
    loss = F.mse_loss(phi(batch.support_x[1]), batch.support_y[1])
    distance = zip(phi.parameters(), tighter.module.parameters(), strict=True)
    loss = loss + tighter.strength / 2 * sum((p - q.detach()).square().sum() for p, q in distance)
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(phi.parameters()))]).norm()
    torch.testing.assert_close(tighter.stationarity[1], norm)


def test_a_task_that_diverged_says_nothing():
    batch = regression(tasks=3)
    batch.support_x[1] = math.nan
    for backend in ("torch", "reference"):
        learner = small(backend=backend)
        with pytest.warns(RuntimeWarning, match=r"task\(s\) \[1\]"):
            learner(*batch).loss.backward()
        assert learner.residual.isnan().tolist() == [False, True, False]
        alone = small(learner.module)
        grads = [p.grad.clone() for p in learner.module.parameters()]
        learner.zero_grad()
        alone(*Batch(*(x[[0, 2]] for x in batch))).loss.backward()
        for p, g in zip(learner.module.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_without_inner_steps_it_is_maml(backend):
    model, batch = mlp(2, 5, 1), regression()
    got = step(small(model, inner_steps=0, backend=backend), batch)
    want = step(small(model, fastmeta.MAML, inner_steps=0, backend=backend), batch)
    assert all(torch.equal(g, want.grads[name]) for name, g in got.grads.items())


def test_solved_rows_stay_and_none_disturbs_another():
    torch.manual_seed(0)
    root = torch.randn(4, 6, 6, dtype=torch.float64)
    matrix = torch.eye(6, dtype=torch.float64) + root @ root.transpose(1, 2)
    matrix[0] = torch.eye(6)  # solved after one step
    b = torch.randn(4, 6, dtype=torch.float64)
    b[1] = 0.0
    b[2] = math.nan

    def product(v):
        return (matrix @ v.unsqueeze(-1)).squeeze(-1)

    for steps in (1, 6, 50):
        x, residual = conjugate_gradients(product, b, steps)
        torch.testing.assert_close(x[0], b[0])
        assert (x[1] == 0).all()
        assert x[2].isnan().all()
        torch.testing.assert_close(residual[3], (b[3] - product(x)[3]).norm() / b[3].norm(), rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(x[3], torch.linalg.solve(matrix[3], b[3]))


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="first_order=True: IMAML has no first-order form"):
        small(first_order=True)
    for strength in (0, -1.0, math.inf, math.nan, "2", True):
        with pytest.raises(ValueError, match="strength must be a positive number"):
            small(strength=strength)
    with pytest.raises(ValueError, match="cg_steps must be an integer of at least 1, got 0"):
        small(cg_steps=0)
    with pytest.raises(TypeError, match=r"cg_steps must be an integer of at least 1, got 2\.0"):
        small(cg_steps=2.0)
    with pytest.raises(ValueError, match="inner_batch_size must be None"):
        small(inner_batch_size=2)
    with pytest.raises(ValueError, match="PerParameter has no gradient under Implicit"):
        small(inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)))

    class EveryStep(fastmeta.IMAML):
        def weights(self, steps):
            return [1.0] * (steps + 1)

    batch = regression()
    for backend in ("torch", "reference"):
        with pytest.raises(ValueError, match=r"counts the query losses at steps \[0, 1, 2, 3\], and an implicit"):
            small(algorithm=EveryStep, backend=backend)(*batch)
    learners = small().adapt(*batch[:2])
    with pytest.raises(ValueError, match="adapt_further has no implicit meta-gradient"):
        learners.adapt_further(*batch[:2])
    learner = small(backend="reference")
    loss = learner(*batch).loss
    with pytest.raises(RuntimeError, match="solved for, not recorded"):
        torch.autograd.grad(loss, list(learner.module.parameters()), create_graph=True)


def test_it_is_copied_and_explained():
    learner, batch = small(strength=3.0, cg_steps=2), regression()
    twin = copy.deepcopy(learner)
    assert (twin.strength, twin.cg_steps) == (3.0, 2)
    torch.testing.assert_close(twin(*batch).loss, learner(*batch).loss)
    assert "IMAML, 3 inner step(s)" in learner.explain()
