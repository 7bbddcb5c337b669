"""The same tasks without an inner loop: what plain pre-training on all of them sees."""

from __future__ import annotations

import torch

from .base import Episodes, TaskFamily


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
