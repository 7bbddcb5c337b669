"""MAML++: the authors' whole system, each of its parts by itself, and MAML where all are left out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from golden_algorithms import WAYS as ALL_WAYS
from golden_cases import ALGORITHMS, LOSSES, cases, names
from interface import grads_of
from meta_steps import classification, mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.algorithms.maml_plus_plus import multi_step_weights
from fastmeta.engine import objective
from fastmeta.models import PerStepBatchNorm, conv4, per_step_batch_norm
from fastmeta.program.program import Program

WAYS = ALL_WAYS | {"chunked": {"backend": "torch", "task_chunk": 1}}  # of two tasks
COMPILED = {"mamlpp_conv_first_order_k2"}
OFF = {"multi_step_epochs": 0, "per_step_rates": False}


def golden(pattern):
    return [(n, w) for n in names(pattern, ALGORITHMS) for w in WAYS if w != "compiled" or n in COMPILED]


def system(name, dtype=torch.float64, **options):
    """The learner that a case of the authors' system describes, its batch, and what is expected."""
    (case,) = cases(name, ALGORITHMS)
    spec = case.spec
    model = per_step_batch_norm(case.model(), spec["steps"]) if "mamlpp" in name else case.model()
    multi_step = spec["msl_epochs"] if spec.get("multi_step_loss") or "msl" in name else 0
    settings = {
        "inner_loss": LOSSES[spec["loss"]], "inner_steps": spec["steps"], "first_order": spec.get("first_order", False),
        "multi_step_epochs": multi_step, "per_step_affine": "mamlpp" in name, "per_step_rates": "msl" not in name,
        "lr": spec["inner"]["lr"] if "msl" in name else 0.1,
    }  # fmt: skip
    learner = fastmeta.MAMLPlusPlus(model.to(dtype), **settings | options)
    learner.epoch = spec.get("epoch", 0)
    with torch.no_grad():
        for key, x in case.extra.items():
            place(learner, key).copy_(x)
    batch = [case[k].to(dtype) if case[k].is_floating_point() else case[k] for k in
             ("support_x", "support_y", "query_x", "query_y")]  # fmt: skip
    return learner, batch, case


def place(learner, key, grad=False):
    """The rate, γ or β that an array of a case is about, or its gradient."""
    kind, name = key.split("/")
    if kind == "alpha":
        values = learner.learned.values
        return (values.grad if grad else values.data)[:, learner.learned.names.index(name)]
    p = getattr(learner.module[int(name)], kind.removeprefix("bn_"))
    return p.grad if grad else p


def errors(learner, batch, case):
    """Relative, of the gradients of θ and of all else."""
    learner.zero_grad()
    learner(*batch).loss.backward()
    named = dict(learner.module.named_parameters())
    theta = relative({n: named[n].grad for n in case.grad}, case.grad)
    if not case.grad_extra:
        return theta, 0.0
    return theta, relative({key: place(learner, key, grad=True) for key in case.grad_extra}, case.grad_extra)


@pytest.mark.parametrize("name, way", golden("mamlpp*"))
def test_the_authors_system(name, way):
    learner, batch, case = system(name, **WAYS[way])
    out = learner(*batch)
    assert abs(out.loss.item() - case["loss"].item()) < 1e-10
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    assert max(errors(learner, batch, case)) < 1e-10
    phi = learner.adapt(*batch[:2]).parameters()
    assert relative(phi, case.adapted) < 1e-10


@pytest.mark.parametrize("name, way", golden("lslr_[ft]*"))
def test_learned_rates(name, way):
    """With `multi_step_epochs=0` and without layers of every step, the rest of MAML++ is LSLR."""
    learner, batch, case = system(name, **WAYS[way])
    assert max(errors(learner, batch, case)) < 1e-10


@pytest.mark.parametrize(
    "name", [*names("mamlpp*", ALGORITHMS), *names("lslr_[ft]*", ALGORITHMS), *names("msl*", ALGORITHMS)]
)
def test_in_float32(name):
    learner, batch, case = system(name, torch.float32, backend="torch")
    assert max(errors(learner, batch, case)) < 5e-5


@pytest.mark.parametrize("name", names("mamlpp*", ALGORITHMS))
def test_no_case_passes_with_a_mistake(name, monkeypatch):
    learner, batch, case = system(name, backend="torch")
    assert errors(learner, batch, case)[0] < 1e-10
    at, reading = objective.inner_step_at, objective.Context.at
    with monkeypatch.context() as patch:
        patch.setattr(objective, "inner_step_at", lambda like, step: at(like, 0))
        assert errors(learner, batch, case)[0] > 0.1
    last = learner.inner_steps - 1
    with monkeypatch.context() as patch:
        patch.setattr(objective.Context, "at", lambda self, k, plan, query=False: reading(self, min(k, last), plan))
        assert errors(learner, batch, case)[0] > 0.1
    other, batch, case = system(name, backend="torch", first_order=not case.spec["first_order"])
    assert errors(other, batch, case)[0] > 0.1
    learner.epoch = learner.multi_step_epochs
    assert errors(learner, batch, case)[0] > 1e-2


@pytest.mark.parametrize("name", [*names("msl*", ALGORITHMS), "lslr_tensor_k3"])
def test_nor_do_those_of_the_multi_step_loss_and_of_rates(name):
    learner, batch, case = system(name, backend="torch")
    assert max(errors(learner, batch, case)) < 1e-10
    if case.spec["algorithm"] == "msl":
        learner.epoch = learner.multi_step_epochs  # the last step alone
        assert errors(learner, batch, case)[0] > 0.05
    first, batch, case = system(name, backend="torch", first_order=True)
    assert errors(first, batch, case)[0] > 0.1


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("model", [lambda: mlp(2, 5, 1), lambda: nn.Sequential(
    nn.Linear(2, 5), PerStepBatchNorm(5, 3), nn.Tanh(), nn.Linear(5, 1)).double()], ids=["mlp", "norm"])  # fmt: skip
def test_without_all_parts_it_is_maml_to_the_bit(model, backend):
    model, batch = model(), regression()
    options = {"inner_loss": F.mse_loss, "inner_steps": 3, "backend": backend}
    plain = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=0.3), **options)
    plus = fastmeta.MAMLPlusPlus(model, lr=0.3, **OFF, **options)
    want, got = grads_of(plain, batch), grads_of(plus, batch)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], x) for name, x in want.items())
    assert plus.learned is None
    assert plus.weights(3) is None


def test_each_part_by_itself_changes_the_meta_gradient():
    model = per_step_batch_norm(nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)), 3)
    model, batch = model.double(), regression()
    options = {"inner_loss": F.mse_loss, "inner_steps": 3, "backend": "torch", "lr": 0.3}
    plain = grads_of(fastmeta.MAMLPlusPlus(model, **OFF, **options), batch)
    for part in ({"multi_step_epochs": 4}, {"first_order_epochs": 1}, {"per_step_affine": True}):
        found = grads_of(fastmeta.MAMLPlusPlus(model, **OFF | part, **options), batch)
        assert relative({n: found[n] for n in plain}, plain) > 1e-3, part
    rates = fastmeta.MAMLPlusPlus(model, **OFF | {"per_step_rates": True}, **options)
    assert grads_of(rates, batch)["learned.values"].abs().sum() > 0.1


def test_weights_of_the_multi_step_loss():
    """By the authors' formula: equal at first, and all but the last falling to 0.03 / K."""
    for name in names("msl*", ALGORITHMS):
        (case,) = cases(name, ALGORITHMS)
        found = multi_step_weights(case.spec["steps"], case.spec["epoch"], case.spec["msl_epochs"])
        assert found == pytest.approx(case.spec["weights"], rel=1e-12)
    for epoch in range(15):
        assert sum(multi_step_weights(5, epoch, 15)) == pytest.approx(1.0)
    assert multi_step_weights(5, 14, 15)[0] == pytest.approx(1 / 5 - 14 / 75)
    assert multi_step_weights(5, 15, 15)[0] == pytest.approx(0.006)
    assert multi_step_weights(1, 0, 15) == [1.0]


def test_the_epoch_says_what_is_annealed(monkeypatch):
    batch = regression()
    learner = fastmeta.MAMLPlusPlus(
        mlp(2, 5, 1), inner_loss=F.mse_loss, inner_steps=3, multi_step_epochs=4, first_order_epochs=6, epoch_length=10,
        backend="torch", per_step_rates=False,
    )  # fmt: skip
    planned, plan = [], Program.plan
    monkeypatch.setattr(Program, "plan", lambda self, *a, **o: planned.append(1) or plan(self, *a, **o))
    losses, plans = [], []
    for iteration in (0, 9, 10, 39, 40, 59, 60, 99):
        learner.at_iteration(iteration)
        losses.append(learner(*batch).loss.item())
        plans.append(len(planned))
    assert learner.epoch == 9
    assert losses[0] == losses[1]  # one epoch
    assert len(set(losses[1:5])) == 4  # the weights change from epoch to epoch, up to the fourth
    assert len(set(losses[4:])) == 1
    assert plans == [2, 2, 2, 2, 4, 4, 6, 6]  # the end of the multi-step loss, and that of first order
    exact = fastmeta.MAML(
        learner.module, inner_loss=F.mse_loss, inner_steps=3, inner_optimizer=fastmeta.SGD(lr=0.1), backend="torch"
    )
    assert relative(grads_of(learner, batch), grads_of(exact, batch)) == 0.0
    learner.epoch = 5
    first = fastmeta.MAML(
        learner.module, inner_loss=F.mse_loss, inner_steps=3, inner_optimizer=fastmeta.SGD(lr=0.1), backend="torch",
        first_order=True,
    )  # fmt: skip
    assert relative(grads_of(learner, batch), grads_of(first, batch)) == 0.0
    learner.epoch = 0
    assert learner.eval().weights(3) is None  # evaluation is by the last step
    assert learner.train().weights(0) is None


def test_checkpoints_and_copies_know_the_epoch():
    def make():
        return fastmeta.MAMLPlusPlus(mlp(2, 5, 1), inner_loss=F.mse_loss, inner_steps=2, first_order_epochs=3)

    learner, other = make(), make()
    learner.epoch = 2
    other.epoch = 7
    twin = copy.deepcopy(learner)
    other.load_state_dict(learner.state_dict())
    for found in (other, twin):
        assert found.epoch == 2
        assert found.options.adjoint == learner.options.adjoint
    batch = regression()
    assert relative(grads_of(other, batch), grads_of(learner, batch)) == 0.0


def test_the_outer_rate_falls_along_a_cosine():
    learner = fastmeta.MAMLPlusPlus(mlp(2, 5, 1), inner_loss=F.mse_loss)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    scheduler, rates = learner.scheduler(optimizer, 10), []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 1e-3
    assert rates[5] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[10] == pytest.approx(1e-5)


def running(steps=2):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Linear(6, 3))
    model = per_step_batch_norm(model, steps, statistics="running").double()
    learner = fastmeta.MAMLPlusPlus(
        model, inner_steps=steps, per_step_statistics=True, per_step_affine=True, lr=0.5, backend="torch"
    )
    return learner, classification(4, tasks=3, support=6, query=6)


def test_running_statistics_are_those_of_every_step():
    """Against a loop: step k sees the support set at φ_k and the query set at φ_{k+1}."""
    learner, batch = running()
    learner.update_statistics(batch.support_x, batch.support_y, batch.query_x)
    norm = learner.module[1]
    for k in range(2):
        inputs = []
        for steps, x in ((k, batch.support_x), (k + 1, batch.query_x)):
            phi = learner.adapt(*batch[:2], steps=steps).parameters()
            inputs += [F.linear(x[t], phi["0.weight"][t], phi["0.bias"][t]) for t in range(3)]
        torch.testing.assert_close(norm.running_mean[k], torch.stack([x.mean(0) for x in inputs]).mean(0))
        torch.testing.assert_close(norm.running_var[k], torch.stack([x.var(0) for x in inputs]).mean(0))
    assert norm.batches_tracked.tolist() == [6, 6]
    assert norm.inner_step.tolist() == [1.0, 0.0]
    assert all(not m._forward_pre_hooks for m in learner.modules())


def test_running_statistics_normalise_in_eval_mode():
    learner, batch = running()
    with pytest.raises(RuntimeError, match="there are none yet; call update_statistics"):
        learner.eval()(*batch)
    trained = learner.train()(*batch).loss.item()
    learner.update_statistics(batch.support_x, batch.support_y, batch.query_x)
    assert learner(*batch).loss.item() == trained
    learner.eval()
    whole = learner(*batch)
    each = [learner(*(x[:, :1] if i > 1 else x for i, x in enumerate(batch))).outputs]  # a query sample alone
    torch.testing.assert_close(each[0], whole.outputs[:, :1])
    got = grads_of(learner, batch)
    learner.backend = "reference"
    assert relative(got, grads_of(learner, batch)) < 1e-10
    with pytest.raises(RuntimeError, match="call train"):
        learner.update_statistics(batch.support_x, batch.support_y)


def test_options_that_the_model_does_not_fit():
    for option, more in (("per_step_affine", ""), ("per_step_statistics", ', statistics="running"')):
        with pytest.raises(ValueError, match=f"{option}=True needs layers.*{more}"):
            fastmeta.MAMLPlusPlus(conv4(5, channels=2), **{option: True})
    with pytest.raises(ValueError, match="per_step_statistics=True"):
        fastmeta.MAMLPlusPlus(per_step_batch_norm(conv4(5, channels=2), 5), per_step_statistics=True)
    with pytest.raises(ValueError, match="per_step_affine=True"):
        fastmeta.MAMLPlusPlus(per_step_batch_norm(conv4(5, channels=2), 5, affine=False), per_step_affine=True)
    with pytest.raises(ValueError, match="first_order_epochs"):
        fastmeta.MAMLPlusPlus(mlp(2, 1), first_order_epochs=3, first_order=True)
    with pytest.raises(ValueError, match="multi_step_epochs must be an integer of at least 0"):
        fastmeta.MAMLPlusPlus(mlp(2, 1), multi_step_epochs=-1)
    with pytest.raises(RuntimeError, match="update_statistics needs layers"):
        fastmeta.MAMLPlusPlus(mlp(2, 1)).update_statistics(*regression()[:2])
