"""Random stroke glyphs: images of as many classes as one likes, made on the device, nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import random_affine
from .base import Episodes, Sampler, Shots, check_count, check_strength
from .datasets.images import Images

_STROKES = 4
"""Most strokes of a glyph; each is there with probability 3/4, the first always."""
_POINTS = 24
"""Of a stroke, which is a quadratic Bézier curve: about one a pixel of 28."""
_WIDTH = 0.05
"""Half the width of a stroke where the image is 2 wide: 1.4 pixels of 28."""
_WOBBLE = 0.06
"""Standard deviation of a drawing's control points around the glyph's: different hands."""


class Glyphs(Sampler):
    """Few-shot classification of glyphs that no other task has: every class is drawn anew.

    A class is one to four quadratic Bézier strokes with random control points. A drawing of it moves the control
    points and distorts the whole (`random_affine`).

    Args:
        ways: classes C of a task.
        shots: support images per class (N = ways · shots).
        queries: query images per class (M = ways · queries).
        size: side of the images in pixels.
        augment: strength of the distortion between drawings of a class; 1 is of the order of handwriting.
        device: where episodes are made.

    Raises:
        ValueError: for a count or strength out of range.
    """

    def __init__(
        self,
        *,
        ways: int,
        shots: int,
        queries: int,
        size: int = 28,
        augment: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(Shots(ways, shots, queries), device)
        check_count("size", size, minimum=8)
        check_strength("augment", augment)
        self.size, self.augment = size, augment

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, N or M, 1, size, size] in [0, 1], labels int64."""
        self._check_sample(tasks, generator)
        strokes, there = _new_classes((tasks, 1, self.ways), generator)
        x = _drawings(strokes, there, self.counts.draws, self.size, self.augment, generator)
        return self.counts.classification(x.flatten(1, 2))


def draw_glyphs(
    classes: int = 200, drawings: int = 20, *, size: int = 28, augment: float = 1.0, seed: int = 0
) -> Images:
    """A fixed set of glyphs, `drawings` of each of `classes`: what the unlabelled families take without data.

    Args:
        classes: how many different glyphs.
        drawings: of each.
        size: side of the images in pixels.
        augment: strength of the distortion between drawings.
        seed: the same one gives the same images.
    """
    check_count("classes", classes)
    check_count("drawings", drawings)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, classes, 10):  # bounds memory: 10 classes of 20 drawings are 60 MB of distances
        strokes, there = _new_classes((min(10, classes - start), 1, 1), generator)
        x = _drawings(strokes, there, drawings, size, augment, generator)
        parts.append((x.flatten(0, 2) * 255).round().to(torch.uint8))
    return Images(torch.cat(parts), torch.arange(classes).repeat_interleave(drawings), "random glyphs")


def _new_classes(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Control points [*shape, strokes, 3, 2] in [−0.75, 0.75], and which strokes are there [*shape, strokes]."""
    device = generator.device
    points = torch.rand(*shape, _STROKES, 3, 2, generator=generator, device=device).mul_(1.5).sub_(0.75)
    there = torch.rand(*shape, _STROKES, generator=generator, device=device) < 0.75
    there[..., 0] = True
    return points, there


def _drawings(
    strokes: Tensor, there: Tensor, count: int, size: int, augment: float, generator: torch.Generator
) -> Tensor:
    """[tasks, count, ways, 1, size, size] of strokes [tasks, 1, ways, strokes, 3, 2]."""
    tasks, _, ways = there.shape[:3]
    shape = (tasks, count, ways)
    noise = torch.randn(*shape, _STROKES, 3, 2, generator=generator, device=strokes.device)
    control = strokes + _WOBBLE * augment * noise
    maps = random_affine(shape, strength=augment, generator=generator)
    control = torch.einsum("tcwij,tcwspj->tcwspi", maps[..., :2, :2], control) + maps[..., None, None, :2, 2]
    t = torch.linspace(0, 1, _POINTS, device=strokes.device)
    bernstein = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)  # [points, 3]
    points = torch.einsum("pk,tcwskd->tcwspd", bernstein, control)
    return _render(points, there.expand(*shape, _STROKES), size)


def _render(points: Tensor, there: Tensor, size: int) -> Tensor:
    """Ink where a pixel lies near a point: [..., 1, size, size] of points [..., strokes, points, 2]."""
    axis = (torch.arange(size, device=points.device) + 0.5) * (2 / size) - 1
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
    norms = points.square().sum(-1).masked_fill(~there.unsqueeze(-1), torch.inf).flatten(-2)
    shape, norms = norms.shape[:-1], norms.flatten(0, -2).unsqueeze(1)
    flat = points.reshape(len(norms), -1, 2).transpose(1, 2)
    # |p|² − 2 p·q, one product for all drawings: fifty times as fast as distances to segments
    nearest = torch.baddbmm(norms, pixels.expand(len(norms), -1, -1), flat, alpha=-2).amin(2)
    distance = nearest.add_(pixels.square().sum(-1)).clamp_(min=0).sqrt_()
    ink = ((_WIDTH - distance) * size + 0.5).clamp_(0, 1)  # half a pixel of softness to either side
    return ink.view(*shape, 1, size, size)
