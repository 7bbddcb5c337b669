"""A set of images of one size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmeta.tasks.base import split_count

from .class_table import ClassTable
from .pixels import floats


@dataclass(frozen=True, repr=False)
class Images:
    """Images of one size.

    Attributes:
        pixels: uint8 [n, channels, H, W]; one channel (drawings, ink is 255) or three.
        labels: int64 [n], or None. No family of tasks without labels reads them: they serve to score what it learned.
        title: where they come from, for a person.
    """

    pixels: Tensor
    labels: Tensor | None
    title: str = "images"

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or self.pixels.dtype != torch.uint8 or self.pixels.shape[1] not in (1, 3):
            raise ValueError(
                "pixels must be uint8 [n, 1 or 3 channels, H, W], got "
                f"{str(self.pixels.dtype).removeprefix('torch.')} {list(self.pixels.shape)}; as_images makes them"
            )
        if self.labels is not None and self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"labels must be [{len(self.pixels)}], one an image, got {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        classes = "no labels" if self.labels is None else f"{len(self.labels.unique()):,} classes"
        return f"Images({self.describe()}, {classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""
        return Images(self.pixels.to(device), None if self.labels is None else self.labels.to(device), self.title)

    def floats(self, rows: Tensor | None = None, device: torch.device | None = None) -> Tensor:
        """Images as networks see them, float32 in [0, 1].

        Args:
            rows: which images, int64 of any shape; None: all.
            device: of the result; None: where the images lie.

        Returns:
            [*rows.shape, channels, H, W].
        """
        return floats(self.pixels if rows is None else self.pixels[rows], device)

    def unlabelled(self) -> Images:
        """The same images without their labels."""
        return Images(self.pixels, None, self.title)

    def take(self, rows: Tensor) -> Images:
        """Some of the images."""
        return Images(self.pixels[rows], None if self.labels is None else self.labels[rows], self.title)

    def split_classes(self, held_out: float) -> tuple[Images, Images]:
        """The images of the first classes, and those of the last share `held_out` of them (at least one).

        Raises:
            ValueError: without labels, or with fewer than two classes.
        """
        classes = [] if self.labels is None else self.labels.unique().tolist()
        if self.labels is None or len(classes) < 2:
            raise ValueError(f"{self.title}: classes can be held out of labelled images only, of at least two classes")
        first = split_count(len(classes), held_out)
        learned = torch.isin(self.labels, torch.tensor(classes[:first]))
        return self.take(learned.nonzero().squeeze(1)), self.take((~learned).nonzero().squeeze(1))

    def split(self, held_out: float) -> tuple[Images, Images]:
        """All but a share `held_out` of the images, and that share, drawn at random but always the same."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        first = split_count(len(self), held_out)
        return self.take(order[:first].sort().values), self.take(order[first:].sort().values)

    def table(self) -> ClassTable:
        """The labels' classes.

        Raises:
            ValueError: without labels.
        """
        if self.labels is None:
            raise ValueError(
                f"{self.title} carries no labels, so episodes of its classes cannot be drawn; give images in one "
                "folder a class"
            )
        return ClassTable.of_labels(self.pixels, self.labels)

    def resized(self, size: int) -> Images:
        """Resampled to size × size, antialiased."""
        if self.shape[1:] == (size, size):
            return self
        parts = [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
            for part in self.pixels.split(1000)
        ]
        return Images(torch.cat(parts), self.labels, self.title)

    def fingerprint(self) -> str:
        """A digest of the pixels: two sets with the same one give the same episodes."""
        digest = hashlib.sha256(str(list(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """For a person: how many, of what size."""
        channels, height, width = self.shape
        colour = "colour" if channels == 3 else "grey"
        return f"{self.title}: {len(self):,} {colour} images of {height} × {width}"


def of_array(array: np.ndarray | Tensor, labels: Any = None) -> Images:
    """Images of an array or tensor, see `as_images`.

    Raises:
        ValueError: for another shape or dtype, or values out of range.
    """
    x = torch.as_tensor(array).detach().cpu()
    shape = list(x.shape)
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.dim() != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"images must be [n, H, W], or [n, C, H, W] or [n, H, W, C] with C = 1 or 3, got {shape}")
    if x.is_floating_point():
        low, high = x.aminmax()
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(f"images of floating point must lie in [0, 1], got values from {low:g} to {high:g}")
        x = (x * 255).round()
    elif x.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8, or floating point in [0, 1], got {str(x.dtype).removeprefix('torch.')}"
        )
    return Images(x.to(torch.uint8).contiguous(), None if labels is None else torch.as_tensor(labels).long().cpu())
