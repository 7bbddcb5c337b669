"""Families made of another one's episodes: without its labels, or without an inner loop."""

from __future__ import annotations

import torch

from .base import Episodes, TaskFamily


class Unlabelled:
    """The images of another family's episodes, as inputs and as targets.

    Args:
        family: whose labels decide which images a task holds, and are left out.
    """

    def __init__(self, family: TaskFamily) -> None:
        self.family = family

    @property
    def device(self) -> torch.device:
        """Where the episodes are sampled and where they lie."""
        return self.family.device

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` sets: images float32, support and query, each twice."""
        support_x, _, query_x, _ = self.family.sample(tasks, generator)
        return Episodes(support_x, support_x, query_x, query_x)


class Pooled:
    """Episodes whose query set is the whole task, support and query samples together.

    A learner of no inner steps that is trained on them minimises the mean loss over all samples of all tasks: plain
    pre-training, by the same loop, on the same data.

    Args:
        family: whose tasks.
    """

    def __init__(self, family: TaskFamily) -> None:
        self.family = family

    @property
    def device(self) -> torch.device:
        """Where the episodes are sampled and where they lie."""
        return self.family.device

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes; the support set is two samples of the task, which nobody adapts to."""
        support_x, support_y, query_x, query_y = self.family.sample(tasks, generator)
        x, y = torch.cat([support_x, query_x], 1), torch.cat([support_y, query_y], 1)
        return Episodes(x[:, :2], y[:, :2], x, y)
