"""Sinusoid regression."""

from __future__ import annotations

import math

import pytest
import torch

from fastmeta.tasks import Sinusoid


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes_and_dtype():
    family = Sinusoid(shots=7, queries=3, dtype=torch.float64)
    support_x, support_y, query_x, query_y = family.sample(5, generator())
    assert support_x.shape == support_y.shape == (5, 7, 1)
    assert query_x.shape == query_y.shape == (5, 3, 1)
    assert {t.dtype for t in (support_x, support_y, query_x, query_y)} == {torch.float64}


def test_ranges_are_the_papers():
    family = Sinusoid(shots=50, queries=50)
    amplitude, phase = family.sample_curves(20_000, generator())
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, rel=0.02)
    x = family.sample(200, generator()).support_x
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5


def test_every_task_is_one_sinusoid():
    """y = a sin x + b cos x fits support and query of a task exactly, with another a, b in every task."""
    support_x, support_y, query_x, query_y = Sinusoid(shots=9, queries=11, dtype=torch.float64).sample(6, generator())
    basis = torch.cat([support_x.sin(), support_x.cos()], dim=2)
    coefficients = torch.linalg.lstsq(basis, support_y).solution
    predicted = torch.cat([query_x.sin(), query_x.cos()], dim=2) @ coefficients
    torch.testing.assert_close(predicted, query_y, rtol=1e-9, atol=1e-9)
    assert coefficients.squeeze(2).unique(dim=0).shape[0] == 6
    assert (coefficients[:, 1] <= 1e-9).all(), "phase in [0, π] makes the cosine's coefficient negative"


def test_the_generator_decides():
    family = Sinusoid(shots=2, queries=2)
    first, again, other = (family.sample(3, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("options", [{"shots": 0}, {"queries": -1}, {"shots": 1.5}, {"shots": True}])
def test_bad_counts(options):
    with pytest.raises(ValueError, match=r"(shots|queries) must be an integer of at least 1, got"):
        Sinusoid(**options)


def test_no_tasks():
    with pytest.raises(ValueError, match="tasks must be an integer of at least 1, got 0"):
        Sinusoid().sample(0, generator())


def test_generator_elsewhere():
    with pytest.raises(ValueError, match=r"generator must live on the family's device meta, got one on cpu"):
        Sinusoid(device="meta").sample(1, generator())
