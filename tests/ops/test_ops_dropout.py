"""Dropout: masks are a function of key, layer and element, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from op_harness import check_op, randn

from fastmeta.ops.dropout import Dropout, step_keys, task_keys

CPU = torch.device("cpu")
T, N, C = 3, 5, 7


def mask(op, keys, *shape):
    return op.forward(torch.ones(keys.shape[0], *shape), keys)[0]


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_sweeps(p):
    op, keys, shape = Dropout(p, 0), torch.arange(T), (N, C)
    truth = op.forward(torch.ones(T, *shape, dtype=torch.float64), keys)[0]

    def plain(x, key):
        return x * truth[key]

    check_op(op, plain, randn(T, *shape), keys)


def test_same_keys_give_the_same_mask():
    op, keys = Dropout(0.5, 0), task_keys(3, T, CPU)
    assert torch.equal(mask(op, keys, N, C), mask(op, keys.clone(), N, C))


def test_tasks_steps_layers_and_seeds_differ():
    keys = task_keys(3, T, CPU)
    size = 4096
    op = Dropout(0.5, 0)
    base = mask(op, step_keys(keys, 0), size)
    others = [
        mask(op, step_keys(keys, 1), size),
        mask(Dropout(0.5, 1), step_keys(keys, 0), size),
        mask(op, step_keys(task_keys(4, T, CPU), 0), size),
        base.roll(1, 0),  # the neighbour's
    ]
    for other in others:
        # independent fair masks agree in half of the elements, standard deviation 1/2 over the root of their number
        agreement = (base == other).double().mean(1)
        assert ((agreement - 0.5).abs() < 4 * 0.5 / math.sqrt(size)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate_and_scale(p):
    size = 30_000
    values = mask(Dropout(p, 0), task_keys(3, T, CPU), size)
    kept = values != 0
    assert ((kept.double().mean(1) - (1 - p)).abs() < 4 * math.sqrt(p * (1 - p) / size)).all()
    torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / (1 - p)))


def test_neighbouring_elements_are_uncorrelated():
    size = 30_000
    kept = (mask(Dropout(0.5, 0), task_keys(3, T, CPU), size) != 0).double() * 2 - 1
    for lag in (1, 2, 64):
        assert ((kept[:, lag:] * kept[:, :-lag]).mean(1).abs() < 4 / math.sqrt(size - lag)).all()


def test_slicing_the_tasks_leaves_masks_unchanged():
    op, keys = Dropout(0.5, 2), task_keys(3, 7, CPU)
    whole = mask(op, step_keys(keys, 1), N, C)
    parts = [mask(op, step_keys(part, 1), N, C) for part in keys.split(3)]
    assert torch.equal(whole, torch.cat(parts))


def test_more_tasks_leave_the_first_keys_unchanged():
    assert torch.equal(task_keys(3, 7, CPU)[:T], task_keys(3, T, CPU))
