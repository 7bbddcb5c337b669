"""Amortised Bayesian meta-learning: golden cases with their noise, closed forms of the prior, and the noise itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_algorithms import WAYS
from golden_cases import ALGORITHMS, LOSSES, cases, names
from meta_steps import classification, mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.prior import GaussianKL
from fastmeta.models import Gaussian

COMPILED = {"abml_classifier_k2"}


class Given(fastmeta.ABML):
    """With a case's noise: that of the inner loop first, then that of the outer loss."""

    case: Any = None

    def draw(self, tasks, steps, samples):
        outer, self.calls = self.calls % 2, self.calls + 1
        noise = self.case.named("noise_outer/" if outer else "noise_inner/")
        flat = [noise[n].flatten(2 if outer else 3) for n, _ in self.module.log_std.named_parameters()]
        drawn = torch.cat(flat, -1).to(self.module.inner_step.dtype)
        drawn = drawn.unsqueeze(1) if outer else drawn
        assert drawn.shape == (tasks, steps, samples, self.module.noise_size)
        return drawn


def golden(name, dtype=torch.float64, **options):
    (case,) = cases(name, ALGORITHMS)
    spec, model = case.spec, Gaussian(case.model())
    with torch.no_grad():
        for key, x in case.extra.items():
            model.log_std.get_parameter(key.removeprefix("log_std/")).copy_(x)
    learner = Given(
        model.to(dtype), kl_weight=spec["kl_weight"], prior_weight=spec["prior_weight"], samples=spec["samples"],
        query_samples=spec["samples"], outer_data=spec["outer_data"], inner_loss=LOSSES[spec["loss"]],
        inner_steps=spec["steps"], inner_optimizer=fastmeta.SGD(lr=spec["inner"]["lr"]), **options,
    )  # fmt: skip
    learner.case = case
    batch = [case[k].to(dtype) if case[k].is_floating_point() else case[k] for k in
             ("support_x", "support_y", "query_x", "query_y")]  # fmt: skip
    return case, learner, batch


def errors(case, learner, batch):
    """Relative, of the gradients of means and of log σ."""
    learner.zero_grad()
    learner(*batch).loss.backward()
    grads = {name: p.grad for name, p in learner.module.named_parameters()}
    mean = {name: grads[f"mean.{name}"] for name in case.grad}
    spread = {key: grads[key.replace("log_std/", "log_std.")] for key in case.grad_extra}
    return relative(mean, case.grad), relative(spread, case.grad_extra)


@pytest.mark.parametrize("name, way", [
    (n, w) for n in names("abml*", ALGORITHMS) for w in WAYS if w != "compiled" or n in COMPILED
])  # fmt: skip
def test_golden(name, way):
    case, learner, batch = golden(name, **WAYS[way])
    out = learner(*batch)
    assert abs(out.loss.item() - case["loss"].item()) < 1e-10
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    assert max(errors(case, learner, batch)) < 1e-10
    phi = learner.adapt(*batch[:2]).parameters()
    assert relative({n.replace(".", "/", 1): x for n, x in phi.items()}, case.adapted) < 1e-10


@pytest.mark.parametrize("name", names("abml*", ALGORITHMS))
def test_golden_in_float32(name):
    assert max(errors(*golden(name, torch.float32, backend="torch"))) < 5e-5


@pytest.mark.parametrize("name", names("abml*", ALGORITHMS))
def test_no_case_passes_with_a_mistake(name, monkeypatch):
    assert max(errors(*golden(name, backend="torch", first_order=True))) > 0.05
    product = GaussianKL.hessian_product

    def without_start(self, phi, start, v):
        to_phi, to_start = product(self, phi, start, v)
        return to_phi, torch.zeros_like(to_start)

    monkeypatch.setattr(GaussianKL, "hessian_product", without_start)
    assert max(errors(*golden(name, backend="torch"))) > 0.05


def test_the_prior_has_the_derivatives_of_its_value():
    prior, phi, start, v = GaussianKL(0.3), *(0.5 * torch.randn(3, 8, dtype=torch.float64) for _ in range(3))
    phi, start = phi.requires_grad_(), start.requires_grad_()
    value = prior.value(phi, start)
    (g,) = torch.autograd.grad(value.sum(), phi, create_graph=True)
    assert relative(prior.gradient(phi, start), g) < 1e-14
    want = torch.autograd.grad((g * v).sum(), (phi, start))
    for got, x in zip(prior.hessian_product(phi, start, v), want, strict=True):
        assert relative(got, x) < 1e-14
    (m, r), (m0, r0) = (x.detach().chunk(2, 1) for x in (phi, start))
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(m, r.exp()), normal(m0, r0.exp())).sum(1)
    assert relative(value.detach(), 0.3 * kl) < 1e-13
    assert (prior.gradient(start, start) == 0).all()
    with pytest.raises(ValueError, match=r"GaussianKL\.weight"):
        GaussianKL(-1.0)


def abml(model=None, **options):
    options = {"inner_steps": 2, "samples": 2, "query_samples": 3, "inner_optimizer": fastmeta.SGD(lr=0.2)} | options
    return fastmeta.ABML(Gaussian(mlp(4, 5, 3) if model is None else model), **options)


def grads_of(learner, batch):
    learner.calls = 0
    learner.zero_grad()
    out = learner(*batch)
    out.loss.backward()
    return {"losses": out.task_losses.detach()} | {
        n: p.grad.clone() for n, p in learner.module.named_parameters() if p.grad is not None
    }


def test_noise_does_not_depend_on_how_tasks_are_run():
    batch, learner = classification(4, tasks=5), abml(backend="torch")
    want = grads_of(learner, batch)
    for option, value in (("task_chunk", 2), ("memory", "recompute"), ("backend", "reference")):
        setattr(learner, option, value)
        assert relative(grads_of(learner, batch), want) < 1e-12
    learner.backend = "torch"
    fewer = grads_of(learner, type(batch)(*(x[:3] for x in batch)))
    assert relative(fewer["losses"], want["losses"][:3]) < 1e-12


def test_noise_is_new_in_every_call_and_comes_again_from_a_checkpoint():
    batch, learner = classification(4), abml(backend="torch")
    first, second = learner(*batch).loss.item(), learner(*batch).loss.item()
    assert first != second
    other = copy.deepcopy(learner)
    state = learner.state_dict()
    third = learner(*batch).loss.item()
    learner.load_state_dict(state)
    assert learner(*batch).loss.item() == third == other(*batch).loss.item()
    assert abml(learner.module.mean, seed=1).draw(2, 1, 1).ne(abml(learner.module.mean).draw(2, 1, 1)).all()


def test_steps_draw_apart_and_more_of_them_find_noise():
    batch, learner = classification(4), abml(backend="torch")
    drawn = learner.draw(2, 3, 4)
    assert drawn.shape == (2, 3, 4, learner.module.noise_size)
    assert len(drawn.flatten().unique()) == drawn.numel()
    assert abs(drawn.std().item() - 1) < 0.1
    longer = learner.adapt(*batch[:2], steps=4).adapt_further(*batch[:2], steps=2)
    assert longer.finite.all()
    assert len(learner.module.inner_step) == 6


def test_hyper_prior_is_normal_and_gamma():
    learner = abml(prior_weight=1.0, gamma=(2.0, 0.5))
    named = dict(learner.module.named_parameters())
    density = torch.zeros((), dtype=torch.float64)
    for name, p in named.items():
        if name.startswith("mean."):
            density = density + torch.distributions.Normal(0.0, 1.0).log_prob(p).sum()
        else:
            gamma = torch.distributions.Gamma(torch.tensor(2.0), torch.tensor(0.5))
            density = density + gamma.log_prob((-2 * p).exp()).sum()
    assert learner._hyper_prior().item() == pytest.approx(-density.item())


def test_predictions():
    batch, learner = classification(4), abml(backend="torch")
    learners = learner.adapt(*batch[:2])
    p = learner.predict(learners, batch.query_x, samples=4)
    assert p.shape == (2, 3, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    learner.calls = 5
    again = learner.predict(learners, batch.query_x)
    learner.calls = 5
    noise = learner.draw(2, 1, 3)
    means, spread = ({n[len(k):]: x for n, x in learners.parameters().items() if n.startswith(k)}
                     for k in ("mean.", "log_std."))  # fmt: skip
    want = torch.zeros_like(again)
    for t in range(2):
        for s in range(3):
            at, weights = 0, {}
            for n, m in means.items():
                eps = noise[t, 0, s, at : at + m[t].numel()].view_as(m[t])
                weights[n], at = m[t] + spread[n][t].exp() * eps, at + m[t].numel()
            want[t] += torch.func.functional_call(learner.module.mean, weights, (batch.query_x[t],)).softmax(-1) / 3
    assert relative(again, want) < 1e-12
    learner.calls = 8
    out = learner(*batch)
    torch.testing.assert_close(out.outputs.exp().sum(-1), torch.ones_like(p[..., 0]))
    mean = learners(batch.query_x)[0]
    plain = torch.func.functional_call(learner.module.mean, {n: m[0] for n, m in means.items()}, (batch.query_x[0],))
    assert relative(mean, plain) < 1e-13
    regressor = abml(mlp(2, 3, 1), inner_loss=F.mse_loss, backend="torch")
    assert not regressor.classify
    assert regressor(*regression()).outputs.shape == (3, 5, 1)


def test_a_task_that_diverged_stays_out():
    batch, learner = classification(4, tasks=3), abml(backend="torch")
    learner(*batch)
    batch.support_x[1, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match=r"task\(s\) \[1\]"):
        out = learner(*batch)
    out.loss.backward()
    assert out.finite.tolist() == [True, False, True]
    assert all(torch.isfinite(p.grad).all() for p in learner.module.parameters())
    assert torch.isfinite(out.loss)


def test_inputs_in_trees_and_batch_norm():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh())
            self.head = nn.Linear(5, 3)
            self.fixed = nn.Parameter(torch.ones(5), requires_grad=False)

        def forward(self, a, b):
            return self.head(self.body(a + b) * self.fixed)

    batch, model = classification(4), Two().double()
    learner = abml(model, outer_data="support+query", backend="torch")
    assert not any("fixed" in name for name, _ in learner.module.log_std.named_parameters())
    first, second = (
        grads_of(learner, (tree(batch[0]), batch[1], tree(batch[2]), batch[3]))
        for tree in (lambda x: (x, 2 * x), lambda x: {"a": x, "b": 2 * x})
    )
    assert relative(first, second) == 0.0
    assert "mean.head.weight" in first
    learner.backend = "reference"
    tree = (batch[0], 2 * batch[0]), batch[1], (batch[2], 2 * batch[2]), batch[3]
    assert relative(first, grads_of(learner, tree)) < 1e-12


def test_options_that_do_not_fit():
    with pytest.raises(TypeError, match=r"Gaussian weights, got Sequential; pass fastmeta\.models\.Gaussian"):
        fastmeta.ABML(mlp(2, 1))
    for options in ({"inner_batch_size": 2}, {"cuda_graph": True}, {"bn_statistics": "support"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* does not go with ABML"):
            abml(**options)
    with pytest.raises(ValueError, match="outer_data must be"):
        abml(outer_data="support")
    with pytest.raises(ValueError, match="kl_weight must be"):
        abml(kl_weight=-1.0)
    with pytest.raises(TypeError, match="query_x must hold tensors"):
        abml()(*classification(4)[:2])
    learner = abml(backend="torch")
    learner.module.mean[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"do not belong together: \['0\.weight'\]"):
        learner.adapt(*classification(4)[:2])
    model = Gaussian(mlp(2, 1))
    with pytest.raises(ValueError, match=r"noise must have shape \[1 or 1, samples, 3\], got \[2, 1, 3\]"):
        model(torch.zeros(1, 2, dtype=torch.float64), noise=torch.zeros(2, 1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="log_std must be two numbers"):
        Gaussian(mlp(2, 1), log_std=(0.0, -1.0))


def test_a_loss_that_is_set_later_is_one_over_draws_too():
    batch, learner = classification(4), abml(backend="torch")
    want = grads_of(learner, batch)
    learner.inner_loss = learner.outer_loss = nn.CrossEntropyLoss()
    assert relative(grads_of(learner, batch), want) < 1e-13


def test_first_order_is_another_gradient():
    batch, learner = classification(4), abml(backend="torch")
    first = abml(learner.module.mean, backend="torch", first_order=True)
    first.module.load_state_dict(learner.module.state_dict())
    got, exact = grads_of(first, batch), grads_of(learner, batch)
    assert torch.equal(got["losses"], exact["losses"])
    assert relative(got, exact) > 1e-3
    first.backend = "reference"
    assert relative(grads_of(first, batch), got) < 1e-12
