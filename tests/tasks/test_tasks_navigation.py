"""Navigation in the plane."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmeta.tasks import Navigation
from fastmeta.tasks.navigation import Journeys


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def towards(*goals: tuple[float, float], episodes: int = 1, horizon: int = 4) -> Journeys:
    return Journeys(torch.tensor(goals, dtype=torch.float64), episodes, horizon)


def test_shapes_and_dtype():
    drawn = Navigation(episodes=3, horizon=7, dtype=torch.float64).sample(5, generator())(torch.zeros_like)
    assert drawn.observations.shape == drawn.actions.shape == (5, 3, 7, 2)
    assert drawn.rewards.shape == drawn.mask.shape == (5, 3, 7)
    assert drawn.observations.dtype == drawn.rewards.dtype == torch.float64
    assert drawn.mask.dtype == torch.bool
    drawn.check()


def test_goals_lie_where_the_paper_has_them():
    goals = Navigation().sample(20_000, generator()).goals
    assert -0.5 <= goals.min() < -0.499
    assert 0.499 < goals.max() <= 0.5
    assert goals.mean(0).abs().max() < 0.01
    torch.testing.assert_close(goals.var(0), torch.full((2,), 1 / 12), rtol=0.03, atol=0)


def test_the_seed_decides_the_goals():
    family = Navigation()
    assert torch.equal(family.sample(6, generator(1)).goals, family.sample(6, generator(1)).goals)
    assert not torch.equal(family.sample(6, generator(1)).goals, family.sample(6, generator(2)).goals)


def test_velocities_are_clipped_and_rewards_are_minus_squared_distances_after_the_move():
    drawn = towards((0.3, -0.4))(lambda at: torch.tensor([5.0, -0.05], dtype=at.dtype).expand_as(at))
    x = torch.tensor([[0.0, 0.0], [0.1, -0.05], [0.2, -0.1], [0.3, -0.15]], dtype=torch.float64)
    torch.testing.assert_close(drawn.observations[0, 0], x)
    torch.testing.assert_close(drawn.rewards[0, 0], torch.tensor([-0.1625, -0.10, -0.0625, -0.05], dtype=x.dtype))
    torch.testing.assert_close(drawn.actions[0, 0, 0], torch.tensor([5.0, -0.05], dtype=x.dtype))  # as it was drawn
    assert drawn.mask.all()


def test_an_episode_ends_within_a_hundredth_of_the_goal():
    goal = (0.2, 0.0)

    def act(at: Tensor) -> Tensor:
        """The first episode passes the goal's neighbourhood at 0.0075, the second misses it by 0.0125."""
        aside = torch.tensor([0.00375, 0.00625], dtype=at.dtype)
        return torch.stack([torch.full_like(aside, 0.1), aside], -1).expand_as(at)

    drawn = towards(goal, episodes=2, horizon=5)(act)
    assert drawn.mask[0].tolist() == [[True, True, False, False, False], [True] * 5]
    assert drawn.rewards[0, 0, 1] == pytest.approx(-(0.0075**2))  # the step that got there counts
    assert (drawn.rewards[0, 0, 2:] == 0).all()
    torch.testing.assert_close(
        drawn.observations[0, 0, 2:], torch.tensor([[0.2, 0.0075]], dtype=torch.float64).expand(3, 2)
    )


def test_episodes_of_all_tasks_are_those_of_each_alone():
    speeds = torch.rand(3, 4, 2, generator=generator(), dtype=torch.float64) * 0.3 - 0.15
    goals = ((0.1, 0.4), (-0.3, 0.2), (0.0, -0.5))
    together = towards(*goals, episodes=4)(lambda at: speeds - 0.3 * at)
    for t, goal in enumerate(goals):
        alone = towards(goal, episodes=4)(lambda at, t=t: speeds[t : t + 1] - 0.3 * at)
        for whole, one in zip(together, alone, strict=True):
            assert torch.equal(whole[t : t + 1], one)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    family = Navigation(episodes=3, horizon=4, device="cuda")
    drawn = family.sample(2, torch.Generator("cuda").manual_seed(0))(lambda at: torch.full_like(at, 0.05))
    assert all(x.is_cuda for x in drawn)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="episodes must be an integer of at least 1, got 0"):
        Navigation(episodes=0)
    with pytest.raises(ValueError, match="horizon must be an integer of at least 1, got 0"):
        Navigation(horizon=0)
    with pytest.raises(ValueError, match="tasks must be an integer of at least 1, got 0"):
        Navigation().sample(0, generator())
    with pytest.raises(ValueError, match=r"velocities of the positions' shape \[1, 1, 2\], got \[1, 2\]"):
        towards((0.1, 0.1))(lambda at: at[0])
