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


class PartlyLabelled:
    """Few-shot episodes some of whose support samples, or some of whose tasks, have lost their labels: −1 in place.

    Args:
        family: of classes.
        unlabelled: share of the support samples of every class that lose theirs, rounded; one keeps it.
        unlabelled_tasks: probability that a task loses all of them, those of its query set too.

    Raises:
        ValueError: a share outside [0, 1).
    """

    def __init__(self, family: TaskFamily, *, unlabelled: float = 0.0, unlabelled_tasks: float = 0.0) -> None:
        for name, share in (("unlabelled", unlabelled), ("unlabelled_tasks", unlabelled_tasks)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {share!r}")
        self.family, self.unlabelled, self.unlabelled_tasks = family, unlabelled, unlabelled_tasks

    @property
    def device(self) -> torch.device:
        """Where the episodes are sampled and where they lie."""
        return self.family.device

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes."""
        x, y, query_x, query_y = self.family.sample(tasks, generator)
        order = torch.rand(y.shape, generator=generator, device=y.device)
        same = y.unsqueeze(2) == y.unsqueeze(1)
        rank = (same & (order.unsqueeze(1) < order.unsqueeze(2))).sum(2)  # of a sample in its class
        count = same.sum(2)
        hidden = (self.unlabelled * count).round().clamp(max=count - 1)
        without = torch.rand(tasks, 1, generator=generator, device=y.device) < self.unlabelled_tasks
        y = torch.where((rank < hidden) | without, -1, y)
        return Episodes(x, y, query_x, torch.where(without, -1, query_y))
