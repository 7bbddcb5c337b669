"""Prototypical networks and ridge heads: golden numbers, labels of any kind, padding, absent classes."""

from __future__ import annotations

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
from fastmeta.engine.labels import Members

LEARNERS = {
    "squared": fastmeta.ProtoNet,
    "euclidean": lambda model, **o: fastmeta.ProtoNet(model, distance="euclidean", **o),
    "cosine": lambda model, **o: fastmeta.ProtoNet(model, distance="cosine", **o),
    "r2d2": lambda model, **o: fastmeta.R2D2(model, lam=0.7, scale=2.0, bias=0.1, learn_lam=True, **o),
    "metaoptnet": lambda model, **o: fastmeta.MetaOptNetRR(model, lam=1.5, scale=3.0, **o),
}
each_learner = pytest.mark.parametrize("kind", LEARNERS)


def step(learner, batch):
    """A meta-step's losses and all gradients."""
    learner.zero_grad()
    out = learner(*batch)
    out.loss.backward()
    return out, grads_of(learner)


def learner_of(case, way="eager", dtype=torch.float64):
    spec, model = case.spec, case.model().to(dtype)
    options = {"ways": spec["ways"], **WAYS[way]}
    extra = {name: x.item() for name, x in case.extra.items()}
    if spec["algorithm"] == "protonet":
        return fastmeta.ProtoNet(model, distance=spec["distance"], joint=spec["joint_batch"], **options)
    if spec["algorithm"] == "r2d2":
        return fastmeta.R2D2(
            model, lam=extra["lambda"], scale=extra["scale"], bias=extra["bias"], learn_lam=True,
            joint=spec["joint_batch"], **options,
        )  # fmt: skip
    return fastmeta.MetaOptNetRR(model, lam=spec["lam"], scale=extra["scale"], **options)


def check_golden(case, learner, dtype, tolerance):
    batch = data_of(case, dtype)
    if learner.learned is not None:  # float64 numbers by their names, not through Python's floats
        with torch.no_grad():
            for name, p in learner.learned.named_parameters():
                p.copy_(case.extra[{"lam": "lambda"}.get(name, name)])

    def compare():
        assert relative(grads_of(learner.module), case.grad) < tolerance
        if case.extra:
            extra = {{"lam": "lambda"}.get(name, name): g for name, g in grads_of(learner.learned).items()}
            assert relative(extra, case.grad_extra) < tolerance

    out = learner(*batch)
    out.loss.backward()
    assert abs(out.loss.item() - case["loss"].item()) < tolerance * max(1.0, case["loss"].item())
    assert (out.task_losses.detach() - case["task_losses"]).norm() < tolerance * max(1.0, case["task_losses"].norm())
    compare()
    learner.zero_grad()
    logits = learner.adapt(*batch[:2])(batch[2])
    torch.testing.assert_close(logits.detach(), out.outputs)
    if dtype == torch.float64:  # in float32 PyTorch's own cross-entropy errs by 2e-4 where a task is nearly certain
        F.cross_entropy(logits.flatten(0, 1), batch[3].flatten()).backward()
        compare()


@golden_in_every_way("protonet*", "r2d2*", "ridge*", compiled={"protonet_mlp", "r2d2_1shot_dual", "ridge_head_mlp"})
def test_golden(name, way):
    case = case_of(name)
    check_golden(case, learner_of(case, way), torch.float64, 1e-10)


@pytest.mark.parametrize(
    "name", [n for pattern in ("protonet*", "r2d2*", "ridge*") for n in names(pattern, ALGORITHMS)]
)
def test_golden_in_float32(name):
    case = case_of(name)
    check_golden(case, learner_of(case, dtype=torch.float32), torch.float32, 5e-5)


def test_no_golden_case_passes_with_a_mistake():
    def apart(name, **changed):
        case = case_of(name)
        case.spec.update(changed)
        learner = learner_of(case)
        step(learner, data_of(case))
        return relative(grads_of(learner.module), case.grad)

    assert apart("protonet_mlp", distance="euclidean") > 0.1
    assert apart("protonet_cosine", distance="squared") > 0.1
    assert apart("protonet_conv_joint_bn", joint_batch=False) > 1e-2
    assert apart("ridge_head_mlp", lam=40.0) > 1e-2
    case = case_of("r2d2_5shot_primal")
    learner = fastmeta.MetaOptNetRR(case.model(), lam=case.extra["lambda"].item(), scale=case.extra["scale"].item())
    step(learner, data_of(case))
    assert relative(grads_of(learner.module), case.grad) > 1e-2  # without the column of ones and the 1/√N


@each_learner
def test_against_a_plain_loop_over_the_tasks(kind):
    """Encoder with batch norm, support and query set as one batch or apart; what each class is read from its label."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh(), nn.AvgPool2d(2)
    ).double()
    batch = labelled(1, 6, 6)
    for joint in (True, False):
        learner = LEARNERS[kind](model, ways=3, joint=joint, backend="torch")
        out, got = step(learner, batch)
        learner.zero_grad()
        losses = []
        for sx, sy, qx, qy in zip(*batch, strict=True):
            if joint:
                both = model(torch.cat([sx, qx])).flatten(1)
                s, q = both[:6], both[6:]
            else:
                s, q = model(sx).flatten(1), model(qx).flatten(1)
            losses.append(F.cross_entropy(learner.head(s, F.one_hot(sy, 3).double(), q), qy))
        torch.stack(losses).mean().backward()
        assert relative(got, grads_of(learner)) < 1e-12
        torch.testing.assert_close(out.task_losses.detach(), torch.stack(losses).detach())


@pytest.mark.parametrize("kind", ["squared", "r2d2"])
def test_labels_in_any_order(kind):
    model, batch = mlp(2, 8, 4), labelled(2)
    learner = LEARNERS[kind](model, ways=3)
    out, got = step(learner, batch)
    order = torch.tensor([4, 1, 0, 5, 3, 2])
    moved, same = step(learner, [batch[0][:, order], batch[1][:, order], *batch[2:]])
    assert relative(same, got) < 1e-12
    torch.testing.assert_close(moved.outputs, out.outputs)
    renamed = torch.tensor([2, 0, 1])
    other, same = step(learner, [batch[0], renamed[batch[1]], batch[2], renamed[batch[3]]])
    assert relative(same, got) < 1e-12
    torch.testing.assert_close(other.outputs[..., renamed], out.outputs)


@pytest.mark.parametrize("way", ["eager", "reference"])
@pytest.mark.parametrize("kind", ["squared", "r2d2", "metaoptnet"])
def test_padding_counts_for_nothing(kind, way):
    model, batch = mlp(2, 8, 4), labelled(2)
    learner = LEARNERS[kind](model, ways=3, **WAYS[way])
    out, want = step(learner, batch)
    padded = []
    for x, y in (batch[:2], batch[2:]):
        padded += [torch.cat([x[:, :2] + 9.0, x], 1), torch.cat([torch.full((3, 2), -100), y], 1)]
    got, grads = step(learner, padded)
    assert relative(grads, want) < 1e-12
    torch.testing.assert_close(got.outputs[:, 2:], out.outputs)
    torch.testing.assert_close(got.task_losses, out.task_losses)


@each_learner
def test_a_class_without_support_samples_never_wins(kind):
    model, batch = mlp(2, 8, 4), labelled(2)
    fewer, want = step(LEARNERS[kind](model, ways=3), batch)
    out, got = step(LEARNERS[kind](model, ways=5), batch)
    assert relative(got, want) < 1e-12
    torch.testing.assert_close(out.outputs[..., :3], fewer.outputs)
    assert (out.outputs.softmax(2)[..., 3:] == 0).all()
    assert out.outputs.isfinite().all()
    batch[3][1, 2] = 4
    with pytest.raises(ValueError, match="query_y names class 4 in task 1, of which support_y has no sample"):
        LEARNERS[kind](model, ways=5)(*batch)


@pytest.mark.parametrize("way", QUICK)
@pytest.mark.parametrize("kind", ["squared", "r2d2"])
def test_a_task_with_nan_is_left_out(kind, way):
    model, batch = mlp(2, 8, 4), labelled(2)
    learner = LEARNERS[kind](model, ways=3, **WAYS[way])
    broken, without = with_nan(batch)
    _, want = step(learner, without)
    with pytest.warns(RuntimeWarning, match="1"):
        out, got = step(learner, broken)
    assert out.finite.tolist() == [True, False, True]
    assert relative(got, want) < 1e-12
    learner.zero_grad()
    with pytest.warns(RuntimeWarning):
        classifiers = learner.adapt(*broken[:2])
    assert classifiers.finite.tolist() == [True, False, True]
    logits = classifiers(broken[2])[classifiers.finite]
    F.cross_entropy(logits.flatten(0, 1), without[3].flatten()).backward()
    assert relative(grads_of(learner), want) < 1e-12


@pytest.mark.parametrize("kind", ["squared", "r2d2"])
def test_ways_of_each_batch(kind):
    model = mlp(2, 8, 4)
    for ways in (3, 4):
        batch = labelled(2, ways=ways, support=8)
        _, want = step(LEARNERS[kind](model, ways=ways), batch)
        out, got = step(LEARNERS[kind](model), batch)
        assert relative(got, want) < 1e-12
        assert out.outputs.shape[2] == ways


def test_with_ways_given_no_device_is_waited_for():
    """Nothing can be read of a tensor on the device "meta"."""
    x, y = torch.empty(2, 4, 3, device="meta"), torch.empty(2, 4, dtype=torch.int64, device="meta")
    members = Members.of(x, y, 5, torch.float32)
    assert members.values.shape == (2, 4, 5)
    with pytest.raises(RuntimeError):
        Members.of(x, y, None, torch.float32)


@pytest.mark.parametrize("way", ["eager", "reference"])
def test_a_query_sample_on_its_prototype_has_no_gradient_by_the_distance(way):
    """The root's slope at 0 is infinite: a support set of one sample a class, asked about itself."""
    model, (x, y, *_) = mlp(2, 8, 4), labelled(2, support=3)
    learner = fastmeta.ProtoNet(model, distance="euclidean", ways=3, **WAYS[way])
    out, got = step(learner, [x, y, x, y])
    assert all(g.isfinite().all() for g in got.values())
    assert (out.outputs.gather(2, y.unsqueeze(2)) == 0).all()
    cosine, got = step(fastmeta.ProtoNet(model, distance="cosine", **WAYS[way]), [0 * x, y, x, y])
    assert all(g.isfinite().all() for g in got.values())
    assert cosine.finite.all()


def test_training_separates_classes():
    """Two clusters along one of ten axes, which the encoder must find; it must do so whichever way it runs."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(10, 2, bias=False)
    start = model.weight.detach().clone()
    for make in (LEARNERS["squared"], LEARNERS["r2d2"]):
        with torch.no_grad():
            model.weight.copy_(start)
        learner = make(model, ways=2)
        outer = torch.optim.Adam(learner.parameters(), 0.05)
        for _ in range(60):
            y = (torch.arange(12) + torch.randint(2, (4, 1), generator=generator)) % 2
            x = torch.randn(4, 12, 10, generator=generator)
            x[..., 0] += 3.0 * y
            outer.zero_grad()
            learner(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]).loss.backward()
            outer.step()
        with torch.no_grad():
            logits = learner.adapt(x[:, :4], y[:, :4])(x[:, 4:])
        assert (logits.argmax(2) == y[:, 4:]).float().mean() > 0.8
        assert model.weight[:, 0].norm() > 1.5 * model.weight[:, 1:].norm(dim=0).max()
        assert start[:, 0].norm() < 1.5 * start[:, 1:].norm(dim=0).max()


def test_inputs_may_be_trees():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(2, 4), mlp(3, 4)

        def forward(self, first, second):
            return self.a(first) + self.b(second)

    model, (x, sy, qx, qy) = Sum().double(), labelled(5)
    parts = [({"first": v[..., :2], "second": v[..., 2:]}) for v in (x, qx)]
    for joint in (True, False):
        learner = fastmeta.ProtoNet(model, ways=3, joint=joint)
        as_dict, grads = step(learner, [parts[0], sy, parts[1], qy])
        as_tuple, same = step(learner, [tuple(parts[0].values()), sy, tuple(parts[1].values()), qy])
        assert relative(same, grads) == 0.0
        assert torch.equal(as_dict.outputs, as_tuple.outputs)
        torch.testing.assert_close(learner.adapt(parts[0], sy)(parts[1]).detach(), as_dict.outputs)


def test_another_outer_loss_and_losses_of_tasks():
    model, batch = mlp(2, 8, 4), labelled(2)

    def smooth(logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    learner = fastmeta.ProtoNet(model, ways=3, outer_loss=smooth)
    out, _ = step(learner, batch)
    want = torch.stack([smooth(y, labels) for y, labels in zip(out.outputs, batch[3], strict=True)])
    torch.testing.assert_close(out.task_losses.detach(), want)
    losses = learner(*batch).task_losses
    learner.zero_grad()
    losses[2].backward()
    third = grads_of(model)
    step(learner, [x[2:] for x in batch])
    assert relative(third, grads_of(model)) < 1e-12


def test_a_meta_step_without_gradients():
    model, batch = mlp(2, 8, 4), labelled(2)
    learner = LEARNERS["r2d2"](model, ways=3, backend="torch")
    want = learner(*batch)
    with torch.no_grad():
        out = learner(*batch)
        assert not learner.adapt(*batch[:2])(batch[2]).requires_grad
    assert torch.equal(out.loss, want.loss.detach())
    assert repr(learner.adapt(*batch[:2])) == "TaskClassifiers(3 tasks, 3 classes)"
    assert "encoder.0" in learner.explain()


@pytest.mark.proof
def test_plans_are_proved():
    model, batch = mlp(2, 8, 4), labelled(2)
    for make in LEARNERS.values():
        learner = make(model, ways=3, backend="torch")
        learner(*batch)
        assert "off plain autograd in float64" in learner.explain()


WRONG = [
    ({"ways": 1}, "ways must be an integer of at least 2"),
    ({"ways": True}, "ways must be"),
    ({"joint": 1}, "joint must be True or False"),
    ({"distance": "l1"}, "distance must be one of 'squared', 'euclidean', 'cosine'"),
    ({"backend": "numpy"}, "backend must be one of"),
]
WRONG_NUMBERS = [
    ({"lam": 0.0}, "lam must be positive"),
    ({"lam": float("nan")}, "lam must be a finite number"),
    ({"scale": "1"}, "scale must be a finite number"),
    ({"lam_base": -1.0}, "lam_base must be positive"),
    ({"learn_lam": 1}, "learn_lam must be True or False"),
]


def test_wrong_options():
    model = mlp(2, 4)
    for kind, wrong in ((fastmeta.ProtoNet, WRONG), (fastmeta.R2D2, WRONG_NUMBERS)):
        for options, message in wrong:
            with pytest.raises((TypeError, ValueError), match=message):
                kind(model, **options)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        fastmeta.MetaOptNetRR(mlp)
    learner = fastmeta.ProtoNet(model)
    for option, value in (("inner_steps", 3), ("inner_optimizer", fastmeta.SGD(lr=0.1)), ("bn_statistics", "support")):
        with pytest.raises(ValueError, match=f"{option} cannot be set: ProtoNet has no inner loop"):
            setattr(learner, option, value)


def test_wrong_data():
    model, (x, y, qx, qy) = mlp(2, 4), labelled(2)
    learner = fastmeta.ProtoNet(model, ways=3)
    wrong = [
        ((x, None, qx, qy), "support_y must be labels int64"),
        ((x, y.double(), qx, qy), "support_y must be labels int64"),
        ((x, y[:, :4], qx, qy), "support_y must hold a label for each sample"),
        ((x, y + 1, qx, qy), r"support_y: labels must lie in \[0, 3\)"),
        ((x, y, qx, qy + 1), r"query_y: labels must lie in \[0, 3\)"),
        ((x, y, qx[:2], qy), "query_x must hold as many tasks as support_x"),
        ((x, y, None, None), "query_x must hold tensors"),
        ((x.float(), y, qx, qy), "support_x must have the dtype"),
    ]
    for data, message in wrong:
        with pytest.raises((TypeError, ValueError), match=message):
            learner(*data)
    with pytest.raises(ValueError, match="steps must be None or 0, as ProtoNet has no inner loop"):
        learner.adapt(x, y, steps=2)
    with pytest.raises(ValueError, match="query_x must hold the 3 tasks"):
        learner.adapt(x, y)(qx[:1])
    with pytest.raises(ValueError, match="ignored labels"):
        fastmeta.ProtoNet(model)(x, torch.full_like(y, -100), qx, qy)
