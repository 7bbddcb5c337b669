"""Tasks of different ways and shots in one meta-batch, sampled as Meta-Dataset does (Triantafillou et al. 2020)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from .augment import random_affine, views
from .base import Episodes, check_count, check_generator, check_strength
from .datasets.class_table import ClassTable
from .datasets.pixels import floats

IGNORED = -100
"""The label of padding, which cross-entropy leaves out."""

PADDING = -1.0
"""Every pixel of padding, which no image has: a network can tell by it (`fastmeta.models.PaddedConv4`)."""


class VariedEpisodes:
    """Every task has ways, shots and, if asked for, an imbalance of its own; short ones are padded.

    A task draws a group of classes, C of them with C uniform in `ways`, and k uniform in `shots`. Balanced, each class
    has k support images. With an imbalance r > 1, as in Meta-Dataset (appendix, "episode sampling", r = 2), the
    S = C · k of them are shared out: class c of n_c images has a share R_c ∝ n_c exp(U[−log r, log r]) and gets
    floor(R_c (S − C)) + 1 images. No class gets more than it has beside its `queries`, so classes of few images make
    for fewer shots.

    Samples stand shot by shot. Behind a task's own there is padding: images of `PADDING`, whose label `IGNORED` takes
    them out of cross-entropy, its mean and its gradient, so that a task has the loss and the meta-gradient that it has
    alone. That holds for networks that look at each sample by itself. Batch norm does not: it would take statistics
    over the padding. `check` refuses such a network; `PaddedConv4` leaves padding out of the statistics.

    A network for these tasks has `ways[1]` outputs. A meta-batch is padded to the smallest of `sizes` that holds it,
    so there are no more plans than sizes.

    Args:
        table: images and classes; they are copied to `device` once.
        ways: fewest and most classes of a task; of a group of fewer classes than the most, at most all of it.
        shots: fewest and most support images of a class, on average over the classes of a task.
        queries: query images per class.
        imbalance: r; 1 gives every class the same.
        support_limit: most support images of a task; None: no limit. Meta-Dataset has 500.
        sizes: how many different numbers of samples a meta-batch may be padded to.
        augment, augment_classes: as of `ClassEpisodes`.
        device: where images lie and episodes are sampled.

    Raises:
        ValueError: for a count, range or strength out of range, or too few classes or images.
    """

    def __init__(
        self,
        table: ClassTable,
        *,
        ways: tuple[int, int],
        shots: tuple[int, int],
        queries: int,
        imbalance: float = 1.0,
        support_limit: int | None = None,
        sizes: int = 4,
        augment: float = 0.0,
        augment_classes: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_range("ways", ways, fewest=2)
        _check_range("shots", shots, fewest=1)
        check_count("queries", queries)
        check_count("sizes", sizes)
        if not (math.isfinite(imbalance) and imbalance >= 1):
            raise ValueError(f"imbalance must be a number of at least 1 (1 is balanced, 2 is usual), got {imbalance!r}")
        if support_limit is not None:
            check_count("support_limit", support_limit, minimum=ways[1])
        for name, value in (("augment", augment), ("augment_classes", augment_classes)):
            check_strength(name, value)
        _check_table(table, ways, queries)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.imbalance, self.support_limit = imbalance, support_limit
        self.augment, self.augment_classes, self.device = augment, augment_classes, torch.device(device)
        self.sizes = self._sizes(sizes)
        self._images, self._members = table.images.to(self.device), table.members.to(self.device)
        groups = table.groups.to(self.device)
        missing = max(0, ways[1] - groups.shape[1])
        self._groups = torch.nn.functional.pad(groups, (0, missing), value=-1)

    def __repr__(self) -> str:
        (fewest, most), (few, many) = self.ways, self.shots
        return (
            f"VariedEpisodes(ways={fewest}:{most}, shots={few}:{many}, queries={self.queries}, "
            f"imbalance={self.imbalance:g}, device={str(self.device)!r})"
        )

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Raise ValueError where padding changes what a network makes of other samples, as under batch norm.

        A copy of the network is called twice, on three random images with and without padding behind them.
        """
        trial = copy.deepcopy(model)
        for layer in trial.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.eval()  # chance is no mixing of samples
        p = next(trial.parameters())
        x = torch.rand(3, *self._images.shape[1:], generator=torch.Generator().manual_seed(0)).to(p)
        alone, padded = trial(x), trial(torch.cat([x, torch.full_like(x, PADDING)]))[:3]
        if (alone - padded).abs().max() <= 1e-3 * alone.abs().max():
            return
        norms = (name for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
        culprit = next((f"batch norm {name!r} takes its statistics over padding too" for name in norms), "")
        raise ValueError(
            "tasks of different ways and shots are padded, and this network's outputs for a sample depend on the "
            f"padding{' (' + culprit + ')' if culprit else ''}; use one that leaves padding out (conv4-padded, "
            "fastmeta.models.PaddedConv4), group or layer norm, or tasks of one size"
        )

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, N or M, channels, H, W] in [0, 1], or `PADDING`; labels int64,
        or `IGNORED`. (N, M) is one of `sizes`."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        classes, ways = self._draw_classes(tasks, generator)
        images = (self._members[classes] >= 0).sum(2)  # of each class, [T, C]
        there = torch.arange(classes.shape[1], device=self.device) < ways[:, None]
        shots = self._draw_shots(images, ways, there, generator)
        rows = self._draw_rows(classes, int(shots.max()) + self.queries, generator)
        maps = None
        if self.augment_classes:
            maps = random_affine((tasks, classes.shape[1]), strength=self.augment_classes, generator=generator)
        support = int(shots.sum(1).max())
        n, m = next(s for s in self.sizes if s[0] >= support and s[1] >= int(ways.max()) * self.queries)
        query_x, query_y = self._part(rows[:, : self.queries], there * self.queries, m, maps, generator)
        support_x, support_y = self._part(rows[:, self.queries :], shots, n, maps, generator)
        return Episodes(support_x, support_y, query_x, query_y)

    def _sizes(self, count: int) -> list[tuple[int, int]]:
        """Pairs (N, M) that hold the smallest to the largest meta-batch, in equal ratios."""
        limit = math.inf if self.support_limit is None else self.support_limit
        (fewest, most), (few, many) = self.ways, self.shots
        low = fewest * few, fewest * self.queries
        high = int(min(limit, most * many)), most * self.queries
        shares = [i / count for i in range(1, count + 1)]
        sizes = [tuple(round(a * (b / a) ** share) for a, b in zip(low, high, strict=True)) for share in shares]
        return sorted({(n, m) for n, m in sizes})

    def _draw_classes(self, tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Classes [T, C], in random order, and how many of them are the task's, [T]."""
        u = torch.rand(2, tasks, generator=generator, device=self.device, dtype=torch.float64)
        groups = self._groups[(u[0] * len(self._groups)).long()]
        most = (groups >= 0).sum(1).clamp(max=self.ways[1])
        keys = torch.rand(groups.shape, generator=generator, device=self.device).masked_fill_(groups < 0, -1.0)
        classes = groups.gather(1, keys.topk(self.ways[1], dim=1).indices)
        return classes.clamp(min=0), self.ways[0] + (u[1] * (most - self.ways[0] + 1)).long()

    def _draw_shots(self, images: Tensor, ways: Tensor, there: Tensor, generator: torch.Generator) -> Tensor:
        """Support images of each class, [T, C]."""
        few, many = self.shots
        k = torch.randint(few, many + 1, ways.shape, generator=generator, device=self.device)
        left = images - self.queries
        if self.support_limit is not None:
            k = k.minimum(self.support_limit // ways)
        if self.imbalance == 1:
            return there * k[:, None].minimum(left)
        spread = math.log(self.imbalance)
        alpha = torch.rand(images.shape, generator=generator, device=self.device, dtype=torch.float64)
        share = there * images * alpha.mul_(2 * spread).sub_(spread).exp_()
        share = share / share.sum(1, keepdim=True)
        total = (there * k[:, None].minimum(left)).sum(1)
        return there * ((share * (total - ways)[:, None]).long() + 1).minimum(left)

    def _draw_rows(self, classes: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Rows of the images, [T, count, C], without replacement within a class; of one with fewer, any behind them."""
        members = self._members[classes]
        keys = torch.rand(members.shape, generator=generator, device=self.device).masked_fill_(members < 0, -1.0)
        chosen = keys.topk(count, dim=2).indices
        return members.gather(2, chosen).transpose(1, 2).clamp(min=0)

    def _part(
        self, rows: Tensor, counts: Tensor, size: int, maps: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images and labels [T, size, ...]: the first `counts` [T, C] of the rows [T, most, C], and padding."""
        own = torch.arange(rows.shape[1], device=self.device)[:, None] < counts[:, None]
        # own samples in front, shot by shot
        places = own.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
        missing = size - places.shape[1]
        places = torch.nn.functional.pad(places, (0, missing))
        labels = places % rows.shape[2]
        real = torch.arange(size, device=self.device) < counts.sum(1, keepdim=True)
        x = floats(self._images[rows.flatten(1).gather(1, places)])
        if self.augment or maps is not None:
            of_class = None if maps is None else maps.gather(1, labels[..., None, None].expand(-1, -1, 3, 3))
            x = views(x, strength=self.augment, generator=generator, maps=of_class)
        return torch.where(real[..., None, None, None], x, PADDING), torch.where(real, labels, IGNORED)


def _check_range(name: str, value: tuple[int, int], *, fewest: int) -> None:
    for part in value:
        check_count(name, part, minimum=fewest)
    if value[0] > value[1]:
        raise ValueError(f"{name} must be a range from the fewest to the most, got {value[0]}:{value[1]}")


def _check_table(table: ClassTable, ways: tuple[int, int], queries: int) -> None:
    smallest = int((table.groups >= 0).sum(1).min()) if len(table.groups) else 0
    if ways[0] > smallest:
        raise ValueError(
            f"ways: the fewest must be at most the number of classes that a task may mix, got {ways[0]} of {smallest}; "
            "ask for fewer ways or give more data"
        )
    fewest = int(table.sizes().min())
    if fewest < queries + 1:
        raise ValueError(
            f"queries must leave a support image of each class, got {queries}, but a class has only {fewest}; ask for "
            "fewer queries"
        )
