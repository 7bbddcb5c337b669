"""reference.py against public libraries' results, torch.optim, finite differences and hand-written cases."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.optim.adam import Adam
from fastmeta.optim.sgd import SGD
from fastmeta.reference import adapt, apply, task_losses

STEP = SGD(lr=0.1)
LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def inner_optimizer(spec):
    options = {name: value for name, value in spec["inner"].items() if name != "optimizer"}
    if spec["inner"]["optimizer"] == "adam":
        return Adam(lr=options["lr"], betas=tuple(options["betas"]), eps=options["eps"])
    return SGD(**options)


def mlp(*widths, activation=nn.Tanh):
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def regression(tasks=3, samples=7, features=2, outputs=1):
    x = torch.randn(tasks, samples, features, dtype=torch.float64)
    return x, torch.randn(tasks, samples, outputs, dtype=torch.float64)


def fast_weights(model, support, *, optimizer=STEP, steps=2, loss=F.mse_loss, **options):
    options |= {"support_x": support[0], "support_y": support[1]}
    return adapt(model, inner_loss=loss, inner_optimizer=optimizer, steps=steps, **options)


def meta_gradient(model, support, query, *, loss=F.mse_loss, bn_statistics="batch", **options):
    """Gradient of the mean query loss by parameter name, and its value."""
    phi = fast_weights(model, support, loss=loss, **options)
    outputs = apply(model, phi, query[0], support_x=support[0], bn_statistics=bn_statistics)
    value = task_losses(loss, outputs, query[1]).mean()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(value, list(named.values()))
    return dict(zip(named, grads, strict=True)), value.detach()


def test_golden_case(golden):
    model, spec = golden.model(), golden.spec
    loss, tolerance = LOSSES[spec["loss"]], 1e-8 if spec["inner"]["optimizer"] == "adam" else 1e-10
    options = {"loss": loss, "optimizer": inner_optimizer(spec), "steps": spec["steps"]}
    first_order = spec["algorithm"] == "fomaml"
    phi = fast_weights(model, (golden["support_x"], golden["support_y"]), first_order=first_order, **options)
    losses = task_losses(loss, apply(model, phi, golden["query_x"]), golden["query_y"])
    assert relative(losses, golden["task_losses"]) < tolerance
    theta = dict(model.named_parameters())
    if spec["algorithm"] == "reptile":
        grads = {name: (p - phi[name]).mean(0) for name, p in theta.items()}
    else:
        grads = dict(zip(theta, torch.autograd.grad(losses.mean(), list(theta.values())), strict=True))
    assert grads.keys() == golden.grad.keys()
    largest = max(g.norm() for g in golden.grad.values())
    for name, expected in golden.grad.items():
        # a bias before a batch norm has no effect: its gradient is rounding, to be measured by the whole
        assert (grads[name] - expected).norm() < tolerance * max(expected.norm(), 1e-4 * largest), name
        assert relative(phi[name], golden.adapted[name]) < tolerance, name


@pytest.mark.golden("conv4_omniglot_maml_k3")
def test_first_order_is_another_gradient(golden):
    model = golden.model()
    data = (golden["support_x"], golden["support_y"]), (golden["query_x"], golden["query_y"])
    options = {"optimizer": inner_optimizer(golden.spec), "steps": 3, "loss": F.cross_entropy}
    exact, value = meta_gradient(model, *data, **options)
    first, same_value = meta_gradient(model, *data, first_order=True, **options)
    assert value.item() == same_value.item()
    assert relative(first["12.weight"], exact["12.weight"]) > 0.1


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.2),
        SGD(lr=0.1, momentum=0.9, weight_decay=0.05),
        SGD(lr=0.1, momentum=0.8, nesterov=True),
        Adam(lr=0.05, betas=(0.8, 0.95)),
    ],
    ids=["sgd", "momentum", "nesterov", "adam"],
)
def test_meta_gradient_agrees_with_finite_differences(optimizer):
    model = mlp(2, 9, 5, 1)
    support, query = regression(), regression(samples=5)
    options = {"optimizer": optimizer, "steps": 3, "inner_batch_size": 4}
    grads, _ = meta_gradient(model, support, query, **options)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    slope = sum((grads[name] * v).sum() for name, v in direction.items())

    def value_at(h):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p.add_(direction[name], alpha=h)
        _, value = meta_gradient(moved, support, query, **options)
        return value

    h = 1e-5
    difference = (value_at(h) - value_at(-h)) / (2 * h)
    assert slope.abs() > 1e-2
    assert abs(difference / slope - 1) < 1e-6


def test_no_steps_give_the_plain_query_gradient():
    model = mlp(2, 5, 1)
    support, query = regression(), regression()
    expected = torch.autograd.grad(F.mse_loss(model(query[0]), query[1]), list(model.parameters()))
    for first_order in (False, True):
        grads, _ = meta_gradient(model, support, query, optimizer=SGD(lr=0.1), steps=0, first_order=first_order)
        for got, want in zip(grads.values(), expected, strict=True):
            assert relative(got, want) < 1e-12


@pytest.mark.parametrize("first_order", [False, True])
def test_permuting_the_tasks_permutes_the_results(first_order):
    model = mlp(2, 5, 1)
    (x, y), order = regression(tasks=5), torch.tensor([3, 0, 4, 1, 2])
    options = {"optimizer": Adam(lr=0.1), "first_order": first_order}
    straight, permuted = (
        fast_weights(model, (x, y), **options),
        fast_weights(model, (x[order], y[order]), **options),
    )
    for name, phi in straight.items():
        assert torch.equal(permuted[name], phi[order])
        assert not torch.equal(permuted[name], phi)


def test_first_order_leaves_the_values_and_has_the_identity_as_derivative():
    model, support = mlp(2, 5, 1), regression()
    exact, first = fast_weights(model, support), fast_weights(model, support, first_order=True)
    for name, p in model.named_parameters():
        assert torch.equal(exact[name], first[name])
        cotangent = torch.randn_like(first[name])
        (grad,) = torch.autograd.grad(first[name], p, cotangent)
        assert relative(grad, cotangent.sum(0)) < 1e-12


@pytest.mark.parametrize(
    "kind, options",
    [
        (SGD, {"lr": 0.1}),
        (SGD, {"lr": 0.1, "weight_decay": 0.3}),
        (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
        (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (Adam, {"lr": 0.1}),
        (Adam, {"lr": 0.1, "betas": (0.0, 0.9), "eps": 0.1}),
    ],
    ids=["sgd", "decay", "momentum-decay", "nesterov", "adam", "adam-odd"],
)
def test_inner_optimizers_follow_torch_optim(kind, options):
    model = mlp(3, 11, 2)
    x, y = regression(tasks=2, samples=5, features=3, outputs=2)
    batches = [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1], [2, 3, 4]]
    phi = fast_weights(model, (x, y), optimizer=kind(**options), steps=5, inner_batch_size=3)
    for t in range(2):
        copied = copy.deepcopy(model)
        optimizer = getattr(torch.optim, kind.__name__)(copied.parameters(), **options)
        for batch in batches:
            optimizer.zero_grad()
            F.mse_loss(copied(x[t, batch]), y[t, batch]).backward()
            optimizer.step()
        for name, expected in copied.named_parameters():
            assert relative(phi[name][t], expected) < 1e-12
            assert relative(phi[name][t], model.get_parameter(name)) > 1e-2


def test_adam_has_a_finite_gradient_where_the_inner_gradient_is_zero():
    model = mlp(2, 6, 1, activation=nn.ReLU)
    with torch.no_grad():
        model[0].bias[:3] = -100.0  # three dead units: exactly zero gradients
    support, query = regression(), regression()
    grads, _ = meta_gradient(model, support, query, optimizer=Adam(lr=0.01), steps=3)
    assert all(g.isfinite().all() for g in grads.values())
    assert (grads["0.weight"][:3] == 0).all()
    assert grads["0.weight"][3:].norm() > 1e-3


def test_a_parameter_without_influence_keeps_its_value():
    model = mlp(2, 5, 1)
    model[0].unused = nn.Parameter(torch.randn(3, dtype=torch.float64))
    phi = fast_weights(model, regression(), optimizer=Adam(lr=0.1))
    assert torch.equal(phi["0.unused"], model[0].unused.expand(3, -1))
    assert (phi["0.weight"] != model[0].weight).all()


def conv_net(track=True):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, track_running_stats=track),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 9, 5),
        nn.BatchNorm1d(5, track_running_stats=track),
    ).double()


def images(tasks=2, samples=4):
    x = torch.randn(tasks, samples, 2, 5, 5, dtype=torch.float64)
    return x, torch.randint(5, (tasks, samples))


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
def test_running_statistics_are_never_written(bn_statistics):
    model = conv_net()
    before = {name: (buffer.clone(), buffer._version) for name, buffer in model.named_buffers()}
    assert len(before) == 6
    meta_gradient(model, images(), images(samples=3), loss=F.cross_entropy, bn_statistics=bn_statistics)
    for name, buffer in model.named_buffers():
        value, version = before[name]
        assert torch.equal(buffer, value), name
        assert buffer._version == version, name


def test_eval_mode_reads_running_statistics():
    model = conv_net().eval()
    model[1].running_mean.normal_()
    model[1].running_var.fill_(3.0)
    x, y = images()
    phi = fast_weights(model, (x, y), loss=F.cross_entropy, steps=0)
    assert torch.allclose(apply(model, phi, x)[1], model(x[1]), rtol=1e-12)
    with_support = apply(model, phi, x, support_x=x[:, :2], bn_statistics="support")
    assert torch.equal(with_support, apply(model, phi, x))
    assert not torch.allclose(apply(model.train(), phi, x)[1], model.eval()(x[1]), rtol=1e-2)


def test_support_statistics_by_hand():
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[0].bias)
    support, query = torch.randn(2, 5, 3).double(), torch.randn(2, 1, 3).double()
    phi = {name: p.expand(2, -1) for name, p in model.named_parameters()}
    got = apply(model, phi, query, support_x=support, bn_statistics="support")
    mean, var = support.mean(1, keepdim=True), support.var(1, correction=0, keepdim=True)
    expected = (query - mean) / (var + model[0].eps).sqrt() * model[0].weight + model[0].bias
    assert relative(got, expected) < 1e-12


def test_support_statistics_are_those_of_the_first_rows_in_every_layer():
    """The whole network, values and gradients, against one that takes [support, query] and is written out."""

    class FirstRows(nn.Module):
        def __init__(self, norm, rows):
            super().__init__()
            self.norm, self.rows = norm, rows

        def forward(self, x):
            dims = (0, *range(2, x.dim()))
            first, shape = x[: self.rows], (1, -1, *(1,) * (x.dim() - 2))
            mean, var = first.mean(dims, keepdim=True), first.var(dims, correction=0, keepdim=True)
            normal = (x - mean) / (var + self.norm.eps).sqrt()
            return normal * self.norm.weight.view(shape) + self.norm.bias.view(shape)

    model = conv_net()
    for layer in (model[1], model[5]):
        nn.init.normal_(layer.weight)
    support, query = images(), images(samples=3)
    options = {"optimizer": SGD(lr=0.3), "loss": F.cross_entropy}
    got, value = meta_gradient(model, support, query, bn_statistics="support", **options)
    _, batch_value = meta_gradient(model, support, query, **options)

    phi = fast_weights(model, support, **options)
    both = nn.Sequential(model[0], FirstRows(model[1], 4), *model[2:5], FirstRows(model[5], 4))
    renamed = {name.replace("1.", "1.norm.").replace("5.", "5.norm."): p for name, p in phi.items()}
    outputs = apply(both, renamed, torch.cat([support[0], query[0]], 1))[:, 4:]
    expected_value = task_losses(F.cross_entropy, outputs, query[1]).mean()
    expected = torch.autograd.grad(expected_value, list(model.parameters()))
    assert relative(value, expected_value) < 1e-12
    assert abs(value - batch_value) > 1e-2
    whole = torch.cat([g.flatten() for g in expected])
    assert relative(torch.cat([g.flatten() for g in got.values()]), whole) < 1e-10


@pytest.mark.parametrize("more_on_query", [False, True])
def test_support_statistics_need_the_same_calls(more_on_query):
    class Uneven(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(super().forward(x) if (len(x) == 2) is more_on_query else x)

    model, query, support = Uneven(3), torch.randn(1, 2, 3), torch.randn(1, 4, 3)
    phi = {name: p[None] for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="same batch-norm calls"):
        apply(model, phi, query, support_x=support, bn_statistics="support")


def test_frozen_and_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.second.bias.requires_grad_(False)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    model = Tied().double()
    x, y = regression(outputs=2)
    phi = fast_weights(model, (x, y), steps=1)
    assert list(phi) == ["first.weight"]
    w, b = model.first.weight, model.second.bias
    for t in range(3):
        loss = F.mse_loss(torch.tanh(x[t] @ w.T) @ w.T + b, y[t])
        (g,) = torch.autograd.grad(loss, w)
        assert relative(phi["first.weight"][t], w - 0.1 * g) < 1e-12
    assert model.second.bias.grad is None


def test_inputs_and_outputs_may_be_trees_and_targets_absent():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(3, 2), nn.Linear(2, 3)

        def forward(self, x, scale):
            code = self.encode(x) * scale
            return {"code": code, "pair": (self.decode(code), None)}

    model = Autoencoder().double()
    x, scale = torch.randn(2, 5, 3).double(), torch.rand(2, 5, 1).double()

    def loss(outputs, targets):
        assert targets is None
        return outputs["code"].square().mean() + outputs["pair"][0].square().mean()

    results = []
    for tree in ((x, scale), {"scale": scale, "x": x}):
        phi = fast_weights(model, (tree, None), loss=loss, inner_batch_size=2)
        outputs = apply(model, phi, tree)
        assert outputs["code"].shape == (2, 5, 2)
        assert outputs["pair"][0].shape == (2, 5, 3)
        assert outputs["pair"][1] is None
        results.append(task_losses(loss, outputs, None))
    assert results[0].shape == (2,)
    assert torch.equal(*results)


def test_integer_inputs_and_float32():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randint(7, (2, 5, 3)), torch.randint(3, (2, 5))
    grads, value = meta_gradient(model, (x, y), (x, y), optimizer=SGD(lr=0.5), loss=nn.CrossEntropyLoss())
    assert value.dtype == torch.float32
    assert all(g.dtype == torch.float32 and g.norm() > 0 for g in grads.values())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_adapts_without_a_graph_where_gradients_are_off(mode):
    model = mlp(2, 5, 1)
    x, y = regression()
    options = {"optimizer": SGD(lr=0.1, momentum=0.9), "steps": 3}
    expected = fast_weights(model, (x, y), **options)
    with mode():
        x, y = x + 0, y + 0  # made under this mode
        phi = fast_weights(model, (x, y), **options)
        losses = task_losses(F.mse_loss, apply(model, phi, x), y)
        assert not torch.is_grad_enabled()
    assert not losses.requires_grad
    for name, p in phi.items():
        assert torch.equal(p, expected[name])
        assert not p.requires_grad
        assert p.grad_fn is None
    assert all(p.grad is None for p in model.parameters())


def test_bad_arguments_of_adapt():
    model, support = mlp(2, 5, 1), regression()
    with pytest.raises(TypeError, match=r"inner_optimizer must be fastmeta\.SGD or fastmeta\.Adam, got str"):
        fast_weights(model, support, optimizer="sgd")
    with pytest.raises(ValueError, match=r"inner_loss must return a scalar.*shape \[7, 1\].*\.mean\(\)"):
        fast_weights(model, support, loss=torch.sub)
    with pytest.raises(TypeError, match="inner_loss must return a 0-dim tensor for each task, got float"):
        fast_weights(model, support, loss=lambda *_: 1.0)
    with pytest.raises(ValueError, match="inner_loss depends on no trainable parameter"):
        fast_weights(model, support, loss=lambda outputs, _: outputs.detach().sum())


def test_bad_arguments_of_apply():
    model = mlp(2, 1)
    phi, x = {name: p[None] for name, p in model.named_parameters()}, torch.randn(1, 3, 2).double()
    with pytest.raises(ValueError, match='bn_statistics must be "batch" or "support", got \'task\''):
        apply(model, phi, x, bn_statistics="task")
    with pytest.raises(ValueError, match="needs support_x, got None"):
        apply(model, phi, x, bn_statistics="support")
