"""What a meta-step answers to data and options that do not fit, and to tasks that diverge."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import Batch, assert_close, classification, mlp, regression, relative, step
from torch import nn

import fastmeta

BACKENDS = ["torch", "reference"]


def learner_of(model=None, **options):
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 6} | options
    return fastmeta.MAML(mlp(2, 5, 1, activation=nn.ReLU) if model is None else model, **options)


def nan_support_x(batch):
    batch.support_x[1, 2, 0] = torch.nan


def nan_support_y(batch):
    batch.support_y[1, 2] = torch.nan


def diverging(batch):
    batch.support_x[1] *= 1e100


def nan_query(batch):
    batch.query_x[1, 2, 0] = torch.nan


@pytest.mark.parametrize("spoil", [nan_support_x, nan_support_y, diverging, nan_query])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_that_is_not_finite_is_named_and_left_out(backend, spoil):
    learner, batch = learner_of(backend=backend), regression()
    spoil(batch)
    kept = [0, 2]
    want = step(learner, Batch(*(x[kept] for x in batch)))
    with pytest.warns(RuntimeWarning, match=r"non-finite values in task\(s\) \[1\]"):
        out = learner(*batch)
    assert out.finite.tolist() == [True, False, True]
    assert relative(out.task_losses[kept], want.losses) < 1e-12
    assert relative(out.loss, want.losses.mean()) < 1e-12
    learner.zero_grad()
    out.loss.backward()
    assert_close({name: p.grad for name, p in learner.module.named_parameters()}, want.grads, 1e-10)


@pytest.mark.parametrize("spoil", [nan_support_x, diverging])
@pytest.mark.parametrize("backend", BACKENDS)
def test_learners_that_diverged_leave_the_others_gradient_alone(backend, spoil):
    learner, batch = learner_of(backend=backend), regression()
    spoil(batch)
    with pytest.warns(RuntimeWarning, match=r"task\(s\) \[1\]"):
        learners = learner.adapt(batch.support_x, batch.support_y)
    assert learners.finite.tolist() == [True, False, True]
    kept = learners.finite
    learner.zero_grad()
    F.mse_loss(learners(batch.query_x)[kept], batch.query_y[kept]).backward()
    got = {name: p.grad.clone() for name, p in learner.module.named_parameters()}
    assert_close(got, step(learner, Batch(*(x[kept] for x in batch))).grads, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_finite_task_loss_and_gradient_are_zero(backend):
    learner, batch = learner_of(backend=backend), regression()
    batch.support_x.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match=r"task\(s\) \[0, 1, 2\]"):
        out = learner(*batch)
    assert out.loss.item() == 0.0
    out.loss.backward()
    assert all((p.grad == 0).all() for p in learner.module.parameters())
    assert not out.finite.any()


def regressions(**changes):
    return regression()._replace(**changes)


X, Y = torch.randn(3, 7, 2).double(), torch.randn(3, 7, 1).double()


@pytest.mark.parametrize(
    "batch, message",
    [
        (regressions(query_y=torch.randn(2, 5, 1).double()), "query_y must hold as many tasks as support_x, 3, got 2"),
        (regressions(support_y=Y[:, :6]), "support_y must hold as many samples as support_x, 7, got 6"),
        (regressions(support_x=X[:, :0], support_y=Y[:, :0]), "support_x must hold at least one task of one sample"),
        (regressions(query_x=X[0, 0]), r"query_x must have shape \[T, M, ...\], got \[2\]"),
        (regressions(support_x=X.float()), "support_x must have the dtype of the module's parameters, float64"),
        (regressions(support_x=X.to("meta")), "support_x must be on the module's device, cpu, got meta"),
        (regressions(support_y=Y[..., 0]), r"inner_loss: F.mse_loss wants targets of the outputs' shape, \[7, 1\]"),
        (regressions(query_y=torch.randn(3, 5).double()), r"outer_loss: F.mse_loss wants .* got \[5\]"),
    ],
)
def test_tensors_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        learner_of()(*batch)


@pytest.mark.parametrize("which", ["support_y", "query_y"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda y: y + 2, r"labels must lie in \[0, 3\), .* got values from 2 to 4"),
        (lambda y: y - 1, r"labels must lie in \[0, 3\), .* got values from -1 to 1"),
        (lambda y: y.double(), "labels must be int64"),
        (lambda y: F.one_hot(y, 3), r"labels must have shape \[2, [53]\]"),
    ],
    ids=["high", "negative", "float", "one-hot"],
)
@pytest.mark.parametrize("inner_batch_size", [None, 2])
def test_labels_that_do_not_fit(which, spoil, message, inner_batch_size):
    learner, batch = fastmeta.MAML(mlp(4, 3), inner_batch_size=inner_batch_size), classification(4)
    spoilt = batch._replace(**{which: spoil(getattr(batch, which))})
    with pytest.raises(ValueError, match=f"{which}: {message}"):
        learner(*spoilt)
    learner(*batch)  # plans are made once, labels looked at every time
    with pytest.raises(ValueError, match=f"{which}: {message}"):
        learner(*spoilt)
    if which == "support_y":
        with pytest.raises(ValueError, match=f"{which}: {message}"):
            learner.adapt(*spoilt[:2])


@pytest.mark.parametrize(
    "loss, error, message",
    [
        (lambda y, t: (y - t).square(), ValueError, r"inner_loss must return a scalar .* shape \[7, 1\].*\.mean\(\)"),
        (lambda y, t: 1.0, TypeError, "inner_loss must return a scalar tensor for each task, got float"),
    ],
)
def test_losses_that_are_no_scalar_per_task(loss, error, message):
    with pytest.raises(error, match=message):
        learner_of(inner_loss=loss)(*regression())


def test_options_and_learners_that_do_not_fit():
    batch = regression()
    with pytest.raises(ValueError, match="inner_batch_size must be at most the number of support samples, 7, got 8"):
        learner_of(inner_batch_size=8)(*batch)
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'torch', 'triton', 'reference', got 'cuda'"):
        learner_of(backend="cuda")
    with pytest.raises(ValueError, match="inner_steps must be an integer of at least 0, got -1"):
        learner_of(inner_steps=-1)
    with pytest.raises(ValueError, match=r"SGD\.lr must be a number finite and not negative, .* got -1"):
        fastmeta.SGD(lr=-1)
    with pytest.raises(ValueError, match="model must have a trainable parameter, got none"):
        learner_of(nn.ReLU())
    with pytest.raises(TypeError, match="query_x must hold tensors"):
        learner_of()(batch.support_x, batch.support_y)
    learners = learner_of().adapt(batch.support_x, batch.support_y)
    with pytest.raises(ValueError, match="query_x must hold the 3 tasks that the learners were adapted to, got 2"):
        learners(batch.query_x[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_reptile_without_a_query_set_speaks_of_the_support_set(backend):
    learner, batch = fastmeta.Reptile(mlp(2, 5, 1), inner_loss=F.mse_loss, backend=backend), regression()
    learner(batch.support_x, batch.support_y)
    with pytest.raises(ValueError, match="support_y must hold as many tasks as support_x, 3, got 2") as error:
        learner(batch.support_x, batch.support_y[:2])
    assert "query" not in str(error.value)
    with pytest.raises(TypeError, match="support_x must hold tensors"):
        learner(None, batch.support_y)
    with pytest.raises(TypeError, match="query_x must hold tensors"):
        learner(batch.support_x, batch.support_y, None, batch.query_y)
    with pytest.raises(ValueError, match="query_y must hold as many tasks as support_x, 3, got 2"):
        learner(batch.support_x, batch.support_y, batch.support_x, batch.query_y[:2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for Triton where there is no GPU")
def test_triton_without_a_gpu_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    learner = learner_of(backend="triton")
    for call in (lambda: learner(*regression()), learner.explain):
        with pytest.raises(RuntimeError, match=r'backend="triton" needs a CUDA device .* TRITON_INTERPRET is not set'):
            call()
