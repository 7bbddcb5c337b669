"""Learned rates through the public API, on kernels: gradients of the network and of the rates against float64 truth."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import DEVICE, needs_kernels
from meta_steps import classification, mlp
from torch import nn

import fastmeta

pytestmark = needs_kernels

RATES = {
    "per parameter": lambda: fastmeta.PerParameter(0.1),
    "per tensor and step": lambda: fastmeta.PerLayerPerStep(0.1),
}
RULES = {
    "sgd": lambda lr: fastmeta.SGD(lr=lr),
    "nesterov": lambda lr: fastmeta.SGD(lr=lr, momentum=0.7, nesterov=True, weight_decay=0.1),
    "adam": lambda lr: fastmeta.Adam(lr=lr, eps=1e-3),
}


def gradients(model, batch, backend, dtype, algorithm, rule, *, by_adapt=False, bad=None, **options):
    """Of the network's parameters and of the rates, in float64, of learners that are otherwise alike."""
    device = DEVICE if backend == "triton" else "cpu"
    model = copy.deepcopy(model).to(device, dtype)
    batch = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in batch]
    if bad is not None:
        batch[0][bad] = torch.nan
    learner = algorithm(model, backend=backend, inner_steps=2, inner_optimizer=rule(), **options)
    rates = learner.learned
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # of many sizes, some of them negative
        for view in pieces(rates, rates.values):
            view.add_((0.1 * torch.randn(view.shape, generator=generator)).to(view))
    if by_adapt:
        outputs = learner.adapt(*batch[:2])(batch[2])
        losses = torch.stack([(t + 1.0) * F.cross_entropy(outputs[t], batch[3][t]) for t in range(len(outputs))])
        losses.sum().backward()
    else:
        learner(*batch).loss.backward()
    return {
        "network": torch.cat([p.grad.flatten() for p in model.parameters()]).double().cpu(),
        "rates": torch.cat([g.flatten() for g in pieces(rates, rates.values.grad)]).double().cpu(),
    }


def pieces(rates, values):
    """The rates, or a tensor like them, without the padding of rows, which float32 and float64 do not share."""
    return list(rates.named(values).values()) if isinstance(rates, fastmeta.PerParameter) else [values]


def check(model, batch, algorithm, rule, **options):
    """‖kernels − truth‖ ≤ 2 ‖torch in float32 − truth‖ + atol, of the network's gradient and of the rates'."""
    truth = gradients(model, batch, "reference", torch.float64, algorithm, rule, **options)
    plain = gradients(model, batch, "torch", torch.float32, algorithm, rule, **options)
    got = gradients(model, batch, "triton", torch.float32, algorithm, rule, **options)
    for name, want in truth.items():
        error, allowed = ((found[name] - want).norm() for found in (got, plain))
        assert want.norm() > 0
        assert error <= 2 * allowed + 1e-6 * want.norm(), (name, (error / want.norm()).item())


@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rates", RATES)
def test_a_perceptron(algorithm, rule, rates):
    batch = classification(4, tasks=2, support=5, query=3, classes=3)
    check(mlp(4, 9, 3), batch, algorithm, lambda: RULES[rule](RATES[rates]()), inner_loss=F.cross_entropy)


@pytest.mark.parametrize("options", [{"task_chunk": 1}, {"by_adapt": True}, {"by_adapt": True, "task_chunk": 1}])
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
def test_slices_of_tasks_and_learners(algorithm, options):
    batch = classification(4, tasks=3, support=5, query=3, classes=3)
    rule = lambda: fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1))  # noqa: E731
    check(mlp(4, 9, 3), batch, algorithm, rule, inner_loss=F.cross_entropy, **options)


def test_a_convolutional_network():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh(), nn.Flatten(),
        nn.Linear(100, 3),
    ).double()  # fmt: skip
    batch = classification(1, 5, 5, tasks=2, support=4, query=3, classes=3)
    check(model, batch, fastmeta.MAML, lambda: fastmeta.SGD(lr=fastmeta.PerParameter(0.1)), inner_loss=F.cross_entropy)


def test_a_task_that_diverges_reaches_no_rate():
    batch = classification(4, tasks=3, support=5, query=3, classes=3)
    model, rule = mlp(4, 9, 3), lambda: fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1))
    with pytest.warns(RuntimeWarning, match=r"task\(s\) \[1\]"):
        got = gradients(
            model, batch, "triton", torch.float32, fastmeta.MAML, rule, bad=1, inner_loss=F.cross_entropy
        )  # fmt: skip
    rest = [x[[0, 2]] for x in batch]
    want = gradients(model, rest, "triton", torch.float32, fastmeta.MAML, rule, inner_loss=F.cross_entropy)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=1e-5, atol=1e-6)


def test_a_step_size_is_no_part_of_a_kernel():
    """Annealed, it launches the very same kernels."""
    from fastmeta.kernels import launch

    learner = fastmeta.MAML(mlp(4, 9, 3).float().to(DEVICE), backend="triton", inner_optimizer=fastmeta.SGD(lr=0.1))
    batch = [x.to(DEVICE) for x in classification(4, classes=3, dtype=torch.float32)]
    losses, launches = [], []
    for lr in (0.1, 0.05):
        learner.inner_optimizer = fastmeta.SGD(lr=lr)
        made = []

        def watched(kernel, label, grid, args, options, made=made):
            made.append((kernel, label, grid, options))
            run(kernel, label, grid, args, options)

        with launch.through(watched) as run:
            losses.append(learner(*batch).loss.item())
        launches.append(made)
    assert losses[0] != losses[1]
    assert launches[0] == launches[1]
    assert len(learner._plans._backends) == 1
