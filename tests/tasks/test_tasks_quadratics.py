"""Random quadratics: what is drawn, and that the network and the loss are the function."""

from __future__ import annotations

import pytest
import torch

from fastmeta.tasks import QuadraticModel, Quadratics, sum_of_squares


def test_functions_are_drawn_from_a_standard_normal():
    family = Quadratics(dimensions=3)
    episodes = family.sample(4000, torch.Generator().manual_seed(0))
    assert episodes.support_x.shape == (4000, 3, 3)
    assert episodes.support_y.shape == (4000, 3, 1)
    for x in (episodes.support_x, episodes.support_y):
        assert abs(x.mean().item()) < 0.03
        assert abs(x.std().item() - 1.0) < 0.03
    assert torch.equal(episodes.query_x, episodes.support_x)
    assert torch.equal(episodes.query_y, episodes.support_y)
    again = family.sample(4000, torch.Generator().manual_seed(0))
    assert torch.equal(again.support_x, episodes.support_x)
    assert not torch.equal(family.sample(4000, torch.Generator().manual_seed(1)).support_x, episodes.support_x)


def test_network_and_loss_are_the_function():
    episodes = Quadratics(dimensions=4, dtype=torch.float64).sample(1, torch.Generator().manual_seed(0))
    model = QuadraticModel(4).double()
    w, y = episodes.support_x[0], episodes.support_y[0]
    assert sum_of_squares(model(w), y) == y.square().sum()  # θ starts at zero
    with torch.no_grad():
        model.theta.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0]]))
    assert torch.isclose(sum_of_squares(model(w), y), (w @ model.theta[0] - y[:, 0]).norm() ** 2)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_wrong_dimensions_are_named(wrong):
    with pytest.raises(ValueError, match="dimensions must be an integer of at least 1"):
        Quadratics(dimensions=wrong)
