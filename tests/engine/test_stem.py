"""What no fast weight reaches runs once: exact beside the reference and beside the same engine without it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interface import (
    WAYS,
    adapted_grads,
    check_as_reference,
    conv,
    every_way,
    grads_of,
    learner_of,
    sharing,
    vary,
    weighing,
)
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Implicit, Unrolled
from fastmeta.engine.meta_step import Engine
from fastmeta.engine.prior import Proximal
from fastmeta.engine.session import PlanCache
from fastmeta.ops.conv2d import Conv2d
from fastmeta.program.split import split

BODY = ("0", "1", "4", "5")  # of conv()


def engine_of(learner, batch):
    """The engine of its meta-steps on a batch."""
    learner(*batch)
    return learner._plans.latest.engine


def once(learner, batch):
    """Labels of the ops that run once."""
    stem = engine_of(learner, batch).stem
    return [] if stem is None else [node.label for node in stem.plan.nodes]


@pytest.fixture
def without_stem(monkeypatch):
    """Runs a function with engines that compute everything in every step."""

    def run(function):
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "stem", None)
            patched.setattr(Engine, "query_stem", None)
            return function()

    return run


def images(tasks=3):
    return classification(1, 4, 4, tasks=tasks, support=6, query=5)


def anil(model=None, algorithm=fastmeta.MAML, **options):
    return learner_of(sharing(*BODY, algorithm=algorithm), conv() if model is None else model,
                      **({"inner_loss": F.cross_entropy, "backend": "torch"} | options))  # fmt: skip


class TestExact:
    @every_way
    @pytest.mark.parametrize("bn_statistics", ["batch", "support"])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_with_norms_in_the_body(self, bn_statistics, first_order, way):
        learner = anil(bn_statistics=bn_statistics, first_order=first_order, **WAYS[way])
        batch = images()
        wanted = [x.requires_grad_() for x in (batch.support_x, batch.query_x)]
        check_as_reference(learner, batch, data=wanted, loss=F.cross_entropy)
        assert (
            len(once(learner, batch)) == len(engine_of(learner, batch).loop.objective.plan.nodes) - 1
        )  # all but the head

    @every_way
    @pytest.mark.parametrize("first_order", [False, True])
    @pytest.mark.parametrize("bn_statistics", ["batch", "support"])
    def test_with_query_losses_of_every_step(self, bn_statistics, first_order, way):
        algorithm = weighing(0.4, 0.0, 0.3, 0.3)
        learner = anil(algorithm=algorithm, bn_statistics=bn_statistics, first_order=first_order, **WAYS[way])
        batch = images()
        wanted = [x.requires_grad_() for x in (batch.support_x, batch.query_x)]
        check_as_reference(learner, batch, data=wanted, loss=F.cross_entropy, adapt=False)
        assert (engine_of(learner, batch).query_stem is None) == (bn_statistics == "support")

    @pytest.mark.parametrize("first_order", [False, True])
    def test_with_learned_rates(self, first_order):
        rates = fastmeta.PerParameter(0.2)
        learner = anil(inner_optimizer=fastmeta.SGD(lr=rates, momentum=0.5), first_order=first_order)
        vary(rates)
        batch = images()
        check_as_reference(learner, batch, loss=F.cross_entropy)
        assert once(learner, batch)

    @every_way
    @pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(hessian=False), Implicit(2.0, 3)])
    def test_as_without_it_under_every_adjoint(self, adjoint, way, without_stem):
        learner = anil(inner_clip_norm=None if isinstance(adjoint, Implicit) else 0.3, **WAYS[way])
        learner.adjoint, learner.prior = adjoint, Proximal(2.0)
        batch = images()
        wanted = [x.requires_grad_() for x in (batch.support_x, batch.query_x)]
        got, by_adapt = grads_of(learner, batch, wanted), adapted_grads(learner, batch, F.cross_entropy)
        assert once(learner, batch)

        def plain():
            assert not once(learner, batch)
            return grads_of(learner, batch, wanted), adapted_grads(learner, batch, F.cross_entropy)

        learner._plans = PlanCache()
        want, want_by_adapt = without_stem(plain)
        assert relative(got, want) < 1e-12
        assert relative(by_adapt, want_by_adapt) < 1e-12

    def test_it_has_the_second_order_part_of_the_body(self):
        exact, first = (grads_of(anil(conv_, first_order=f), batch)
                        for conv_, batch in [(conv(), images())] for f in (False, True))  # fmt: skip
        assert exact.keys() == first.keys()
        assert relative(first, exact) > 0.05

    @pytest.mark.parametrize("frozen", [("0.weight",), ("0", "1"), BODY, ("1.weight", "4.bias")])
    def test_with_frozen_parameters(self, frozen):
        model = conv()
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(frozen))
        batch = images()
        learner = anil(model)
        check_as_reference(learner, batch, data=[batch.support_x.requires_grad_()], loss=F.cross_entropy)
        assert len(once(learner, batch)) > 3


class Branches(nn.Module):
    """Two inputs and three outputs; the body's values meet the head's before, beside and behind it."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 4), nn.Linear(3, 4)
        self.norm, self.head, self.behind = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x, z):
        left, right = torch.tanh(self.left(x)) + self.shift, self.norm(self.right(z)).sigmoid()
        joined = self.head(left * right) * left + right
        return {"y": self.behind(joined), "left": left, "both": [joined, z]}


def branch_loss(outputs, targets):
    joined, z = outputs["both"]
    return F.mse_loss(outputs["y"], targets) + (outputs["left"] * joined).mean() + (z * z).mean() * joined.std()


@every_way
@pytest.mark.parametrize("shared, count", [
    (("left", "right"), 4), (("left", "right", "norm"), 7), (("left",), 3), (("norm",), 0),
    (("left", "right", "norm", "behind"), 7), (("left", "right", "norm", "head"), 10),
    (("right.bias", "behind.weight"), 0),
])  # fmt: skip
@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.0, 1.0)])
def test_branches_that_join_behind_the_head(shared, count, weights, way):
    torch.manual_seed(1)
    algorithm = sharing(*shared, algorithm=fastmeta.MAML if weights is None else weighing(*weights))
    learner = learner_of(algorithm, Branches().double(), inner_loss=branch_loss, **WAYS[way])
    xs = [[torch.randn(3, n, k, dtype=torch.float64).requires_grad_() for k in (2, 3)] for n in (6, 5)]
    ys = [torch.randn(3, n, 2, dtype=torch.float64).requires_grad_() for n in (6, 5)]
    batch = (tuple(xs[0]), ys[0], tuple(xs[1]), ys[1])
    check_as_reference(learner, batch, data=[*xs[0], *xs[1], *ys], adapt=False)
    assert len(once(learner, batch)) == count


class Preprocessing(nn.Module):
    """Values of the inputs alone, below a network that all moves."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x):
        x = torch.cat([torch.sin(x), (x - x.mean(0)) / x.std(0)], -1)
        return self.last(torch.tanh(self.first(x)))


@every_way
@pytest.mark.parametrize("gradient", [False, True])
def test_preprocessing_of_maml_runs_once(gradient, way):
    learner, batch = learner_of(fastmeta.MAML, Preprocessing().double(), **WAYS[way]), regression()
    data = [batch.support_x.requires_grad_()] if gradient else []
    check_as_reference(learner, batch, data=data)
    assert len(once(learner, batch)) >= 4


class TestWhatItIs:
    def count(self, monkeypatch, function):
        """Forward and backward products of convolutions."""
        counts = {"product": 0, "product_backward": 0}
        with monkeypatch.context() as patched:
            for name in counts:
                original = getattr(Conv2d, name)

                def counted(*args, name=name, original=original):
                    counts[name] += 1
                    return original(*args)

                patched.setattr(Conv2d, name, counted)
            function()
        return counts

    def test_the_body_runs_once_forward_and_once_back(self, monkeypatch):
        for steps in (1, 4):
            learner, batch = anil(inner_steps=steps), images()
            learner(*batch)
            exact = self.count(monkeypatch, lambda: learner(*batch))  # noqa: B023
            assert exact == {"product": 4, "product_backward": 4}  # two layers, on two sets

    def test_first_order_takes_nothing_back_through_the_support_set(self, monkeypatch):
        learner, batch = anil(inner_steps=4, first_order=True), images()
        learner(*batch)
        assert self.count(monkeypatch, lambda: learner(*batch)) == {"product": 4, "product_backward": 2}
        learners = learner.adapt(*batch[:2])
        lam = sum(p.sum() for p in learners.parameters().values())
        assert self.count(monkeypatch, lam.backward) == {"product": 0, "product_backward": 0}

    def test_query_losses_of_every_step_run_the_body_once(self, monkeypatch):
        learner, batch = anil(algorithm=weighing(1.0, 1.0, 1.0, 1.0)), images()
        learner(*batch)
        assert self.count(monkeypatch, lambda: learner(*batch)) == {"product": 4, "product_backward": 4}

    def test_a_frozen_trunk_keeps_no_tape_and_gets_no_backward(self, monkeypatch):
        model = conv()
        model[:8].requires_grad_(False)
        learner, batch = learner_of(fastmeta.MAML, model, inner_loss=F.cross_entropy, backend="torch"), images()
        learner(*batch)
        assert self.count(monkeypatch, lambda: learner(*batch)) == {"product": 4, "product_backward": 0}
        session = learner.session(fastmeta.engine.batch.TaskBatch(*batch))
        given = session.backend.engine._features(session.support, session.context, keep=True)
        assert given.tape == [None] * len(given.tape)
        assert not session.backend.engine.stem.rest.data_wanted

    def test_the_rest_of_anil_shares_nothing(self):
        stem = engine_of(anil(), images()).stem
        assert stem.rest.shared.size == 0
        assert stem.shared.size > 0

    def test_explain_counts_it(self):
        learner = anil()
        count = len(once(learner, images()))
        text = learner.explain()
        assert f"inner loop, {count} of {count + 1} op(s) computed once, as no fast weight reaches them:" in text
        assert text.count("(only shared parameters before it), once\n") == count
        learner = learner_of(backend="torch")
        learner(*regression())
        assert "inner loop:" in learner.explain()


class TestWhereItIsNot:
    def test_in_batches_of_samples(self):
        learner, batch = anil(inner_batch_size=3), images()
        check_as_reference(learner, batch, loss=F.cross_entropy)
        assert engine_of(learner, batch).stem is None

    def test_behind_random_numbers(self, without_stem):
        model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
        model, batch = model.double(), regression()
        learner = learner_of(sharing("0", "3"), model, backend="torch")
        assert len(once(learner, batch)) == 2  # what is before the dropout
        torch.manual_seed(3)
        got = grads_of(learner, batch)
        torch.manual_seed(3)
        again = learner_of(sharing("0", "3"), model, backend="torch")
        assert relative(without_stem(lambda: grads_of(again, batch)), got) < 1e-12
        torch.manual_seed(4)
        assert relative(grads_of(learner, batch), got) > 1e-2

    def test_values_that_move_without_a_gradient(self):
        """Which weights a class has is read off fast weights: it changes in every step, though nothing flows back."""

        class Gated(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 3)

            def forward(self, x):
                features = torch.tanh(self.body(x))
                y = self.head(features)
                gate = (y.detach() > 0).to(y.dtype) + y.detach().exp()
                return (y + self.head.weight.detach().sum() * features * gate).sum(-1, keepdim=True)

        learner, batch = learner_of(sharing("body"), Gated().double()), regression()
        check_as_reference(learner, batch)
        assert len(once(learner, batch)) == 2

    def test_without_inner_steps(self):
        learner, batch = anil(inner_steps=0), images()
        check_as_reference(learner, batch, loss=F.cross_entropy)
        assert engine_of(learner, batch).stem is None


def test_a_task_that_diverges_stays_out_of_the_body():
    learner, batch = anil(), images(tasks=3)
    batch.support_x[1, 0] = float("nan")
    with pytest.warns(RuntimeWarning, match=r"task\(s\) \[1\]"):
        got = grads_of(learner, batch)
    good = [0, 2]
    want = grads_of(learner, [x[good] for x in batch])
    for found in (got, want):
        del found["losses"]
    assert all(x.isfinite().all() for x in got.values())
    assert relative(got, want) < 1e-12


def test_learners_go_on_where_they_were():
    learner, batch = anil(inner_steps=4), images()
    whole = learner.adapt(*batch[:2]).parameters()
    parts = learner.adapt(*batch[:2], steps=1).adapt_further(*batch[:2], steps=3).parameters()
    assert relative({k: x.detach() for k, x in parts.items()}, {k: x.detach() for k, x in whole.items()}) < 1e-13


def test_a_split_plan_runs_every_op_in_one_of_its_parts():
    learner = learner_of(sharing("left", "right"), Branches().double(), inner_loss=branch_loss, backend="torch")
    xs = [torch.randn(2, 4, k, dtype=torch.float64) for k in (2, 3)]
    y = torch.randn(2, 4, 2, dtype=torch.float64)
    plan = engine_of(learner, (tuple(xs), y, tuple(xs), y)).loop.objective.plan
    stem, rest = split(plan)
    ops = sorted(node.outputs for part in (stem, rest) for node in part.nodes)
    assert ops == sorted(node.outputs for node in plan.nodes)
    assert set(rest.input_slots) == {*plan.input_slots, *stem.output_slots}
    assert {s for node in stem.nodes for s in node.inputs}.isdisjoint(plan.param_slots)
    assert split(rest) is None


@pytest.mark.parametrize("options", [{}, {"weights": (0.5, 0.0, 0.0, 0.5)}, {"first_order": True}])
def test_what_is_compiled_is_traced_exactly(options, traced):
    weights = options.pop("weights", None)
    algorithm = fastmeta.MAML if weights is None else weighing(*weights)
    learner, batch = anil(algorithm=algorithm, **options), images(tasks=2)
    wanted = [batch.support_x.requires_grad_()]
    want = grads_of(learner, batch, wanted), adapted_grads(learner, batch, F.cross_entropy) if not weights else None
    learner.compile_step = True
    assert relative(grads_of(learner, batch, wanted), want[0]) < 1e-12
    if not weights:
        assert relative(adapted_grads(learner, batch, F.cross_entropy), want[1]) < 1e-12
    assert traced
