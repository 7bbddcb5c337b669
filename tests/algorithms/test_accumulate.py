"""`learner.accumulate(...)` is `learner(...).loss.backward()` to the bit, with every algorithm in every way."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import needs_kernels
from meta_steps import Batch, classification, mlp, regression
from registry import ALGORITHMS, MODES, PAIRS, rule_of
from torch import distributed, nn

import fastmeta
from fastmeta.engine import grads as direct
from fastmeta.engine.adjoint import Cotangents
from fastmeta.engine.autograd import Sources
from fastmeta.engine.meta_step import MetaInputs
from fastmeta.models import Gaussian, ImageGenerator
from fastmeta.program.layout import Layout

COMPILED = {"backend": "torch", "compile": True}
OPTIONS = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.3), "inner_steps": 2}


@pytest.fixture
def by_autograd(monkeypatch):
    """How often gradients were left to autograd; the list holds a reply for each direct sum that was asked for."""
    replies = []

    def added(*args):
        replies.append(real(*args))
        return replies[-1]

    real = direct.added
    monkeypatch.setattr("fastmeta.engine.session.added", added)
    return replies


def assert_accumulates_alike(learner, batch, *, calls=2, **given):
    """Gradients are added up over calls, of a learner and of its copy; what a call gives is the same too."""
    other = copy.deepcopy(learner)
    for seed in range(calls):
        torch.manual_seed(seed)
        out = learner.accumulate(*batch, **given)
        torch.manual_seed(seed)
        want = other(*batch, **given)
        want.loss.backward()
        for name, x in out._asdict().items():
            torch.testing.assert_close(x, getattr(want, name), rtol=0, atol=0, equal_nan=True)
        assert not out.loss.requires_grad
        assert not out.task_losses.requires_grad
        got, wanted = ({n: p.grad for n, p in one.named_parameters()} for one in (learner, other))
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
        assert {n: None if g is None else g.stride() for n, g in got.items()} == {
            n: None if g is None else g.stride() for n, g in wanted.items()
        }
    assert any(g is not None and g.any() for g in got.values())


COMPUTED = ("sparse-maml", "maml++")
"""Their rates are computed from what they learn, and autograd takes gradients through that."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm, rule", PAIRS)
def test_every_algorithm_and_rule(algorithm, rule, mode, by_autograd):
    options = OPTIONS | {"inner_optimizer": rule_of(rule)} | MODES[mode]
    assert_accumulates_alike(ALGORITHMS[algorithm].learner(mlp(2, 5, 1), **options), regression())
    assert by_autograd == ([] if mode == "reference" else [algorithm not in COMPUTED] * 2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.usefixtures("traced")
def test_compiled(algorithm, by_autograd):
    assert_accumulates_alike(ALGORITHMS[algorithm].learner(mlp(2, 5, 1), **OPTIONS, **COMPILED), regression())
    assert by_autograd == [algorithm not in COMPUTED] * 2


@needs_kernels
@pytest.mark.parametrize("algorithm", [name for name, about in ALGORITHMS.items() if about.kernels])
def test_kernels(algorithm, by_autograd):
    model, batch = mlp(2, 5, 1).float(), regression(dtype=torch.float32)
    assert_accumulates_alike(ALGORITHMS[algorithm].learner(model, **OPTIONS, backend="triton"), batch)
    assert by_autograd == [algorithm not in COMPUTED] * 2


def features():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def plain(make, **options):
    return lambda: (make(mlp(2, 5, 1), **{"inner_loss": F.mse_loss, **options}), regression())


def classifying(make, model=features, **options):
    return lambda: (make(model(), **options), classification(4, support=6))


def metagan():
    learner = fastmeta.MetaGAN(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 4)),
        ImageGenerator(16 + 3, channels=2, shape=(1, 4, 4)), ways=3, noise=3, inner_steps=1,
    )  # fmt: skip
    return learner, classification(1, 4, 4, dtype=torch.float32)


def distillation():
    data = {"support_x": torch.randn(4, 2).double(), "support_y": torch.randn(4, 1).double()}
    learner = fastmeta.Distillation(mlp(2, 5, 1), inner_loss=F.mse_loss, learn_labels=True, **data)
    return learner, regression()[2:]


def weighted():
    batch, learner = regression(), fastmeta.MAML(
        mlp(2, 5, 1), inner_loss=fastmeta.weighted(F.mse_loss), outer_loss=F.mse_loss
    )  # fmt: skip
    return learner, batch._replace(support_y=(batch.support_y, torch.rand(3, 7).double()))


class LearnedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1).double()

    def forward(self, outputs, targets):
        return self.net(torch.cat([outputs, targets], 1)).square().mean()


OTHERS = {
    "MetaSGD": plain(fastmeta.MetaSGD),
    "MAMLPlusPlus": plain(fastmeta.MAMLPlusPlus),
    "MetaCurvature": plain(fastmeta.MetaCurvature),
    "SparseMAML": plain(fastmeta.SparseMAML),
    "LSTMMetaLearner": plain(fastmeta.LSTMMetaLearner),
    "LearnedOptimizer": plain(fastmeta.LearnedOptimizer, inner_steps=2),
    "learned loss": plain(fastmeta.MAML, inner_loss=LearnedLoss(), outer_loss=F.mse_loss),
    "weighted": weighted,
    "ABML": lambda: (
        fastmeta.ABML(Gaussian(mlp(2, 5, 1)), inner_loss=F.mse_loss, samples=2, query_samples=2), regression()
    ),
    "ProtoNet": classifying(fastmeta.ProtoNet),
    "R2D2": classifying(fastmeta.R2D2),
    "MetaOptNetRR": classifying(fastmeta.MetaOptNetRR),
    "ProtoMAML": classifying(fastmeta.ProtoMAML, ways=3, features=5),
    "Online": lambda: (fastmeta.Online(mlp(2, 5, 1), chunk=2, inner_loss=F.mse_loss), regression(support=6)[:2]),
    "Distillation": distillation,
    "MetaGAN": metagan,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_algorithm(name):
    torch.manual_seed(0)
    learner, batch = OTHERS[name]()
    assert_accumulates_alike(learner, batch)


# What autograd must do. -----------------------------------------------------------------------------------------------


def learner_of(model=None, make=fastmeta.MAML, **options):
    return make(mlp(2, 5, 1) if model is None else model, **(OPTIONS | options))


def test_into_gradients_that_are_there_partly(by_autograd):
    learner = learner_of()
    learner.accumulate(*regression())
    learner.module[0].bias.grad = None
    other = copy.deepcopy(learner)
    for p, q in zip(learner.parameters(), other.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    batch = regression()
    before = {p: p.grad for p in learner.parameters()}
    learner.accumulate(*batch)
    other(*batch).loss.backward()
    for p, q in zip(learner.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
        assert before[p] is None or p.grad is before[p]
    assert by_autograd == [True, True]


@pytest.mark.parametrize("of", ["network", "rule"])
def test_hooks_of_parameters_run(of):
    learner, batch = fastmeta.LSTMMetaLearner(mlp(2, 5, 1), inner_loss=F.mse_loss, inner_steps=2), regression()
    p, seen = next((learner.module if of == "network" else learner.learned).parameters()), []
    plain = copy.deepcopy(learner)
    plain.accumulate(*batch)
    (want,) = (q.grad for q, other in zip(plain.parameters(), learner.parameters(), strict=True) if other is p)
    handle = p.register_hook(lambda d: 2 * d)
    learner.accumulate(*batch)
    torch.testing.assert_close(p.grad, 2 * want, rtol=1e-10, atol=1e-14)
    handle.remove()
    handle = p.register_post_accumulate_grad_hook(seen.append)
    learner.accumulate(*batch)
    assert seen == [p]


def test_what_is_no_plain_sum_is_left_to_autograd():
    def sources_of(*leaves, rates=()):
        module = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in leaves])
        at = MetaInputs(tuple(leaves), meta=tuple(rates))
        return Sources(at, Layout.of(module), Layout.of(module, lambda _: False), (), (0, 0))

    def left(*leaves, rates=(), of_rates=()):
        sources = sources_of(*leaves, rates=rates)
        row = torch.ones(sources.layout.size, dtype=sources.layout.dtype)
        return not direct.added(sources, Cotangents(row, meta=tuple(of_rates)), direct.GradRow())

    def parameter(**options):
        return nn.Parameter(torch.zeros(3, 2, **options))

    p = parameter()
    assert not left(p)
    q = parameter()
    assert not left(parameter(), rates=[q], of_rates=[torch.ones(3, 2)])
    assert p.grad.eq(1).all()
    assert q.grad.eq(1).all()
    assert left(2 * p)
    assert left(parameter(dtype=torch.complex64))
    assert left(parameter(), parameter(dtype=torch.float64))
    assert left(nn.Parameter(torch.zeros(2, 3).t()))
    assert left(p, rates=[p], of_rates=[torch.ones(3, 2)])
    assert left(p, rates=[q], of_rates=[torch.ones(3, 2, dtype=torch.float64)])
    assert left(p, rates=[q], of_rates=[torch.ones(2)])
    assert left(p, rates=[q], of_rates=[torch.ones(2, 3).t()])
    for hook in (p.register_hook, p.register_post_accumulate_grad_hook):
        handle = hook(lambda d: None)
        assert left(p)
        handle.remove()
    with torch.no_grad():
        assert left(p)
    assert p.grad.eq(1).all(), "nothing was done"
    p.grad = torch.ones(3, 2, requires_grad=True)
    assert left(p)
    p.grad = torch.ones(3, 2).to_sparse()
    assert left(p)


@pytest.mark.parametrize("keep", {
    "itself": lambda g: g, "a view": lambda g: g.view(-1), "detached": lambda g: g.detach(),
    "array": lambda g: g.numpy(), "memory": lambda g: g.untyped_storage(), "nothing": lambda g: None,
    "another's": lambda g: nn.Parameter(torch.zeros_like(g)),
}.items(), ids=lambda item: item[0])  # fmt: skip
def test_a_gradient_that_was_kept_stays_as_it_is(keep):
    """Without one the same memory serves again."""
    name, take = keep
    learner, batches = learner_of(), [regression() for _ in range(3)]
    plain = copy.deepcopy(learner)
    learner.accumulate(*batches[0])
    p = learner.module[0].weight
    before, kept, place = p.grad.clone(), take(p.grad), p.grad.data_ptr()
    if name == "another's":
        kept.grad = p.grad
        kept = kept.grad
    learner.zero_grad()
    learner.accumulate(*batches[1])
    plain(*batches[1]).loss.backward()
    assert_same_gradients(learner, plain)
    assert (p.grad.data_ptr() == place) == (name == "nothing")
    if name == "memory":
        kept = torch.empty(0, dtype=before.dtype).set_(kept, 0, before.shape)
    if name != "nothing":
        assert torch.equal(torch.as_tensor(kept).view_as(before), before)
    learner.accumulate(*batches[2])  # onto what is there
    plain(*batches[2]).loss.backward()
    assert_same_gradients(learner, plain)


def assert_same_gradients(learner, other):
    for p, q in zip(learner.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_hooks_of_the_nodes_that_add_run(by_autograd):
    """As DistributedDataParallel has them; nothing of theirs can be seen in a parameter."""
    learner, batch = learner_of(), regression()
    p, seen = learner.module[0].bias, []
    node = p.view_as(p).grad_fn.next_functions[0][0]
    node.register_hook(lambda *_: seen.append(p.grad.clone()))
    learner.accumulate(*batch)
    assert torch.equal(seen[0], p.grad)
    del node
    learner.accumulate(*batch)
    assert len(seen) == 1, "a node that nobody keeps is gone with its hooks"
    assert by_autograd == [False, True]


def test_a_graph_that_waits_elsewhere_changes_nothing(by_autograd):
    learner, batch = learner_of(), regression()
    other = copy.deepcopy(learner)
    penalties = [sum(p.square().sum() for p in one.parameters()) for one in (learner, other)]
    learner.accumulate(*batch)
    other(*batch).loss.backward()
    for penalty in penalties:
        penalty.backward()
    for p, q in zip(learner.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert by_autograd == [False]


def test_hooks_of_the_learner_run():
    learner, batch, seen = learner_of(), regression(), []
    learner.register_forward_hook(lambda _, __, out: seen.append(out.loss.requires_grad))
    learner.accumulate(*batch)
    assert seen == [True]


def test_what_was_computed_gets_its_gradient(by_autograd):
    class Shifted(fastmeta.MAML):
        def start(self, theta, support):
            return 2 * theta

    assert_accumulates_alike(learner_of(make=Shifted), regression())
    assert_accumulates_alike(learner_of(inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.3))), regression())
    assert False in by_autograd


def test_data_that_require_grad_get_one():
    learner = learner_of()
    batches = [Batch(*(x.clone() for x in batch)) for batch in [regression()] * 2]
    for batch in batches:
        batch.support_x.requires_grad_()
    learner.accumulate(*batches[0])
    copy.deepcopy(learner)(*batches[1]).loss.backward()
    assert torch.equal(batches[0].support_x.grad, batches[1].support_x.grad)
    same = regression(support=5)
    both = same.support_x.clone().requires_grad_()
    learner.accumulate(both, same.support_y, both, same.query_y)  # twice the same leaf
    again = same.support_x.clone().requires_grad_()
    learner(again, same.support_y, again, same.query_y).loss.backward()
    assert torch.equal(both.grad, again.grad)


def test_parameters_of_several_dtypes(by_autograd):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1).double()

        def forward(self, x):
            return self.b(self.a(x.float()).double())

    assert_accumulates_alike(learner_of(Mixed()), regression())
    assert True not in by_autograd


def test_frozen_parameters_stay_without_a_gradient(by_autograd):
    learner = learner_of()
    learner.module[0].weight.requires_grad_(False)
    learner.accumulate(*regression())
    assert learner.module[0].weight.grad is None
    assert learner.module[0].bias.grad is not None
    assert by_autograd == [True]


def test_anomaly_mode_is_autograds(by_autograd):
    with torch.autograd.set_detect_anomaly(True):
        learner_of().accumulate(*regression())
    assert by_autograd == [False]


def test_under_distributed_data_parallel_its_hooks_run(by_autograd, tmp_path):
    learner, batch = learner_of(), regression()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(learner)
        assert_accumulates_alike(wrapped.module, batch)
        del wrapped
    finally:
        distributed.destroy_process_group()
    assert by_autograd == [False, False]


# Errors. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["maml", "Distillation", "MetaGAN"])
def test_without_gradients_there_is_nothing_to_add(off, name):
    learner, batch = (learner_of(), regression()) if name == "maml" else OTHERS[name]()
    with off(), pytest.raises(RuntimeError, match=r"accumulate\(\) adds .* and gradients are off here"):
        learner.accumulate(*batch)


def test_errors_are_those_of_a_call():
    learner, batch = learner_of(), regression()
    for bad in (
        batch[:2],
        batch._replace(query_x=batch.query_x[:1]),
        batch._replace(support_x=batch.support_x.float()),
    ):
        messages = []
        for call in (learner, learner.accumulate):
            with pytest.raises((TypeError, ValueError)) as error:
                call(*bad)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    assert all(p.grad is None for p in learner.parameters())


def test_a_forward_of_ones_own_is_called():
    class Halved(fastmeta.MAML):
        def forward(self, *batch):
            out = super().forward(*batch)
            return out._replace(loss=out.loss / 2)

    class Other(fastmeta.MAML):
        def forward(self, *batch):
            return super().forward(*batch).loss

    assert_accumulates_alike(learner_of(make=Halved), regression())
    with pytest.raises(TypeError, match=r"needs a forward that gives a fastmeta\.MetaOutput, this one gives Tensor"):
        learner_of(make=Other).accumulate(*regression())


def test_a_task_that_diverged_is_left_out():
    batch = regression()
    batch.support_x[1, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match=r"non-finite values in task\(s\) \[1\]"):
        assert_accumulates_alike(learner_of(), batch)


def test_threads_add_to_the_same_parameters_in_turn():
    learner, batch = learner_of(), regression()
    one = copy.deepcopy(learner)
    one.accumulate(*batch)
    learner.accumulate(*batch)
    learner.zero_grad(set_to_none=False)
    calls = 20
    threads = [threading.Thread(target=lambda: [learner.accumulate(*batch) for _ in range(calls)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for p, q in zip(learner.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 3 * calls * q.grad, rtol=1e-12, atol=0)
