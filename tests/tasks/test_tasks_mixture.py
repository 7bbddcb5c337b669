"""Tasks of several families in one meta-batch."""

from __future__ import annotations

import pytest
import torch

from fastmeta.tasks import Mixture, Sinusoid
from fastmeta.tasks.base import Episodes


class Constant(Sinusoid):
    """Curves whose targets say which family they are of."""

    def __init__(self, value: float) -> None:
        super().__init__(shots=2, queries=3)
        self.value = value

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        x, y, query_x, query_y = super().sample(tasks, generator)
        return Episodes(x, torch.full_like(y, self.value), query_x, torch.full_like(query_y, self.value))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_families_are_drawn_by_weight_and_independently():
    support_x, support_y, _, query_y = Mixture([Constant(1), Constant(2)], weights=[3, 1]).sample(4000, generator())
    first = support_y[:, 0, 0] == 1
    assert support_x.shape == (4000, 2, 1)
    assert (query_y[:, 0] == support_y[:, 0]).all(), "a task is of one family"
    assert abs(first.double().mean() - 0.75) < 0.03
    again = (first[1:] & first[:-1]).double().mean()
    assert abs(again - 0.75**2) < 0.03, "neighbours are drawn independently"


def test_samples_of_one_family_repeat():
    mixture = Mixture([Constant(1), Constant(2)])
    for one, two in zip(mixture.sample(9, generator()), mixture.sample(9, generator()), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("families", "weights", "message"),
    [
        ([], None, "at least one family"),
        ([Constant(1)], [1, 2], r"weights must be 1 positive numbers, one a source, got \[1, 2\]"),
        ([Constant(1)], [-1], "positive numbers"),
        ([Constant(1)], [float("nan")], "positive numbers"),
    ],
)
def test_bad_mixtures(families, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(families, weights=weights)


def test_shapes_agree():
    with pytest.raises(ValueError, match=r"one shape, got support_x of \[\(2, 1\), \(5, 1\)\]"):
        Mixture([Constant(1), Sinusoid(shots=5, queries=3)]).sample(20, generator())
