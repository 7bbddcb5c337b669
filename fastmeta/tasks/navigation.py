"""Navigation in the plane, the first of MAML's reinforcement learning problems (Finn et al. 2017, section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmeta.trajectories import Trajectories

from .base import check_count, check_generator

_REACH = 0.5  # goals lie in [−0.5, 0.5]²
_SPEED = 0.1  # velocities are clipped to [−0.1, 0.1]
_NEAR = 0.01  # an episode ends within this distance of the goal


@dataclass(frozen=True, repr=False)
class Journeys:
    """Tasks to play: `fastmeta.PolicyMAML.step(journeys)`.

    Attributes:
        goals: [T, 2].
        episodes: E of each task.
        horizon: H.
    """

    goals: Tensor
    episodes: int
    horizon: int

    def __repr__(self) -> str:
        return f"Journeys({len(self.goals)} goals, episodes={self.episodes}, horizon={self.horizon})"

    def __call__(self, act: Callable[[Tensor], Tensor]) -> Trajectories:
        """Plays all episodes of all tasks at once.

        Args:
            act: positions [T, E, 2] → velocities [T, E, 2].

        Raises:
            ValueError: velocities of another shape.
        """
        goals = self.goals.unsqueeze(1)
        position = torch.zeros(len(goals), self.episodes, 2, dtype=goals.dtype, device=goals.device)
        under_way = torch.ones(position.shape[:2], dtype=torch.bool, device=goals.device)
        seen, done, earned, mask = [], [], [], []
        for _ in range(self.horizon):
            velocity = act(position)
            if velocity.shape != position.shape:
                raise ValueError(
                    f"act must give velocities of the positions' shape {list(position.shape)}, got "
                    f"{list(velocity.shape)}"
                )
            seen.append(position)
            done.append(velocity)
            mask.append(under_way)
            moved = position + velocity.clamp(-_SPEED, _SPEED)
            position = torch.where(under_way.unsqueeze(-1), moved, position)
            distance = (position - goals).square().sum(-1)
            earned.append(-distance * under_way)
            under_way = under_way & (distance > _NEAR**2)
        return Trajectories(torch.stack(seen, 2), torch.stack(done, 2), torch.stack(earned, 2), torch.stack(mask, 2))


class Navigation:
    """A point starts at the origin and is to reach a goal, drawn uniformly from [−0.5, 0.5]², that it does not see.

    The policy sees the position and gives a velocity, clipped to [−0.1, 0.1] in each direction. Each step earns minus
    the squared distance to the goal, after the move; an episode ends within 0.01 of the goal, or after the horizon.
    So the paper has it; its authors' code (cbfinn/maml_rl) takes the distance itself, and a square around the goal.

    Args:
        episodes: E of a task at each call.
        horizon: most steps H of an episode.
        device: where goals are drawn and episodes are played.
        dtype: of positions and rewards.

    Raises:
        ValueError: for counts below 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> tasks = Navigation(episodes=20).sample(40, generator)  # 40 goals
        >>> tasks(lambda position: 0.1 * torch.ones_like(position)).totals()  # returns [40] of going north-east
    """

    def __init__(
        self,
        *,
        episodes: int = 20,
        horizon: int = 100,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_count("episodes", episodes)
        check_count("horizon", horizon)
        self.episodes, self.horizon = episodes, horizon
        self.device, self.dtype = torch.device(device), dtype

    def __repr__(self) -> str:
        return f"Navigation(episodes={self.episodes}, horizon={self.horizon}, device={str(self.device)!r})"

    def sample(self, tasks: int, generator: torch.Generator) -> Journeys:
        """Draw `tasks` goals. The same generator state gives the same ones."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        goals = torch.rand(tasks, 2, generator=generator, device=self.device, dtype=self.dtype)
        return Journeys(goals.mul_(2 * _REACH).sub_(_REACH), self.episodes, self.horizon)
