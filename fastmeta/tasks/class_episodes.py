"""N-way episodes from a table of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .ahead import ReadAhead
from .augment import random_affine, views
from .base import Episodes, Sampler, Shots, check_strength, repeats
from .datasets.class_table import ClassTable
from .datasets.pixels import floats

_MANY = 8192
"""Images of a class from which on few are drawn without ordering all; smaller classes draw as they always did."""
_EXACT = torch.float64
"""Of numbers in [0, 1) that choose one of very many."""


class ClassEpisodes(Sampler):
    """Each task draws `ways` classes of one group, and of each class `shots` + `queries` images.

    Samples are ordered shot by shot (class 0, 1, ..., then class 0, 1, ... again), so that consecutive inner
    batches of a multiple of `ways` samples are balanced. Label j is a fresh class in every task.

    Args:
        table: images and classes; they are copied to `device` once, but for images in a file (`ClassTable.mapped`),
            of which each meta-batch is read while the one before is learned from. Every group holds at least `ways`
            classes, every class at least `shots` + `queries` images.
        ways: classes C of a task.
        shots: support images per class (N = ways · shots).
        queries: query images per class (M = ways · queries).
        augment: strength of a random distortion of every image (`views`); for training.
        augment_classes: strength of one that all images of a class in a task share: it makes new classes.
        transform: of a batch of images, float32 [B, channels, H, W] in [0, 1], such as torchvision's v2 transforms;
            gives as many, of one shape. Random ones take their numbers from torch's global generator.
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
        transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(Shots(ways, shots, queries), device)
        check_strength("augment", augment)
        check_strength("augment_classes", augment_classes)
        _check_table(table, ways, shots, queries)
        self.augment, self.augment_classes = augment, augment_classes
        self.transform = transform
        self._ahead = ReadAhead(table.images, self._draw_rows, self.device) if table.mapped else None
        self._images = table.images if table.mapped else table.images.to(self.device)
        self._members = table.members.to(self.device)
        sizes = table.sizes()
        self._sizes = sizes.to(self.device)
        # of few among many hardly any two are equal; of a small class they would be, again and again
        self._large = table.members.shape[1] > _MANY and int(sizes.min()) >= self.counts.draws**2
        self._groups = table.groups.to(self.device)

    @property
    def classes(self) -> int:
        """Different classes."""
        return len(self._members)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, N or M, channels, H, W] in [0, 1], labels int64."""
        self._check_sample(tasks, generator)
        if self._ahead is None:
            pixels = self._images[self._draw_rows(tasks, generator)]
        else:
            pixels = self._ahead.pixels(tasks, generator)
        x = self._distort(floats(pixels), generator)
        if self._ahead is not None:
            self._ahead.read_next(tasks, generator)
        return self.counts.classification(self._transformed(x.flatten(1, 2)))

    def _draw_rows(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Rows of the images, [tasks, shots + queries, ways]."""
        return self._sample_rows(self._sample_classes(tasks, generator), generator)

    def _transformed(self, x: Tensor) -> Tensor:
        """Of x [tasks, samples, channels, H, W]."""
        if self.transform is None:
            return x
        made = self.transform(x.flatten(0, 1))
        count = x.shape[0] * x.shape[1]
        if not isinstance(made, Tensor) or made.dim() != 4 or len(made) != count or not made.is_floating_point():
            got = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"transform must give a floating-point batch [{count}, channels, H, W] for one of "
                f"{list(x.flatten(0, 1).shape)}, got {got}"
            )
        return made.unflatten(0, x.shape[:2])

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
        if self._large:
            return self._sample_rows_of_many(classes, generator)
        members = self._members[classes]
        keys = torch.rand(members.shape, generator=generator, device=self.device)
        chosen = keys.masked_fill_(members < 0, -1.0).topk(self.counts.draws, dim=2).indices
        return members.gather(2, chosen).transpose(1, 2)

    def _sample_rows_of_many(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """The same for large classes: numbers are drawn until none repeats, instead of ordering all images."""
        sizes = self._sizes[classes].unsqueeze(2)

        def draw() -> Tensor:
            u = torch.rand(*classes.shape, self.counts.draws, generator=generator, device=self.device, dtype=_EXACT)
            return (u * sizes).long()

        rows = draw()
        while bool((repeated := repeats(rows)).any()):
            rows = torch.where(repeated.unsqueeze(-1), draw(), rows)
        return self._members[classes.unsqueeze(2), rows].transpose(1, 2)

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
