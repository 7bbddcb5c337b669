"""Online adaptation: each chunk is scored before the step on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_algorithms import WAYS
from golden_cases import ALGORITHMS, LOSSES, cases
from interface import grads_of
from meta_steps import classification, mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.query import QueryPass
from fastmeta.models import PerStepBatchNorm


def golden(dtype=torch.float64, **options):
    (case,) = cases("online_chunks_k4", ALGORITHMS)
    spec = case.spec
    learner = fastmeta.Online(
        case.model().to(dtype), chunk=spec["chunk"], moves=spec["adapted"], inner_loss=LOSSES[spec["loss"]],
        inner_optimizer=fastmeta.SGD(lr=spec["inner"]["lr"]), **options,
    )  # fmt: skip
    return case, learner, (case["support_x"].to(dtype), case["support_y"])


def error(case, learner, batch):
    learner.zero_grad()
    learner(*batch).loss.backward()
    return relative({n: p.grad for n, p in learner.module.named_parameters()}, case.grad)


@pytest.mark.parametrize("way", WAYS)
def test_golden(way):
    case, learner, batch = golden(**WAYS[way])
    out = learner(*batch)
    assert abs(out.loss.item() - case["loss"].item()) < 1e-10
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    assert error(case, learner, batch) < 1e-10
    assert relative(learner.adapt(*batch, steps=case.spec["steps"]).parameters(), case.adapted) < 1e-10


def test_golden_in_float32():
    assert error(*golden(torch.float32, backend="torch")) < 5e-5


def test_the_case_does_not_pass_with_a_mistake(monkeypatch):
    assert error(*golden(backend="torch", first_order=True)) > 0.1
    with monkeypatch.context() as patch:  # each chunk scored after the step on it, the last twice
        seen = QueryPass._seen
        patch.setattr(QueryPass, "_seen", lambda self, k: seen(self, max(k - 1, 0)))
        assert error(*golden(backend="torch")) > 1e-2


@pytest.mark.parametrize("way", ["eager", "recompute", "chunked"])
@pytest.mark.parametrize("first_order", [False, True])
def test_as_the_reference(way, first_order):
    """Some parameters shared, momentum, gradients of the data, outputs of every chunk."""
    x, y, *_ = regression(support=8)
    x.requires_grad_()
    learner = fastmeta.Online(
        mlp(2, 5, 4, 1), chunk=2, moves=["2", "4.bias"], inner_loss=F.mse_loss, first_order=first_order,
        inner_optimizer=fastmeta.SGD(lr=0.2, momentum=0.5), **WAYS[way],
    )  # fmt: skip
    got, outputs = grads_of(learner, (x, y), [x]), learner(x, y).outputs
    learner.backend = "reference"
    assert relative(got, grads_of(learner, (x, y), [x])) < 1e-10
    assert relative(outputs, learner(x, y).outputs) < 1e-12
    assert outputs.shape == (3, 8, 1)
    assert set(learner.adapt(x, y).parameters()) == {"2.weight", "2.bias", "4.bias"}


def test_outputs_are_those_of_learners_before_each_step():
    x, y, *_ = classification(4, support=6)
    learner = fastmeta.Online(mlp(4, 5, 3), chunk=2, inner_optimizer=fastmeta.SGD(lr=0.5), backend="torch")
    out = learner(x, y)
    losses = []
    for k in range(3):
        here = slice(2 * k, 2 * k + 2)
        logits = learner.adapt(x, y, steps=k)(x[:, here])
        assert relative(out.outputs[:, here], logits) < 1e-13
        losses.append(torch.stack([F.cross_entropy(logits[t], y[t, here]) for t in range(2)]))
    torch.testing.assert_close(out.task_losses, torch.stack(losses).mean(0))
    torch.testing.assert_close(
        learner.adapt(x, y).parameters(), learner.adapt(x, y, steps=3).parameters(), rtol=0.0, atol=0.0
    )


def test_one_chunk_is_the_plain_loss():
    x, y, *_ = regression(support=4)
    learner = fastmeta.Online(mlp(2, 3, 1), chunk=4, inner_loss=F.mse_loss, backend="torch")
    torch.testing.assert_close(learner(x, y).loss, F.mse_loss(learner.module(x), y))


@pytest.mark.proof
def test_the_proof_takes_it():
    x, y, *_ = regression(support=6)
    learner = fastmeta.Online(mlp(2, 3, 1), chunk=2, inner_loss=F.mse_loss)
    learner(x, y)
    assert "off plain autograd" in learner.explain()
    assert "a query loss of 2 samples at each inner step" in learner.explain()


@pytest.mark.parametrize("moves", [["0", "3"], ["3"]])
def test_a_module_that_reads_its_step(moves):
    """And normalises each chunk by itself, below an adapted head too."""
    norm = PerStepBatchNorm(5, 3)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn_like(norm.weight))
    model = nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()
    x, y, *_ = classification(4, support=12)
    learner = fastmeta.Online(model, chunk=4, moves=moves, inner_optimizer=fastmeta.SGD(lr=0.4), backend="torch")
    got = grads_of(learner, (x, y))
    learner.backend = "reference"
    assert relative(got, grads_of(learner, (x, y))) < 1e-10


def test_calls_and_options_that_do_not_fit():
    x, y, qx, qy = regression(support=7)
    learner = fastmeta.Online(mlp(2, 3, 1), chunk=2, inner_loss=F.mse_loss, backend="torch")
    with pytest.raises(ValueError, match=r"query_x and query_y must be left out.*adapt\(support_x, support_y\)"):
        learner(x, y, qx, qy)
    for call in (learner, learner.adapt):
        with pytest.raises(ValueError, match="whole chunks of 2 samples, got 7; pass 6 samples"):
            call(x, y)
    with pytest.raises(ValueError, match="moves: no parameter of the model is named 'head'"):
        fastmeta.Online(mlp(2, 1), chunk=1, moves=["0", "head"])
    for options in ({"inner_steps": 3}, {"inner_batch_size": 2}, {"outer_loss": F.mse_loss}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is no option of Online"):
            fastmeta.Online(mlp(2, 1), chunk=1, **options)
    with pytest.raises(ValueError, match="PerLayerPerStep has rates for a number of steps"):
        fastmeta.Online(mlp(2, 1), chunk=1, inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1)))
    with pytest.raises(ValueError, match='bn_statistics="support"'):
        fastmeta.Online(mlp(2, 1), chunk=1, bn_statistics="support")
    with pytest.raises(ValueError, match="chunk must be an integer of at least 1"):
        fastmeta.Online(mlp(2, 1), chunk=0)
    with pytest.raises(RuntimeError, match="the query loss counts at other steps"):
        fastmeta.Online(mlp(2, 1).float(), chunk=2, inner_loss=F.mse_loss, backend="triton")(
            x.float()[:, :6], y.float()[:, :6]
        )
