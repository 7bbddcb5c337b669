"""Sample weights and distilled data: public implementations' gradients, and what users do with them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from golden_algorithms import WAYS, batch_of, case_of, deviation, golden_in_every_way
from interface import check_as_reference
from meta_steps import classification, mlp, regression
from torch import nn

import fastmeta


def maml(case, algorithm=fastmeta.MAML, **options):
    rule = fastmeta.SGD(lr=case.spec["inner"]["lr"])
    return algorithm(case.model(), inner_optimizer=rule, inner_steps=case.spec["steps"], **options)


def weighing(case, **options):
    return maml(case, inner_loss=fastmeta.weighted(F.cross_entropy), outer_loss=F.cross_entropy, **options)


@golden_in_every_way("sample_weights*", compiled={"sample_weights_k3"})
def test_weights_as_public_implementations(name, way):
    case = case_of(name)
    learner, weights = weighing(case, **WAYS[way]), case.extra["sample_weights"].clone().requires_grad_()
    x, y, *query = batch_of(case)
    out = learner(x, (y, weights), *query)
    out.loss.backward()
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    assert deviation({"sample_weights": weights.grad}, case.grad_extra) < 1e-10
    assert deviation({n: p.grad for n, p in learner.module.named_parameters()}, case.grad) < 1e-10
    assert deviation(learner.adapt(x, (y, weights)).parameters(), case.adapted) < 1e-10


def test_weights_that_are_normalised_are_another_loss():
    case = case_of("sample_weights_k3")
    weights = case.extra["sample_weights"]
    learner = weighing(case)
    x, y, *query = batch_of(case)
    learner(x, (y, weights / weights.mean(1, keepdim=True)), *query).loss.backward()
    assert deviation({n: p.grad for n, p in learner.module.named_parameters()}, case.grad) > 1e-3


def test_a_network_rates_the_samples():
    torch.manual_seed(0)
    rater = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()).double()
    model, batch = mlp(2, 5, 1), regression()
    found = {}
    for backend in ("torch", "reference"):
        rater.zero_grad()
        learner = fastmeta.MAML(
            model, inner_loss=fastmeta.weighted(F.mse_loss), outer_loss=F.mse_loss, inner_steps=3, backend=backend,
            inner_optimizer=fastmeta.SGD(lr=0.2),
        )  # fmt: skip
        targets = batch.support_y, rater(batch.support_x).squeeze(-1)
        learner(batch.support_x, targets, batch.query_x, batch.query_y).loss.backward()
        found[backend] = {name: p.grad.clone() for name, p in rater.named_parameters()}
    assert all(g.norm() > 0 for g in found["torch"].values())
    assert deviation(found["torch"], found["reference"]) < 1e-10


def test_weighted_losses_of_many_kinds():
    y, target = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5])
    want = (weights * (y - target).square().mean((1, 2))).mean()
    for loss in (F.mse_loss, nn.MSELoss(reduction="none"), lambda a, b: (a - b).square()):
        torch.testing.assert_close(fastmeta.weighted(loss)(y, (target, weights)), want)
    with pytest.raises(TypeError, match=r"weighted\(loss\) takes \(targets, weights\) as targets, .* got Tensor"):
        fastmeta.weighted(F.mse_loss)(y, target)
    with pytest.raises(ValueError, match="needs a loss of each sample"):
        fastmeta.weighted(nn.MSELoss())(y, (target, weights))
    with pytest.raises(ValueError, match=r"weights must be \[4\], one a sample, got \[3\]"):
        fastmeta.weighted(F.mse_loss)(y, (target, weights[:3]))
    with pytest.raises(TypeError, match="loss must be callable"):
        fastmeta.weighted(nn.MSELoss)


@golden_in_every_way("data_gradient*", compiled={"data_gradient_k2"})
def test_distilled_data_as_public_implementations(name, way):
    case = case_of(name)
    x, y, *query = batch_of(case)
    learner = maml(
        case, fastmeta.Distillation, support_x=x, support_y=y, learn_labels=True, per_task=True, inner_loss=F.mse_loss,
        **WAYS[way],
    )  # fmt: skip
    out = learner(*query)
    out.loss.backward()
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    got = {"support_x": learner.learned.x.grad, "support_y": learner.learned.y.grad}
    assert deviation(got, case.grad_extra) < 1e-10
    assert deviation({n: p.grad for n, p in learner.module.named_parameters()}, case.grad) < 1e-10
    assert deviation(learner.adapt().parameters(), case.adapted) < 1e-10


def distilling(model=None, **options):
    torch.manual_seed(0)
    x = torch.randn(3, 2, dtype=torch.float64)
    options = {"support_x": x, "support_y": torch.arange(3), "inner_steps": 2} | options
    model = mlp(2, 5, 3) if model is None else model
    return fastmeta.Distillation(model, inner_optimizer=fastmeta.SGD(lr=0.3), **options)


@pytest.mark.parametrize("soft", [False, True])
def test_one_set_for_all_tasks(soft):
    """The gradient of a shared set is that of the same set handed to every task, summed."""
    query = classification(2, tasks=4)[2:]
    labels = torch.softmax(torch.randn(3, 3, dtype=torch.float64), 1) if soft else torch.arange(3)
    learner = distilling(support_y=labels, learn_labels=soft)
    learner(*query).loss.backward()
    each = learner.learned.x.detach().expand(4, -1, -1).clone().requires_grad_()
    targets = labels.expand(4, *labels.shape).clone().requires_grad_(soft)
    plain = fastmeta.MAML(learner.module, inner_optimizer=fastmeta.SGD(lr=0.3), inner_steps=2, backend="reference")
    plain(each, targets, *query).loss.backward()
    torch.testing.assert_close(learner.learned.x.grad, each.grad.sum(0), rtol=1e-10, atol=1e-12)
    if soft:
        torch.testing.assert_close(learner.learned.y.grad, targets.grad.sum(0), rtol=1e-10, atol=1e-12)


def test_a_learned_set_gets_better_and_is_saved():
    torch.manual_seed(1)
    learner, truth = distilling(inner_steps=5), nn.Linear(2, 3).double()
    x = torch.randn(1, 60, 2, dtype=torch.float64)
    y = truth(x).argmax(2)
    optimizer = torch.optim.Adam(learner.learned.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        out = learner(x, y)
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert sorted(name for name in learner.state_dict() if "learned" in name) == ["learned.x", "learned.y"]
    other = distilling(copy.deepcopy(learner.module), inner_steps=5)
    other.load_state_dict(learner.state_dict())
    torch.testing.assert_close(other(x, y).loss, learner(x, y).loss)
    torch.testing.assert_close(copy.deepcopy(learner)(x, y).loss, learner(x, y).loss)


def test_learned_rates_beside_a_learned_set():
    learner = fastmeta.Distillation(
        mlp(2, 5, 3), inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.3)), inner_steps=2,
        support_x=torch.randn(3, 2, dtype=torch.float64), support_y=torch.arange(3),
    )  # fmt: skip
    learner(*classification(2)[2:]).loss.backward()
    assert learner.learned["support"].x.grad.norm() > 0
    assert learner.learned["rule"].values.grad.norm() > 0
    learner.inner_optimizer = fastmeta.SGD(lr=0.1)
    assert isinstance(learner.learned, fastmeta.SupportSet)


def test_sets_that_do_not_fit():
    with pytest.raises(TypeError, match=r"support_x must be a tensor \[N, ...\] of floating point, got int64 \[3, 2\]"):
        distilling(support_x=torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"support_y must be a tensor \[N, ...\] with as many samples as support_x"):
        distilling(support_y=torch.arange(4))
    with pytest.raises(ValueError, match="learn_labels=True needs support_y of floating point"):
        distilling(learn_labels=True)
    with pytest.raises(ValueError, match="first_order=True: inner gradients as constants"):
        distilling(first_order=True)
    learner = distilling(support_x=torch.randn(2, 3, 2).double(), support_y=torch.arange(3).repeat(2, 1), per_task=True)
    with pytest.raises(ValueError, match="query_x holds 4 tasks, and the learned support set is of 2 tasks"):
        learner(*classification(2, tasks=4)[2:])
    with pytest.raises(TypeError, match="query_x must hold tensors"):
        learner(None)


def test_the_data_interface_agrees_with_the_reference():
    batch = regression()
    learner = fastmeta.MAML(mlp(2, 5, 1), inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.2), inner_steps=3)
    check_as_reference(learner, batch, data=(batch.support_x.requires_grad_(), batch.support_y.requires_grad_()))
