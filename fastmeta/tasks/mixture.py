"""Tasks of several families in one meta-batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .base import Episodes, TaskFamily, check_count, check_generator


class Mixture:
    """Each task comes from one of several families, drawn by weight; support and query sets have one shape in all.

    Args:
        families: at least one, all on one device.
        weights: how often each is drawn, in proportion; None: all alike.

    Raises:
        ValueError: no family, several devices, or weights that are no positive numbers, one a family.
    """

    def __init__(self, families: Sequence[TaskFamily], *, weights: Sequence[float] | None = None) -> None:
        if not families:
            raise ValueError("families must hold at least one family, got none")
        devices = sorted({str(family.device) for family in families})
        if len(devices) > 1:
            raise ValueError(f"families must be on one device, got {', '.join(devices)}")
        weights = [1.0] * len(families) if weights is None else weights
        check_weights(weights, len(families))
        self.families, self.weights = tuple(families), tuple(weights)

    @property
    def device(self) -> torch.device:
        """Where the episodes are sampled and where they lie."""
        return self.families[0].device

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes, each of a family of its own.

        Raises:
            ValueError: families whose tasks differ in shape.
        """
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=self.device)
        source = torch.multinomial(weights, tasks, replacement=True, generator=generator)
        counts = torch.bincount(source, minlength=len(self.families)).tolist()
        drawn = [f.sample(n, generator) for f, n in zip(self.families, counts, strict=True) if n]
        for name, parts in zip(Episodes._fields, zip(*drawn, strict=True), strict=True):
            shapes = sorted({tuple(part.shape[1:]) for part in parts})
            if len(shapes) > 1:
                raise ValueError(f"all families must have tasks of one shape, got {name} of {shapes}")
        # they lie family by family: put each where it was drawn
        order = source.argsort(stable=True).argsort()
        return Episodes(*(torch.cat(parts)[order] for parts in zip(*drawn, strict=True)))


def check_weights(weights: Sequence[float], count: int) -> None:
    """Raise ValueError unless there is a positive number for each of `count` things."""
    if len(weights) != count or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(f"weights must be {count} positive numbers, one a source, got {list(weights)}")
