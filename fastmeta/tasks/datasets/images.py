"""A set of images of one size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmeta.tasks.base import split_count

from .class_table import ClassTable
from .pixels import floats

SPLITS = ("train", "val", "test")
"""What published class splits are called, in the order of `Images.part`'s numbers."""


@dataclass(frozen=True, repr=False)
class Images:
    """Images of one size.

    Attributes:
        pixels: uint8 [n, channels, H, W]; one channel (drawings, ink is 255) or three. They may be mapped from a file:
            what is read of them is then all that takes memory.
        labels: int64 [n], or None. No family of tasks without labels reads them: they serve to score what it learned.
        title: where they come from, for a person.
        classes: name of each label; () where they have none.
        part: int64 [n], the index in `SPLITS` of each image's part; None where the data is not divided.
        divided_by: the file or folders that divide it, for a person.
        mapped: whether the pixels lie in a file.
    """

    pixels: Tensor
    labels: Tensor | None
    title: str = "images"
    classes: tuple[str, ...] = ()
    part: Tensor | None = None
    divided_by: str = ""
    mapped: bool = False

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or self.pixels.dtype != torch.uint8 or self.pixels.shape[1] not in (1, 3):
            raise ValueError(
                "pixels must be uint8 [n, 1 or 3 channels, H, W], got "
                f"{str(self.pixels.dtype).removeprefix('torch.')} {list(self.pixels.shape)}; as_images makes them"
            )
        if self.labels is not None and self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"labels must be [{len(self.pixels)}], one an image, got {list(self.labels.shape)}")
        if self.part is not None and self.part.shape != self.pixels.shape[:1]:
            raise ValueError(f"part must be [{len(self.pixels)}], one an image, got {list(self.part.shape)}")

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
        labels = None if self.labels is None else self.labels.to(device)
        pixels = self.pixels.to(device)
        return replace(self, pixels=pixels, labels=labels, mapped=self.mapped and pixels.device.type == "cpu")

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
        return replace(self, labels=None, classes=())

    def take(self, rows: Tensor) -> Images:
        """Some of the images; neighbours stay where they lie, others are copied."""
        first, count = (int(rows[0]), len(rows)) if len(rows) else (0, 0)
        together = torch.equal(rows, torch.arange(first, first + count, device=rows.device))
        return replace(
            self,
            pixels=self.pixels[first : first + count] if together else self.pixels[rows],
            labels=None if self.labels is None else self.labels[rows],
            part=None if self.part is None else self.part[rows],
            mapped=self.mapped and together,
        )

    def rows_of(self, *parts: str) -> Tensor:
        """Numbers of the images of some parts of a divided set, out of `SPLITS`."""
        assert self.part is not None
        return torch.isin(self.part, torch.tensor([SPLITS.index(part) for part in parts])).nonzero().squeeze(1)

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of `SPLITS` a divided set has; () where it is not divided."""
        return () if self.part is None else tuple(SPLITS[i] for i in self.part.unique().tolist())

    def split_classes(self, held_out: float) -> tuple[Images, Images]:
        """The images of the first classes, and those of the last share `held_out` of them (at least one).

        A set that is divided keeps its own division: the images of its train part, and those of its test part.

        Raises:
            ValueError: without labels, or with fewer than two classes; for a set whose division lacks a part.
        """
        first, last = self.class_rows(held_out)
        return self.take(first), self.take(last)

    def class_rows(self, held_out: float) -> tuple[Tensor, Tensor]:
        """Numbers of the images that `split_classes` gives. Raises as it does."""
        if self.part is not None:
            return self._own_split()
        classes = [] if self.labels is None else self.labels.unique().tolist()
        if self.labels is None or len(classes) < 2:
            raise ValueError(f"{self.title}: classes can be held out of labelled images only, of at least two classes")
        first = split_count(len(classes), held_out)
        learned = torch.isin(self.labels, torch.tensor(classes[:first]))
        return learned.nonzero().squeeze(1), (~learned).nonzero().squeeze(1)

    def split(self, held_out: float) -> tuple[Images, Images]:
        """All but a share `held_out` of the images, and that share, drawn at random but always the same.

        A set that is divided keeps its own division, as in `split_classes`.
        """
        if self.part is not None:
            first, last = self._own_split()
            return self.take(first), self.take(last)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        first = split_count(len(self), held_out)
        return self.take(order[:first].sort().values), self.take(order[first:].sort().values)

    def _own_split(self) -> tuple[Tensor, Tensor]:
        train, test = self.rows_of("train"), self.rows_of("test" if "test" in self.parts else "val")
        if not len(train) or not len(test):
            raise ValueError(
                f"{self.title} is divided by {self.divided_by} into {', '.join(self.parts)} alone; a part to learn "
                "from (train) and one to score on (test or val) are needed"
            )
        return train, test

    def table(self, rows: Tensor | None = None) -> ClassTable:
        """The labels' classes, of all images or of some, without a copy of the pixels.

        Raises:
            ValueError: without labels.
        """
        if self.labels is None:
            raise ValueError(
                f"{self.title} carries no labels, so episodes of its classes cannot be drawn; give images in one "
                "folder a class"
            )
        return ClassTable.of_labels(self.pixels, self.labels, rows, mapped=self.mapped)

    def resized(self, size: int) -> Images:
        """Resampled to size × size, antialiased."""
        if self.shape[1:] == (size, size):
            return self
        parts = [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
            for part in self.pixels.split(1000)
        ]
        return replace(self, pixels=torch.cat(parts), mapped=False)

    def fingerprint(self) -> str:
        """A digest of the pixels and of how they are divided: two sets with the same one give the same episodes."""
        digest = hashlib.sha256(str(list(self.pixels.shape)).encode())
        for part in self.pixels.split(1000):  # of mapped pixels, no more than that lies in memory
            digest.update(part.numpy().tobytes())
        if self.part is not None:
            digest.update(self.part.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """For a person: how many, of what size."""
        channels, height, width = self.shape
        colour = "colour" if channels == 3 else "grey"
        text = f"{self.title}: {len(self):,} {colour} images of {height} × {width}"
        if self.part is None:
            return text
        counts = ", ".join(f"{part} {len(self.rows_of(part)):,}{self._classes_of(part)}" for part in self.parts)
        return f"{text}, divided by {self.divided_by} ({counts})"

    def _classes_of(self, part: str) -> str:
        if self.labels is None:
            return ""
        return f" of {len(self.labels[self.rows_of(part)].unique()):,} classes"


def joined(
    parts: Sequence[Images],
    size: int | None = None,
    *,
    shared_classes: bool = False,
    divided_by: str = "",
    title: str | None = None,
) -> Images:
    """Several sets as one; without labels of all there are none.

    Args:
        parts: at least one set.
        size: side of the squares that all are resampled to; None leaves them as they are.
        shared_classes: equal labels are one class; else the classes of each set are its own, but for classes of equal
            names where all sets divide the same classes (`divided_by`).
        divided_by: what divides the whole, where parts say what they are.
        title: of the whole; None: of the first.

    Raises:
        ValueError: for sets that differ in size or channels, or of which some are divided and others not.
    """
    parts = [part if size is None else part.resized(size) for part in parts]
    if len(parts) == 1:
        return replace(parts[0], title=title or parts[0].title, divided_by=divided_by or parts[0].divided_by)
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"images must agree in (channels, H, W), got {shapes}; choose one size (--image-size)")
    divided = [part.part for part in parts if part.part is not None]
    if divided and len(divided) < len(parts):
        named = ", ".join(part.title for part in parts if part.part is not None)
        raise ValueError(
            f"{named} is divided into training and test parts, and the other data are not; give them in runs of "
            "their own, or divide all"
        )
    labels, classes = _joined_labels(parts, shared_classes or bool(divided_by))
    return Images(
        torch.cat([part.pixels for part in parts]),
        labels,
        title or parts[0].title,
        classes,
        torch.cat(divided) if divided else None,
        divided_by or ", ".join(dict.fromkeys(part.divided_by for part in parts if part.divided_by)),
    )


def _joined_labels(parts: Sequence[Images], shared: bool) -> tuple[Tensor | None, tuple[str, ...]]:
    labels: list[Tensor] = []
    if any(part.labels is None for part in parts):
        return None, ()
    if shared and all(part.classes for part in parts):
        classes = tuple(sorted({name for part in parts for name in part.classes}))
        for part in parts:
            assert part.labels is not None
            labels.append(torch.tensor([classes.index(name) for name in part.classes])[part.labels])
        return torch.cat(labels), classes
    first, names = 0, []
    for part in parts:
        assert part.labels is not None
        labels.append(part.labels + first)
        count = int(part.labels.max()) + 1
        names += part.classes or [f"{part.title}/{i}" for i in range(count)]
        first += 0 if shared else count
    return torch.cat(labels), () if shared or not any(part.classes for part in parts) else tuple(names)


def of_array(array: np.ndarray | Tensor, labels: Any = None, *, mapped: bool = False) -> Images:
    """Images of an array or tensor, see `as_images`; a mapped one of uint8 stays where it lies.

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
    x = x.to(torch.uint8)
    return Images(x if mapped else x.contiguous(), None if labels is None else torch.as_tensor(labels).long().cpu())
