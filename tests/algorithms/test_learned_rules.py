"""Algorithms that learn their inner rule, in every way of running them and beside their degenerate twins.

Public implementations: test_golden_learned_rules.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interface import WAYS, check_as_reference, grads_of, learner_of, net, sharing
from meta_steps import Batch, mlp, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Unrolled
from fastmeta.engine.batch import TaskBatch
from fastmeta.engine.prior import Proximal
from fastmeta.optim import LearnedUpdate, LSTMRule

# Every algorithm in every way of running it. --------------------------------------------------------------------------

MAKE: dict[str, Any] = {
    "meta-sgd": lambda model, **o: fastmeta.MetaSGD(model, lr=(0.05, 0.3), **o),
    "meta-curvature": lambda model, **o: fastmeta.MetaCurvature(model, lr=(0.3, 0.2, 0.1), **o),
    "sparse-maml": lambda model, **o: fastmeta.SparseMAML(model, lr=0.3, **o),
    "lstm": lambda model, **o: fastmeta.LSTMMetaLearner(model, hidden=4, **o),
    "lstm-exact": lambda model, **o: fastmeta.LSTMMetaLearner(model, hidden=4, second_order=True, **o),
    "learned": lambda model, **o: fastmeta.LearnedOptimizer(model, hidden=(4, 3), scale=0.1, **o),
    "learned-exact": lambda model, **o: fastmeta.LearnedOptimizer(
        model, hidden=(4,), scale=0.1, p=None, second_order=True, **o
    ),
}
every = pytest.mark.parametrize("algorithm", MAKE)


def made(algorithm, model=None, *, scattered=True, **options):
    """A learner whose learned part is away from where it starts, so that all of its gradients count."""
    options = {"inner_loss": F.mse_loss, "inner_steps": 3} | options
    learner = MAKE[algorithm](net() if model is None else model, **options)
    if scattered and algorithm != "sparse-maml":
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in learner.learned.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return learner


@every
def test_as_the_reference(algorithm):
    got = check_as_reference(made(algorithm), regression())
    assert any(name.startswith("learned.") for name in got)


@every
@pytest.mark.parametrize("way", ["recompute", "chunked"])
def test_every_way_is_the_same(algorithm, way):
    learner, batch = made(algorithm, inner_batch_size=3, backend="torch"), regression(tasks=5, support=7)
    want = check_as_reference(learner, batch, adapt=False)
    for name, value in WAYS[way].items():
        setattr(learner, name, value)
    assert relative(grads_of(learner, batch), want) < 1e-12


@every
@pytest.mark.parametrize("algorithm_options", [{"inner_clip_norm": 0.3}], ids=str)
def test_clipped_inner_gradients(algorithm, algorithm_options):
    check_as_reference(made(algorithm, **algorithm_options), regression())


@every
def test_what_is_compiled_is_traced_exactly(algorithm, traced):
    learner, batch = (
        made(algorithm, inner_steps=2 if algorithm != "meta-curvature" else 3, backend="torch"),
        regression(),
    )
    eager = grads_of(learner, batch)
    learner.compile_step = True
    assert relative(grads_of(learner, batch), eager) < 1e-12
    assert traced


@every
def test_permuting_the_tasks_and_leaving_out_one_that_diverged(algorithm):
    learner, batch = made(algorithm, backend="torch"), regression(tasks=4)
    order = torch.tensor([2, 0, 3, 1])
    straight, permuted = grads_of(learner, batch), grads_of(learner, Batch(*(x[order] for x in batch)))
    assert relative(permuted.pop("losses"), straight["losses"][order]) < 1e-12
    straight.pop("losses")
    assert relative(permuted, straight) < 1e-12
    broken = Batch(*(x.clone() for x in batch))
    broken.support_x[1] = torch.nan
    with pytest.warns(RuntimeWarning, match=r"non-finite values in task\(s\) \[1\]"):
        got = grads_of(learner, broken)
    rest = grads_of(learner, Batch(*(x[[0, 2, 3]] for x in batch)))
    got.pop("losses"), rest.pop("losses")
    assert relative(got, rest) < 1e-12


@every
def test_copies_and_checkpoints(algorithm):
    learner, batch = made(algorithm, backend="torch"), regression()
    want = grads_of(learner, batch)
    copied = copy.deepcopy(learner)
    assert copied.learned is not learner.learned
    assert copied.learned is copied.inner_optimizer.learned
    assert relative(grads_of(copied, batch), want) == 0.0
    other = MAKE[algorithm](net(), inner_loss=F.mse_loss, inner_steps=3, backend="torch")
    assert relative(grads_of(other, batch), want) > 1e-3
    other.load_state_dict(learner.state_dict())
    assert relative(grads_of(other, batch), want) == 0.0


@every
def test_the_learned_part_is_a_parameter_group_of_its_own(algorithm):
    learner, batch = made(algorithm, model=net().float(), scattered=False), [x.float() for x in regression()]
    assert {p.dtype for p in learner.learned.parameters()} == {torch.float32}
    groups = [{"params": learner.module.parameters()}, {"params": learner.learned.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    first = last = 0.0
    for i in range(15):
        optimizer.zero_grad()
        loss = learner(*batch).loss
        loss.backward()
        optimizer.step()
        first, last = loss.item() if i == 0 else first, loss.item()
    assert last < first
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in ours} == {id(p) for p in learner.parameters()}


@pytest.mark.parametrize("algorithm, rates", [
    ("meta-sgd", "PerParameter(lr=(0.05, 0.3))"), ("sparse-maml", "Masked(lr=0.3, mask=(-0.5, 0.5))"),
])  # fmt: skip
def test_kernels_run_learned_rates_and_masks_and_explain_says_so(algorithm, rates):
    learner, batch = made(algorithm, model=net().float(), backend="torch"), [x.float() for x in regression()]
    want = grads_of(learner, batch)
    learner.backend = "triton"
    assert relative(grads_of(learner, batch), want) < 1e-5
    for line in ("backend: triton (asked for)", "Triton kernels of mlp_loop", rates):
        assert line in learner.explain()


@pytest.mark.parametrize("algorithm", ["meta-curvature", "lstm", "learned"])
def test_explain_says_why_no_kernel_takes_a_rule(algorithm):
    learner, batch = made(algorithm, model=net().float(), scattered=False), [x.float() for x in regression()]
    learner(*batch)
    rule = type(learner.inner_optimizer).__name__
    title, *_ = learner.explain().splitlines()
    assert f"{type(learner).__name__}, 3 inner step(s), {rule}(" in title
    learner.backend = "triton"
    with pytest.raises(RuntimeError, match=f"the kernels have SGD and Adam, the inner rule is {rule}"):
        learner(*batch)


# Degenerate twins. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda model, **o: fastmeta.MetaSGD(model, lr=0.2, **o),
    lambda model, **o: fastmeta.MetaCurvature(model, lr=0.2, **o),
    lambda model, **o: fastmeta.SparseMAML(model, lr=0.2, mask=0.0, **o),
], ids=["meta-sgd", "meta-curvature", "sparse-maml"])  # fmt: skip
@pytest.mark.parametrize("first_order", [False, True])
def test_where_they_start_they_are_maml(make, first_order):
    model, batch = net(), regression()
    want = grads_of(learner_of(model=model, first_order=first_order, backend="torch"), batch)
    options = {"inner_loss": F.mse_loss, "inner_steps": 3, "backend": "torch", "first_order": first_order}
    got = grads_of(make(model, **options), batch)
    assert relative({name: got[name] for name in want}, want) < 1e-14


def test_all_masks_off_is_no_inner_loop():
    model, batch = net(), regression()
    learner = fastmeta.SparseMAML(model, mask=-1.0, inner_loss=F.mse_loss, inner_steps=3, backend="torch")
    want = grads_of(learner_of(model=model, inner_steps=0, backend="torch"), batch)
    got = grads_of(learner, batch)
    assert relative({name: got[name] for name in want}, want) < 1e-14
    assert set(learner.learned.density().values()) == {0.0}


# Rules that read the loss. --------------------------------------------------------------------------------------------


class ByLoss(fastmeta.optim.Rule):
    """A user's rule that steps by a learned multiple of gradient and loss: φ' = φ − a · tanh(L) · g − b · L · φ."""

    reads_loss = True

    def __init__(self):
        self.learned = nn.Linear(2, 1, bias=False).double()

    def meta(self, rows, steps):
        return tuple(self.learned.parameters())

    def step(self, phi, g, state, k, meta, *, loss):
        a, b = meta[0][0].unbind()
        scale = loss.unsqueeze(1)
        return phi - a * torch.tanh(scale) * g - 0.1 * b * scale * phi, state


class Near(fastmeta.MAML):
    prior = Proximal(0.7)


class ConstantGradients(fastmeta.MAML):
    adjoint = Unrolled(hessian=False)


@pytest.mark.parametrize(
    "algorithm", [fastmeta.MAML, fastmeta.FOMAML, ConstantGradients, Near, sharing("0"), sharing("2")], ids=range(6)
)
def test_a_rule_that_reads_the_loss(algorithm):
    options = {"inner_batch_size": 3, "inner_clip_norm": 0.5}
    learner = learner_of(algorithm, inner_optimizer=ByLoss(), **options)
    batch = regression()
    data = batch[:2] if algorithm is fastmeta.MAML else ()
    for x in data:
        x.requires_grad_()
    got = check_as_reference(learner, batch, data=data)
    assert got["learned.weight"].abs().min() > 0


@pytest.mark.parametrize(
    "rule", [LSTMRule.new(hidden=3), LearnedUpdate.new(hidden=(3,), scale=0.1)], ids=["lstm", "learned"]
)
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, Near, sharing("2")], ids=range(3))
def test_their_rules_serve_other_algorithms(algorithm, rule):
    check_as_reference(learner_of(algorithm, inner_optimizer=copy.deepcopy(rule), inner_batch_size=3), regression())


# Unrolls. -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_unrolls_go_on_where_the_last_one_ended(backend):
    learner, batch = made("learned", backend=backend, inner_batch_size=3), regression()
    x, y = batch.support_x, batch.support_y
    with torch.no_grad():
        whole, end = learner.unroll(x, y, steps=5)
        first, carry = learner.unroll(x, y, steps=2)
        second, after = learner.unroll(x, y, carry=carry, steps=3)
        nothing, same = learner.unroll(x, y, carry=carry, steps=0)
    assert (carry.steps, after.steps, same.steps) == (2, 5, 2)
    assert relative(after.phi, end.phi) < 1e-13
    for a, b in zip(after.state, end.state, strict=True):
        assert relative(a, b) < 1e-12
    # the loss where the two meet counts twice
    assert relative(first.task_losses + second.task_losses - nothing.task_losses, whole.task_losses) < 1e-13
    assert relative(end.phi, learner.adapt(x, y, steps=5)._phi) < 1e-13


def test_an_unroll_has_the_gradient_of_its_own_piece_alone():
    learner, batch = made("learned", backend="torch"), regression()
    _, carry = learner.unroll(batch.support_x, batch.support_y)
    learner.zero_grad(set_to_none=True)
    out, after = learner.unroll(batch.support_x, batch.support_y, carry=carry)
    out.loss.backward()
    assert all(p.grad is None for p in learner.module.parameters())
    assert all(p.grad.norm() > 0 for p in learner.learned.parameters())
    assert not any(x.requires_grad for x in (after.phi, *after.state))
    # a carry that has a graph gets its gradient
    carry = carry._replace(phi=carry.phi.clone().requires_grad_(), state=tuple(s.requires_grad_() for s in carry.state))
    learner.unroll(batch.support_x, batch.support_y, carry=carry)[0].loss.backward()
    for x in (carry.phi, *carry.state):
        assert x.grad.norm() > 0


def test_padding_stays_zero():
    learner, batch = made("learned", model=mlp(2, 5, 1), backend="torch"), regression()
    layout = learner.session(TaskBatch(*batch[:2])).layout
    assert any(layout.padding)
    _, carry = learner.unroll(*batch[:2])
    values = sum(x.abs().sum() for x in layout.views(carry.phi))
    assert torch.equal(carry.phi.abs().sum(), values) or relative(carry.phi.abs().sum(), values) < 1e-14
    for at, shape, pad in zip(layout.offsets, layout.shapes, layout.padding, strict=True):
        end = at + shape.numel()
        assert not carry.phi[:, end : end + pad].any()


def test_a_query_set_serves_the_outputs_alone():
    learner, batch = made("learned", backend="torch"), regression()
    alone, both = learner(*batch[:2]), learner(*batch)
    assert torch.equal(alone.loss, both.loss)
    assert both.outputs.shape == batch.query_y.shape
    with torch.no_grad():
        assert relative(both.outputs, learner.adapt(*batch[:2])(batch.query_x)) < 1e-13
        assert relative(alone.outputs, learner.adapt(*batch[:2])(batch.support_x)) < 1e-13


def test_weights_of_the_losses():
    model, batch = net(), regression()
    last = made("learned", model, loss_weights=(0, 0, 0, 1.0), backend="torch")
    with torch.no_grad():
        outputs = last.adapt(*batch[:2])(batch.support_x)
        assert relative(last(*batch[:2]).loss, F.mse_loss(outputs, batch.support_y)) < 1e-13
    check_as_reference(made("learned", model, loss_weights=(0.5, 0, 2.0, 1.0)), batch)


# Errors. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, message", [
    (lambda m: fastmeta.MetaSGD(m, lr=-0.1), r"PerParameter\.lr must be a number, finite and not negative, or a range"),
    (lambda m: fastmeta.MetaSGD(m, lr=(0.2, 0.1)), r"PerParameter\.lr must be a number.* got \(0\.2, 0\.1\)"),
    (lambda m: fastmeta.SparseMAML(m, mask=("a", 1)), r"Masked\.mask must be a number, finite, or a range"),
    (lambda m: fastmeta.SparseMAML(m, lr=-1.0), r"Masked\.lr must be a number finite and not negative"),
    (lambda m: fastmeta.MetaCurvature(m, lr=-1.0), r"Curvature\.lr must be a number"),
    (lambda m: fastmeta.MetaCurvature(m, lr=fastmeta.PerParameter(0.1)), r"Curvature\.lr must be a fixed step size"),
    (lambda m: fastmeta.LSTMMetaLearner(m, hidden=0), r"hidden must be an integer of at least 1, got 0"),
    (lambda m: fastmeta.LSTMMetaLearner(m, gates="both"), r'gates must be "preactivation" or "activation"'),
    (lambda m: fastmeta.LSTMMetaLearner(m, p=0), r"p must be positive, got 0"),
    (lambda m: fastmeta.LSTMMetaLearner(m, first_order=True, second_order=True), r"exclude each other"),
    (lambda m: fastmeta.LearnedOptimizer(m, first_order=True, second_order=True), r"exclude each other"),
    (lambda m: fastmeta.LearnedOptimizer(m, hidden=()), r"hidden must hold the width of at least one layer"),
    (lambda m: fastmeta.LearnedOptimizer(m, hidden=(3, -1)), r"hidden\[1\] must be an integer of at least 1, got -1"),
    (lambda m: fastmeta.LearnedOptimizer(m, p=0), r"p must be positive, or None"),
    (lambda m: fastmeta.LearnedOptimizer(m, eps=0.0), r"eps must be positive, got 0"),
    (lambda m: fastmeta.LearnedOptimizer(m, scale=-1.0), r"scale must be a number finite and not negative"),
    (lambda m: fastmeta.LearnedOptimizer(m, loss_weights=(1, 1)), r"loss_weights must hold 21 numbers.*got 2"),
], ids=range(17))  # fmt: skip
def test_wrong_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(net())


def test_wrong_calls_are_named():
    learner, batch = made("learned", backend="torch"), regression()
    _, carry = learner.unroll(*batch[:2])
    with pytest.raises(ValueError, match=r"support_x"):
        learner.unroll(batch.support_x[:2], batch.support_y[:2], carry=carry)
    with pytest.raises(TypeError, match="steps must be an integer of at least 0"):
        learner.unroll(*batch[:2], steps=1.5)
    weighted = made("learned", loss_weights=(1, 1, 1, 1), backend="torch")
    with pytest.raises(ValueError, match=r"weights\(\) must give 6 numbers"):
        weighted.unroll(*batch[:2], steps=5)


@pytest.mark.parametrize("algorithm", ["meta-curvature", "meta-sgd"])
def test_what_is_made_for_one_network_does_not_serve_another(algorithm):
    rule = made(algorithm).inner_optimizer
    with pytest.raises(ValueError, match="of its own"):
        learner_of(model=mlp(2, 1), inner_optimizer=rule)
