"""N-way episodes from a table of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import random_affine, views
from .base import Episodes, Sampler, Shots, check_strength
from .datasets.class_table import ClassTable
from .datasets.pixels import floats


class ClassEpisodes(Sampler):
    """Each task draws `ways` classes of one group, and of each class `shots` + `queries` images.

    Samples are ordered shot by shot (class 0, 1, ..., then class 0, 1, ... again), so that consecutive inner
    batches of a multiple of `ways` samples are balanced. Label j is a fresh class in every task.

    Args:
        table: images and classes; they are copied to `device` once. Every group holds at least `ways` classes,
            every class at least `shots` + `queries` images.
        ways: classes C of a task.
        shots: support images per class (N = ways · shots).
        queries: query images per class (M = ways · queries).
        augment: strength of a random distortion of every image (`views`); for training.
        augment_classes: strength of one that all images of a class in a task share: it makes new classes.
        device: where images lie and episodes are sampled.

    Raises:
        ValueError: for a count or strength out of range, or too few classes or images.
    """

    def __init__(
        self,
        table: ClassTable,
        *,
        ways: int,
        shots: int,
        queries: int,
        augment: float = 0.0,
        augment_classes: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(Shots(ways, shots, queries), device)
        check_strength("augment", augment)
        check_strength("augment_classes", augment_classes)
        _check_table(table, ways, shots, queries)
        self.augment, self.augment_classes = augment, augment_classes
        self._images = table.images.to(self.device)
        self._members = table.members.to(self.device)
        self._groups = table.groups.to(self.device)

    @property
    def classes(self) -> int:
        """Different classes."""
        return len(self._members)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, N or M, channels, H, W] in [0, 1], labels int64."""
        self._check_sample(tasks, generator)
        classes = self._sample_classes(tasks, generator)
        rows = self._sample_rows(classes, generator)
        x = self._distort(floats(self._images[rows]), generator)
        return self.counts.classification(x.flatten(1, 2))

    def _sample_classes(self, tasks: int, generator: torch.Generator) -> Tensor:
        """[tasks, ways], without replacement within a task."""
        groups = self._groups[self._draw_groups(tasks, generator)]
        keys = torch.rand(groups.shape, generator=generator, device=self.device)
        return groups.gather(1, keys.masked_fill_(groups < 0, -1.0).topk(self.ways, dim=1).indices)

    def _draw_groups(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Which group each task is of, [tasks]."""
        return torch.randint(len(self._groups), (tasks,), generator=generator, device=self.device)

    def _sample_rows(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of the images, [tasks, shots + queries, ways], without replacement within a class."""
        members = self._members[classes]
        keys = torch.rand(members.shape, generator=generator, device=self.device)
        chosen = keys.masked_fill_(members < 0, -1.0).topk(self.counts.draws, dim=2).indices
        return members.gather(2, chosen).transpose(1, 2)

    def _distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Of x [tasks, shots + queries, ways, channels, H, W]."""
        if not self.augment and not self.augment_classes:
            return x
        maps, shape = None, (len(x), 1, self.ways)
        if self.augment_classes:
            maps = random_affine(shape, strength=self.augment_classes, generator=generator)
        return views(x, strength=self.augment, generator=generator, maps=maps)


def _check_table(table: ClassTable, ways: int, shots: int, queries: int) -> None:
    widest = int((table.groups >= 0).sum(1).min()) if len(table.groups) else 0
    if ways > widest:
        raise ValueError(
            f"ways must be at most the number of classes that a task may mix, got {ways} of {widest}; ask for fewer "
            "ways or give more data"
        )
    fewest = int(table.sizes().min())
    if fewest < shots + queries:
        raise ValueError(
            f"shots + queries must be at most the images of a class, got {shots} + {queries}, but a class has only "
            f"{fewest}; ask for fewer shots or queries"
        )
