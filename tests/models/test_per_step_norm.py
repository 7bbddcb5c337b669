"""Batch norm of every step: by itself, converted from a model's own layers, and its running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastmeta.models import PerStepBatchNorm, conv4, per_step_batch_norm


def at_step(model, k):
    for m in model.modules():
        if isinstance(m, PerStepBatchNorm):
            m.inner_step.copy_(torch.eye(m.steps)[k])
    return model


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 3)])
def test_every_step_is_a_batch_norm_of_its_own(shape):
    layer, x = PerStepBatchNorm(4, 3), torch.randn(shape)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    for k in range(3):
        plain = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(4)
        plain.load_state_dict(plain.state_dict() | {"weight": layer.weight[k], "bias": layer.bias[k]})
        torch.testing.assert_close(at_step(layer, k)(x), plain(x))
        torch.testing.assert_close(layer.eval()(x), plain(x))  # statistics="batch" is for both modes
        layer.train()


def test_gamma_and_beta_are_switched_apart():
    assert [name for name, _ in PerStepBatchNorm(2, 3, weight=False).named_parameters()] == ["bias"]
    assert [name for name, _ in PerStepBatchNorm(2, 3, bias=False).named_parameters()] == ["weight"]
    assert PerStepBatchNorm(2, 3, per_step_affine=False).weight.shape == (2,)
    assert "weight per step" in repr(PerStepBatchNorm(2, 3, bias=False))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_of_a_step_are_those_of_batch_norm(momentum):
    layer = PerStepBatchNorm(4, 3, momentum=momentum, statistics="running")
    plain, batches = nn.BatchNorm1d(4, momentum=momentum), torch.randn(3, 7, 4)
    for x in batches:
        plain(x)
        layer.track(x, 1)
    torch.testing.assert_close(layer.running_mean[1], plain.running_mean)
    torch.testing.assert_close(layer.running_var[1], plain.running_var)
    assert layer.batches_tracked.tolist() == [0, 3, 0]
    assert (layer.running_mean[0] == 0).all()
    x = torch.randn(5, 4)
    torch.testing.assert_close(at_step(layer, 1).eval()(x), plain.eval()(x))
    torch.testing.assert_close(at_step(layer, 0)(x), x, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match='statistics="running"'):
        PerStepBatchNorm(4, 3).track(x, 0)


@pytest.mark.parametrize("affine", [True, False])
def test_a_converted_model_computes_the_same(affine):
    model = conv4(5, channels=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    before, x = copy.deepcopy(model.state_dict()), torch.randn(4, 1, 28, 28)
    made = per_step_batch_norm(model, 2, affine=affine)
    torch.testing.assert_close(made(x), model(x))
    torch.testing.assert_close(at_step(made, 1)(x), model(x))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    assert made[1].weight.shape == ((2, 3) if affine else (3,))


def test_what_a_layer_has_comes_along():
    norm = nn.BatchNorm1d(3, eps=1e-3, momentum=0.7).double()
    norm(torch.randn(8, 3, dtype=torch.float64))
    norm.weight.requires_grad_(False)
    made = per_step_batch_norm(nn.Sequential(norm, nn.ReLU(), norm).eval(), 4, statistics="running")
    assert made[0] is made[2]  # one layer in two places
    assert (made[0].eps, made[0].momentum, made[0].training) == (1e-3, 0.7, False)
    assert made[0].running_mean.dtype == torch.float64
    assert torch.equal(made[0].running_mean, norm.running_mean.expand(4, 3))
    assert (made[0].weight.requires_grad, made[0].bias.requires_grad) == (False, True)
    plain = per_step_batch_norm(nn.BatchNorm2d(3, affine=False), 4, affine=False)
    assert list(plain.parameters()) == []
    assert per_step_batch_norm(nn.BatchNorm2d(3, affine=False), 4).weight.shape == (4, 3)


def test_bad_input():
    with pytest.raises(ValueError, match=r"nn\.BatchNorm layer, and Linear has none"):
        per_step_batch_norm(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        PerStepBatchNorm(2, 0)
    with pytest.raises(ValueError, match="statistics must be"):
        PerStepBatchNorm(2, 3, statistics="mean")
    with pytest.raises(ValueError, match=r"values \[N, 2, \.\.\.\], got \[4, 3\]"):
        PerStepBatchNorm(2, 3)(torch.randn(4, 3))
