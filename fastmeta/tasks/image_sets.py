"""Sets of images as tasks whose targets are the images themselves: what an autoencoder learns from."""

from __future__ import annotations

import torch

from .base import Episodes, check_count, check_enough, check_generator, distinct_rows
from .datasets.images import Images


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
        self._images = images.unlabelled().to(self.device)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` sets: images float32 [tasks, samples, channels, H, W] in [0, 1], four times."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        x = self._images.floats(distinct_rows(len(self._images), tasks, self.samples, generator))
        return Episodes(x, x, x, x)
