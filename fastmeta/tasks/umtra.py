"""UMTRA: tasks from images without labels, by augmentation (Khodadadeh, Bölöni, Shah 2019, Algorithm 1)."""

from __future__ import annotations

import torch

from .augment import views
from .base import Episodes, Sampler, Shots, check_enough, check_strength, distinct_rows
from .datasets.images import Images


class UMTRA(Sampler):
    """Each task draws `ways` images, each a class of its own: the image is the support, augmented copies the queries.

    With many classes in the data, images drawn at random are mostly of different classes (eq. 1 of the paper), and an
    augmentation keeps the class: a task without labels looks much like one with them.

    Args:
        images: whose labels, where there are any, are not read; copied to `device` once.
        ways: images of a task.
        queries: augmented copies of each (M = ways · queries).
        augment: strength of the augmentation (`views`).
        device: where images lie and episodes are made.

    Raises:
        ValueError: fewer images than ways, or an option out of range.
    """

    def __init__(
        self,
        images: Images,
        *,
        ways: int,
        queries: int = 1,
        augment: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(Shots(ways, 1, queries), device)
        check_strength("augment", augment)
        if augment == 0:
            raise ValueError("augment must be positive: without it a query is the support image itself, got 0")
        check_enough(images, ways, images.describe())
        self.augment = augment
        self._images = images.unlabelled().to(self.device)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, ways or ways · queries, channels, H, W], labels int64."""
        self._check_sample(tasks, generator)
        x = self._images.floats(distinct_rows(len(self._images), tasks, self.ways, generator))
        copies = x[:, None].expand(-1, self.queries, -1, -1, -1, -1)
        query = views(copies, strength=self.augment, generator=generator).flatten(1, 2)
        y = torch.arange(self.ways, device=self.device)
        return Episodes(x, y.expand(tasks, -1), query, y.repeat(self.queries).expand(tasks, -1))
