"""Proto-MAML: golden numbers, tasks of different ways, its degenerate twin, and a head that nobody trains."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from closed_form import QUICK, data_of, grads_of, labelled, with_nan
from golden_algorithms import WAYS, case_of, golden_in_every_way
from golden_algorithms import deviation as relative
from golden_cases import ALGORITHMS, names
from meta_steps import mlp
from torch import nn

import fastmeta


def learner_of(model=None, **options):
    model = mlp(2, 8, 4) if model is None else model
    options = {"ways": 3, "features": 4, "inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | options
    return fastmeta.ProtoMAML(model, **options)


def of_case(case, way="eager", dtype=torch.float64, **options):
    spec = case.spec
    return learner_of(
        case.model().to(dtype), ways=spec["ways"], features=8, inner_steps=spec["steps"],
        inner_optimizer=fastmeta.SGD(lr=spec["inner"]["lr"]), **WAYS[way], **options,
    )  # fmt: skip


def step(learner, batch):
    learner.zero_grad()
    out = learner(*batch)
    out.loss.backward()
    return out, grads_of(learner.module)


@golden_in_every_way("protomaml*", compiled={"protomaml_mlp_k2"})
def test_golden(name, way):
    case = case_of(name)
    learner, batch = of_case(case, way), data_of(case)
    out, got = step(learner, batch)
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    assert relative(got, case.grad) < 1e-10
    learner.zero_grad()
    learners = learner.adapt(*batch[:2])
    adapted = {name.removeprefix("encoder."): p.detach() for name, p in learners.parameters().items()}
    assert relative(adapted, case.adapted) < 1e-10
    F.cross_entropy(learners(batch[2]).flatten(0, 1), batch[3].flatten()).backward()
    assert relative(grads_of(learner.module), case.grad) < 1e-10


@pytest.mark.parametrize("name", names("protomaml*", ALGORITHMS))
def test_golden_in_float32(name):
    case = case_of(name)
    _, got = step(of_case(case, dtype=torch.float32), data_of(case, torch.float32))
    assert relative(got, case.grad) < 5e-5


def test_no_golden_case_passes_with_a_mistake(monkeypatch):
    case = case_of("protomaml_mlp_k2")
    _, first = step(of_case(case, first_order=True), data_of(case))
    assert relative(first, case.grad) > 1e-2
    whole = fastmeta.ProtoMAML._support_features
    monkeypatch.setattr(fastmeta.ProtoMAML, "_support_features", lambda *args: whole(*args).detach())
    for name in ("protomaml_mlp_k0", "protomaml_mlp_k2"):
        _, detached = step(of_case(case_of(name)), data_of(case_of(name)))
        assert relative(detached, case_of(name).grad) > 0.1


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(), nn.AvgPool2d(2)
    ).double()  # fmt: skip


RULES = {
    "nesterov": fastmeta.SGD(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adam": fastmeta.Adam(lr=0.01, eps=1e-3),
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_as_the_reference(rule, first_order):
    """An encoder of convolutions and batch norm, whose statistics are of the support set, then of each pass's own."""
    batch = labelled(1, 4, 4)
    learner = learner_of(conv(), features=12, inner_optimizer=RULES[rule], first_order=first_order, backend="torch")
    out, got = step(learner, batch)
    learner.backend = "reference"
    want, truth = step(learner, batch)
    torch.testing.assert_close(out.task_losses, want.task_losses)
    assert relative(got, truth) < 1e-10


def test_without_steps_it_is_a_prototypical_network():
    model, batch = conv(), labelled(1, 4, 4)
    out, got = step(learner_of(model, features=12, inner_steps=0), batch)
    want, twin = step(fastmeta.ProtoNet(model, ways=3, joint=False), batch)
    torch.testing.assert_close(out.loss, want.loss)
    assert relative(got, twin) < 1e-12


def _task(ways, seed):
    """One task of so many ways, with support samples of label −100 where it has fewer than 8."""
    torch.manual_seed(seed)
    x, y, qx, qy = labelled(2, tasks=1, support=2 * ways, query=5, ways=ways)
    alone = (x, y, qx, qy)
    pad = 8 - 2 * ways
    padded = (torch.cat([x, torch.randn(1, pad, 2).double()], 1), F.pad(y, (0, pad), value=-100), qx, qy)
    return alone, padded


@pytest.mark.parametrize("way", QUICK)
def test_tasks_of_different_ways_adapt_as_they_would_alone(way):
    model, rule = mlp(2, 8, 4), fastmeta.SGD(lr=0.1, momentum=0.5)
    options = {"inner_optimizer": rule, "inner_clip_norm": 0.4, **WAYS[way]}
    tasks = [_task(ways, seed) for seed, ways in enumerate((2, 4, 3))]
    wide = learner_of(model, ways=4, **options)
    out, got = step(wide, [torch.cat(xs) for xs in zip(*(padded for _, padded in tasks), strict=True)])
    grads, losses = [], []
    for ways, (alone, _) in zip((2, 4, 3), tasks, strict=True):
        one, g = step(learner_of(model, ways=ways, **options), alone)
        losses.append(one.loss.detach())
        grads.append(g)
    torch.testing.assert_close(out.task_losses.detach(), torch.stack(losses), rtol=1e-13, atol=1e-13)
    mean = {name: torch.stack([g[name] for g in grads]).mean(0) for name in got}
    assert relative(got, mean) < 1e-13
    probabilities = out.outputs.softmax(2)
    assert (probabilities[0, :, 2:] == 0).all()
    assert (probabilities[2, :, 3:] == 0).all()


def test_absent_classes_stay_where_they_are():
    """Their probability is exactly 0, so neither their weights nor anything else hears of them: in float32 too."""
    model = mlp(2, 8, 4).float()
    batch = [x.float() if x.is_floating_point() else x for x in labelled(2)]
    learners = learner_of(model, ways=5).adapt(*batch[:2])
    named = learners.parameters()
    assert (named["head.weight"][:, 3:] == 0).all()
    assert (named["head.bias"][:, 3:] == -1e30).all()
    batch[3][2, 1] = 4
    with pytest.raises(ValueError, match="query_y names class 4 in task 2, of which support_y has no sample"):
        learner_of(model, ways=5)(*batch)


@pytest.mark.parametrize("way", QUICK)
def test_a_task_with_nan_is_left_out(way):
    batch = labelled(2)
    learner = learner_of(**WAYS[way])
    broken, without = with_nan(batch)
    _, want = step(learner, without)
    with pytest.warns(RuntimeWarning, match="1"):
        out, got = step(learner, broken)
    assert out.finite.tolist() == [True, False, True]
    assert relative(got, want) < 1e-12


def test_the_head_is_nobodys_to_train():
    model, batch = mlp(2, 8, 4), labelled(2)
    learner = learner_of(model)
    assert [n for n, _ in learner.named_parameters()] == [f"module.{n}" for n, _ in model.named_parameters()]
    assert all(key.startswith("module.") for key in learner.state_dict())
    before = learner.network.head.weight.clone()
    outer = torch.optim.AdamW(learner.parameters(), 0.01, weight_decay=0.1)
    step(learner, batch)
    outer.step()
    assert torch.equal(learner.network.head.weight, before)
    copied = copy.deepcopy(learner)
    assert copied.network.encoder is copied.module is not model
    assert relative(step(copied, batch)[1], step(learner, batch)[1]) < 1e-14
    narrow = [x.float() if x.is_floating_point() else x for x in batch]
    assert step(learner.float(), narrow)[0].loss.dtype == torch.float32  # the head follows the encoder


def test_learners_go_on_and_come_out_as_modules():
    batch, learner = labelled(2), learner_of(inner_optimizer=fastmeta.SGD(lr=0.1, momentum=0.5))
    whole = learner.adapt(*batch[:2], steps=4)
    parts = learner.adapt(*batch[:2], steps=1).adapt_further(*batch[:2], steps=3)
    torch.testing.assert_close(parts(batch[2]), whole(batch[2]))
    torch.testing.assert_close(whole.module(1)(batch[2][1]), whole(batch[2])[1])


def test_learned_rates_have_a_place_for_the_head():
    batch = labelled(2)
    rates = fastmeta.PerLayerPerStep(0.1)
    learner = learner_of(inner_optimizer=fastmeta.SGD(lr=rates), backend="torch")
    assert "head.weight" in rates.names
    step(learner, batch)
    got = grads_of(learner)
    learner.backend = "reference"
    step(learner, batch)
    assert relative(got, grads_of(learner)) < 1e-10
    assert got["learned.values"].abs().min() > 0


@pytest.mark.proof
def test_plans_are_proved():
    learner = learner_of(backend="torch")
    learner(*labelled(2))
    assert "off plain autograd in float64" in learner.explain()


def test_wrong_options_and_data():
    model, batch = mlp(2, 8, 4), labelled(2)
    for options, message in (
        ({"ways": 1}, "ways must be an integer of at least 2"),
        ({"features": 0}, "features must be an integer of at least 1"),
        ({"features": 5}, r"features=5 must be the width of what the encoder gives for a sample, got \[4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            learner_of(model, **options)(*batch)
    with pytest.raises(TypeError, match="model must be a"):
        learner_of(mlp)

    class BodyAlone(fastmeta.ProtoMAML):
        def adapts(self, name):
            return not name.startswith("head.")

    with pytest.raises(ValueError, match=r"adapts\(\) must be true of 'head.weight'"):
        BodyAlone(model, ways=3, features=4)(*batch)
    with pytest.raises(ValueError, match="support_y must be labels int64"):
        learner_of(model)(batch[0], batch[0], *batch[2:])
    with pytest.raises(ValueError, match="support_y: labels must lie in"):
        learner_of(model, ways=2)(*batch)


@pytest.mark.parametrize("options", [
    {"bn_statistics": "support"}, {"inner_batch_size": 4}, {"inner_clip_norm": 0.3, "inner_steps": 3},
], ids=str)  # fmt: skip
def test_options_of_maml(options):
    """As the reference, with an encoder that the inner loop moves and with one that it leaves alone."""

    class HeadAlone(fastmeta.ProtoMAML):
        def adapts(self, name):
            return name.startswith("head.")

    batch = labelled(1, 4, 4)
    options = {"ways": 3, "features": 12, "inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 2} | options
    for kind in (fastmeta.ProtoMAML, HeadAlone):
        learner = kind(conv(), backend="torch", **options)
        _, got = step(learner, batch)
        learner.backend = "reference"
        _, truth = step(learner, batch)
        assert relative(got, truth) < 1e-10
