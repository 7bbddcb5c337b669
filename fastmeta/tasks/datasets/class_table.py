"""Which images are of which class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, repr=False)
class ClassTable:
    """Which images make which classes, and which classes a task may mix.

    Attributes:
        images: uint8 [n, channels, H, W].
        members: int64 [classes, most], the rows of `images` that a class holds, in front; −1 behind them.
        groups: int64 [groups, longest], the classes of each group, in front; −1 behind them.
        mapped: whether the images lie in a file, and are to stay there.
    """

    images: Tensor
    members: Tensor
    groups: Tensor
    mapped: bool = False

    def __repr__(self) -> str:
        sizes = self.sizes()
        low, high = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
        of = f"{low}" if low == high else f"{low} to {high}"
        groups = f"{len(self.groups):,} group{'' if len(self.groups) == 1 else 's'}"
        shape = tuple(self.images.shape[1:])
        return f"ClassTable({len(self.images):,} images of {shape}, {len(sizes):,} classes of {of} images, {groups})"

    @classmethod
    def of_labels(
        cls, images: Tensor, labels: Tensor, rows: Tensor | None = None, *, mapped: bool = False
    ) -> ClassTable:
        """One class for each value of `labels` [n], all in one group.

        Args:
            images: uint8 [n, channels, H, W].
            labels: of each image.
            rows: the images that count; None: all.
            mapped: see `ClassTable`.
        """
        rows = torch.arange(len(labels)) if rows is None else rows
        ordered, order = labels[rows].sort(stable=True)
        counts = ordered.unique_consecutive(return_counts=True)[1].tolist()
        members = list(rows[order].split(counts)) if counts else []
        return cls(images, pad(members), torch.arange(len(members))[None], mapped)

    def sizes(self) -> Tensor:
        """Images of each class, [classes]."""
        return (self.members >= 0).sum(1)


def pad(rows: list[Tensor]) -> Tensor:
    """Rows of different lengths as one matrix, padded with −1."""
    return pad_sequence(rows, batch_first=True, padding_value=-1)
