"""Sets of images as tasks whose targets are the images themselves: what an autoencoder learns from."""

from __future__ import annotations

import torch

from fastmeta.tasks.datasets.images import Images

from .base import Episodes, TaskFamily, check_count, check_enough, check_generator, distinct_rows


class ImageSets:
    """Each task is `samples` images drawn at random, support and query alike; inputs and targets are the same.

    Args:
        images: whose labels, where there are any, are not read; copied to `device` once.
        samples: images of a task.
        device: where images lie and episodes are made.

    Raises:
        ValueError: fewer images than samples.
    """

    def __init__(self, images: Images, *, samples: int = 32, device: torch.device | str = "cpu") -> None:
        check_count("samples", samples)
        check_enough(images, samples, images.describe())
        self.samples, self.device = samples, torch.device(device)
        self._pixels = images.pixels.to(self.device)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` sets: images float32 [tasks, samples, channels, H, W] in [0, 1], four times."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        rows = distinct_rows(len(self._pixels), tasks, self.samples, generator)
        x = self._pixels[rows].to(torch.float32).div_(255)
        return Episodes(x, x, x, x)


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
