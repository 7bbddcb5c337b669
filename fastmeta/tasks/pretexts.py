"""Self-supervised tasks on images: which of some transformations was applied? The label costs nothing.

Each pretext turns an image into another of the same size, by its label: a rotation (Gidaris et al. 2018), the position
of one patch beside another (Doersch, Gupta, Efros 2015), an order of the four quarters (after Noroozi and Favaro 2016),
an order of the colours, a zoom.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .augment import views
from .base import Episodes, Sampler, Shots, check_enough, check_strength, distinct_rows
from .datasets.images import Images

_GRID = 3
"""Patches lie in a grid of 3 × 3: the middle one, and one of its eight neighbours."""
_GAP = 0.15
"""Between patches, in sides of a patch, so that lines running across betray little (Doersch et al., section 3)."""
_ZOOMS = (1.0, 0.75, 0.56, 0.42)
"""Shares of the image's side that are shown."""

NEIGHBOURS = tuple((row, column) for row in range(_GRID) for column in range(_GRID) if (row, column) != (1, 1))
"""(row, column) in the grid of each patch label."""


@dataclass(frozen=True)
class Pretext:
    """A family of transformations.

    Attributes:
        summary: for a person.
        classes: how many transformations.
        apply: images [B, C, H, W], labels [B] and a generator → images of the same size.
        colour: it needs three channels.
        smallest: side of the smallest images it can take.
    """

    summary: str
    classes: int
    apply: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    colour: bool = False
    smallest: int = 4


class SelfSupervised(Sampler):
    """Each task takes one pretext, `ways` of its transformations in random order, and fresh images for each.

    The same transformation has another label in another task, so that a task has a linear predictor of its own to
    learn, and what can be shared is the representation under it.

    Args:
        images: whose labels, where there are any, are not read; copied to `device` once.
        pretexts: names out of `PRETEXTS`; each task draws one.
        ways: transformations C of a task.
        shots: support images per transformation (N = ways · shots), ordered as in `ClassEpisodes`.
        queries: query images per transformation. No image occurs twice in a task.
        shuffle: False takes the pretext's first `ways` transformations, numbered as they are.
        augment: strength of a random view of every image before it is transformed; for training.
        device: where images lie and episodes are made.

    Raises:
        ValueError: an unknown pretext, one with fewer transformations than ways or that the images are too small for,
            too few images, or an option out of range.
    """

    def __init__(
        self,
        images: Images,
        pretexts: Sequence[str] = ("rotation",),
        *,
        ways: int = 4,
        shots: int = 5,
        queries: int = 5,
        shuffle: bool = True,
        augment: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(Shots(ways, shots, queries), device)
        check_strength("augment", augment)
        if isinstance(pretexts, str) or not pretexts:
            raise ValueError(f"pretexts must be a sequence of names out of {', '.join(PRETEXTS)}, got {pretexts!r}")
        for name in pretexts:
            _check_pretext(name, ways, images.shape)
        check_enough(images, ways * self.counts.draws, images.describe())
        self.pretexts, self.shuffle, self.augment = tuple(pretexts), shuffle, augment
        self._images = images.unlabelled().to(self.device)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, N or M, channels, H, W] in [0, 1], labels int64."""
        self._check_sample(tasks, generator)
        x = self._images.floats(distinct_rows(len(self._images), tasks, self.ways * self.counts.draws, generator))
        if self.augment:
            x = views(x, strength=self.augment, generator=generator)
        chosen = torch.randint(len(self.pretexts), (tasks,), generator=generator, device=self.device)
        for number, name in enumerate(self.pretexts):
            of_tasks = (chosen == number).nonzero().squeeze(1)
            x[of_tasks] = self._transformed(x[of_tasks], PRETEXTS[name], generator)
        return self.counts.classification(x)

    def _transformed(self, x: Tensor, pretext: Pretext, generator: torch.Generator) -> Tensor:
        """Of x [tasks, samples, channels, H, W], sample i by the transformation that label i mod ways stands for."""
        if not len(x):
            return x
        if self.shuffle:
            keys = torch.rand(len(x), pretext.classes, generator=generator, device=self.device)
            kinds = keys.topk(self.ways, dim=1).indices
        else:
            kinds = torch.arange(self.ways, device=self.device).expand(len(x), -1)
        labels = kinds.repeat(1, self.counts.draws)
        return pretext.apply(x.flatten(0, 1), labels.flatten(), generator).view_as(x)


def _check_pretext(name: str, ways: int, shape: tuple[int, int, int]) -> None:
    if name not in PRETEXTS:
        raise ValueError(f"pretext must be one of {', '.join(PRETEXTS)}, got {name!r}")
    pretext = PRETEXTS[name]
    if ways > pretext.classes:
        raise ValueError(
            f"pretext {name} has {pretext.classes} classes, got {ways} ways; choose other ways or pretexts"
        )
    channels, height, width = shape
    if min(height, width) < pretext.smallest or (name == "rotation" and height != width):
        raise ValueError(
            f"pretext {name} needs square images of at least {pretext.smallest} × {pretext.smallest} pixels, got "
            f"{height} × {width}: smaller ones have no room for its patches; give larger images or leave it out"
        )
    if pretext.colour and channels != 3:
        raise ValueError(f"pretext {name} needs colour images, got {channels} channel; leave it out")


def _rotate(x: Tensor, label: Tensor, _: torch.Generator) -> Tensor:
    """By label · 90 degrees, counter-clockwise."""
    turned = torch.stack([torch.rot90(x, turns, (2, 3)) for turns in range(4)])
    return turned[label, torch.arange(len(x), device=x.device)]


def patch_layout(side: int) -> tuple[int, int, int]:
    """(patch, step, slack) in pixels for images of `side`: patches of the grid lie `step` apart from a corner that may
    move by up to `slack`."""
    patch = int(side / (_GRID + (_GRID - 1) * _GAP + 0.25))
    step = patch + max(round(patch * _GAP), 1)
    return patch, step, side - (_GRID - 1) * step - patch


def _patches(x: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Left the middle patch, right its neighbour, each enlarged to half the width; blank above and below."""
    count, _, height, width = x.shape
    patch, step, slack = patch_layout(min(height, width))
    corner = torch.randint(slack + 1, (count, 2), generator=generator, device=x.device)
    places = torch.tensor(NEIGHBOURS, device=x.device)[label]
    half = width // 2
    top = (height - half) // 2
    out = torch.zeros_like(x)
    for column, place in enumerate((torch.ones_like(places), places)):
        cut = F.interpolate(_cut(x, corner + step * place, patch), (half, half), mode="bilinear")
        out[:, :, top : top + half, column * half : (column + 1) * half] = cut
    return out


def _cut(x: Tensor, corner: Tensor, side: int) -> Tensor:
    """Squares [B, C, side, side] of x [B, C, H, W] whose upper left corners are [B, 2] (row, column)."""
    offsets = torch.arange(side, device=x.device)
    rows, columns = corner[:, :1] + offsets, corner[:, 1:] + offsets
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


_TILE_ORDERS = tuple(itertools.permutations(range(4)))
_COLOUR_ORDERS = tuple(itertools.permutations(range(3)))


def _tiles(x: Tensor, label: Tensor, _: torch.Generator) -> Tensor:
    """The four quarters in another order. An odd last row or column stays where it is."""
    h, w = x.shape[2] // 2, x.shape[3] // 2
    corners = ((0, 0), (0, w), (h, 0), (h, w))
    quarters = torch.stack([x[:, :, r : r + h, c : c + w] for r, c in corners], 1)
    orders = torch.tensor(_TILE_ORDERS, device=x.device)[label]
    moved = quarters[torch.arange(len(x), device=x.device)[:, None], orders]
    out = x.clone()
    for i, (r, c) in enumerate(corners):
        out[:, :, r : r + h, c : c + w] = moved[:, i]
    return out


def _colours(x: Tensor, label: Tensor, _: torch.Generator) -> Tensor:
    """Red, green and blue in another order."""
    orders = torch.tensor(_COLOUR_ORDERS, device=x.device)[label]
    return x[torch.arange(len(x), device=x.device)[:, None], orders]


def _zoom(x: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """A square part of the image, anywhere, enlarged to its size."""
    scale = torch.tensor(_ZOOMS, device=x.device)[label]
    shift = torch.rand(len(x), 2, generator=generator, device=x.device).mul_(2).sub_(1) * (1 - scale)[:, None]
    maps = torch.zeros(len(x), 2, 3, device=x.device)
    maps[:, 0, 0] = maps[:, 1, 1] = scale
    maps[:, :, 2] = shift
    return F.grid_sample(x, F.affine_grid(maps, list(x.shape), align_corners=False), align_corners=False)


PRETEXTS: dict[str, Pretext] = {
    "rotation": Pretext("by how many right angles the image is turned", 4, _rotate),
    "patches": Pretext("where the second patch lies beside the first", len(NEIGHBOURS), _patches, smallest=14),
    "tiles": Pretext("in which order the four quarters stand", len(_TILE_ORDERS), _tiles),
    "colours": Pretext("in which order red, green and blue stand", len(_COLOUR_ORDERS), _colours, colour=True),
    "zoom": Pretext("how far the image is enlarged", len(_ZOOMS), _zoom),
}
"""By name."""
