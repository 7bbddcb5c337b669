"""Which chains become one conv block, and which must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmeta.ops.conv_block import ConvBlock
from fastmeta.program.program import Program

T, N = 2, 3


def conv():
    return nn.Conv2d(2, 4, 3, padding=1)


def norm(**options):
    return nn.BatchNorm2d(4, **options)


def plan_of(module, rows=None):
    return Program(module).plan(torch.zeros(T, N, 2, 9, 11), rows=rows)


def blocks_of(module, rows=None):
    return [node.op for node in plan_of(module, rows).nodes if isinstance(node.op, ConvBlock)]


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()], ids=repr
)
def test_a_monotone_activation_takes_the_pool_in(activation):
    plan = plan_of(nn.Sequential(conv(), norm(), activation, nn.MaxPool2d(2)))
    (node,) = plan.nodes
    assert isinstance(node.op, ConvBlock)
    assert node.op.pool
    assert node.label == "0 + 1 + 2 + 3"


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(-0.1), nn.Softplus(1, 2)], ids=repr)
def test_other_activations_leave_the_pool_out(activation):
    plan = plan_of(nn.Sequential(conv(), norm(), activation, nn.MaxPool2d(2)))
    block, pool = plan.nodes
    assert isinstance(block.op, ConvBlock)
    assert not block.op.pool
    assert pool.op.name == "pool"


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2)],
    ids=repr,
)
def test_other_pools_stay_apart(pool):
    (block,) = blocks_of(nn.Sequential(conv(), norm(), nn.ReLU(), pool))
    assert not block.pool


def test_a_chain_without_pool_fuses():
    (block,) = blocks_of(nn.Sequential(conv(), norm(), nn.ReLU()))
    assert not block.pool
    assert block.biased


def test_every_block_of_a_deep_network_fuses():
    layers = [
        nn.Conv2d(2, 4, 3, bias=False),
        norm(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        norm(),
        nn.ReLU(),
    ]
    first, second = blocks_of(nn.Sequential(*layers))
    assert (first.pool, first.biased) == (True, False)
    assert (second.pool, second.biased) == (False, True)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(conv(), norm(affine=False), nn.ReLU()),
        nn.Sequential(conv(), norm().eval(), nn.ReLU()),
        nn.Sequential(conv(), nn.GroupNorm(2, 4), nn.ReLU()),
        nn.Sequential(conv(), nn.ReLU(), norm()),
        nn.Sequential(conv(), norm()),
        nn.Sequential(conv(), norm(), nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(conv(), norm(), nn.Dropout(0.5), nn.ReLU()),
    ],
    ids=["without affine", "eval mode", "group norm", "activation first", "no activation", "pool first", "dropout"],
)
def test_these_do_not_fuse(module):
    assert blocks_of(module) == []


def test_borrowed_statistics_do_not_fuse():
    assert blocks_of(nn.Sequential(conv(), norm(), nn.ReLU()), rows=2) == []


class Branching(nn.Module):
    """Reads one of the chain's inner values a second time."""

    def __init__(self, at):
        super().__init__()
        self.at, self.conv, self.norm = at, conv(), norm()

    def forward(self, x):
        z = self.conv(x)
        y = self.norm(z)
        a = torch.relu(y)
        p = nn.functional.max_pool2d(a, 2)
        extra = {"conv": z, "norm": y, "activation": a}[self.at]
        return p.mean() + extra.mean()


class Returning(Branching):
    """Returns one of the chain's inner values."""

    def forward(self, x):
        z = self.conv(x)
        y = self.norm(z)
        a = torch.relu(y)
        return nn.functional.max_pool2d(a, 2), {"conv": z, "norm": y, "activation": a}[self.at]


@pytest.mark.parametrize("make", [Branching, Returning])
@pytest.mark.parametrize("at", ["conv", "norm", "activation"])
def test_a_value_that_others_read_is_kept(make, at):
    blocks = blocks_of(make(at))
    if at == "activation":  # the chain up to there is whole, and only the pool stays apart
        assert [block.pool for block in blocks] == [False]
    else:
        assert blocks == []
