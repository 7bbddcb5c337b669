"""Images as tasks: of each, places to values."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Episodes, check_count, check_generator, distinct_rows
from .datasets.images import Images


class Pixels:
    """Each task is one image, a function from places to values, as implicit networks learn it (functa, COIN++).

    Inputs are (row, column) of pixels, float32 in [−1, 1]², the corners at ±1; targets are their values in [0, 1], one
    number or three. Support and query sets are the same pixels, all of them in rows, unless some are drawn.

    Args:
        images: whose labels, where there are any, are not read; copied to `device` once.
        shots: support pixels of a task, drawn for each image without repetition; None: all of them.
        queries: query pixels, drawn apart from the support set; None: all of them.
        device: where images lie and episodes are made.

    Raises:
        ValueError: more pixels asked for than an image has, or a count below 1.
    """

    def __init__(
        self,
        images: Images,
        *,
        shots: int | None = None,
        queries: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.device = images.shape, torch.device(device)
        _, height, width = images.shape
        for name, count in (("shots", shots), ("queries", queries)):
            if count is not None:
                check_count(name, count)
                if count > height * width:
                    raise ValueError(f"{name} must be at most {height * width}, the pixels of an image, got {count}")
        self.shots, self.queries = shots, queries
        self._images = images.unlabelled().to(self.device)
        axes = [torch.linspace(-1, 1, side, device=self.device) for side in (height, width)]
        self.places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        """Of all pixels, in rows: [H · W, 2]."""

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` images: places [tasks, pixels, 2] and values [tasks, pixels, channels]."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        rows = torch.randint(len(self._images), (tasks,), generator=generator, device=self.device)
        x = self.places.expand(tasks, -1, -1)
        y = self._images.floats(rows).flatten(2).transpose(1, 2)
        return Episodes(*self._some(x, y, self.shots, generator), *self._some(x, y, self.queries, generator))

    def pictures(self, values: Tensor) -> Tensor:
        """Values of all pixels [..., H · W, channels] as images [..., channels, H, W]."""
        channels, height, width = self.shape
        return values.transpose(-1, -2).reshape(*values.shape[:-2], channels, height, width)

    @staticmethod
    def _some(x: Tensor, y: Tensor, count: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if count is None:
            return x, y
        rows = distinct_rows(x.shape[1], x.shape[0], count, generator).unsqueeze(2)
        return x.gather(1, rows.expand(-1, -1, x.shape[2])), y.gather(1, rows.expand(-1, -1, y.shape[2]))
