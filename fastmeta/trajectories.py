"""What an agent saw, did and got: episodes of all tasks, the data of meta-learning for policies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Trajectories(NamedTuple):
    """E episodes of H steps in each of T tasks; the environments' side of `fastmeta.PolicyMAML`.

    Attributes:
        observations: what the policy saw before each action, [T, E, H, *observation].
        actions: what it did, [T, E, H, *action]; integers where they are choices.
        rewards: what that action earned, [T, E, H], of a floating-point type.
        mask: [T, E, H] bool, False behind the end of an episode. There the rest may hold any finite values.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor

    def totals(self) -> Tensor:
        """Each task's mean return, the sum of an episode's rewards without discount: [T]."""
        return (self.rewards * self.mask).sum(-1).mean(-1)

    def check(self) -> None:
        """Holds shapes and types against each other, for whoever was handed them.

        Raises:
            TypeError, ValueError: naming the field, what was expected and what came.
        """
        for name, values in self._asdict().items():
            if not isinstance(values, Tensor):
                raise TypeError(f"trajectories.{name} must be a tensor, got {type(values).__name__}")
        shape = tuple(self.rewards.shape)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(
                f"trajectories.rewards must have shape [tasks, episodes, steps], none of them 0, got {list(shape)}"
            )
        for name, values in self._asdict().items():
            if tuple(values.shape[:3]) != shape:
                raise ValueError(
                    f"trajectories.{name} must start with the [tasks, episodes, steps] of the rewards, {list(shape)}, "
                    f"got shape {list(values.shape)}"
                )
        if self.mask.shape != self.rewards.shape or self.mask.dtype != torch.bool:
            raise ValueError(
                f"trajectories.mask must be bool of shape {list(shape)}, True where a step was taken, got "
                f"{self.mask.dtype} {list(self.mask.shape)}"
            )
        if not self.rewards.is_floating_point():
            raise ValueError(f"trajectories.rewards must be of a floating-point type, got {self.rewards.dtype}")
