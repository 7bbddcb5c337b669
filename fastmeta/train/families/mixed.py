"""Few-shot classification of images from several sources at once (multi-domain training)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from fastmeta.tasks import Episodes, Images, Mixture, TaskFamily, load_images
from fastmeta.tasks.base import split_count
from fastmeta.tasks.cross_domain import difference, matched
from fastmeta.tasks.mixture import check_weights

from .base import Family, PresetSettings, random_images
from .glyphs import SMALL_CONV4
from .held_out import check_left
from .settings import ClassifierSettings, HeldOut, ImageSize, TrainShots


@dataclass(frozen=True, kw_only=True)
class MixedSettings(ClassifierSettings, TrainShots, ImageSize, HeldOut):
    """Settings of `mixed`."""

    task: ClassVar[str] = "mixed"

    weights: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "help": "how often tasks come from each --data, in proportion; default: all alike",
            "automatic": True,
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for weight in self.weights or ():
            try:
                float(weight)
            except ValueError:
                raise ValueError(f"weights must be numbers, got {weight!r}") from None


@dataclass(frozen=True, repr=False)
class Sources:
    """Images of several sources, in one shape.

    Attributes:
        parts: the images of each; its title is the name of its path.
        changed: what was changed of each for the common shape, for a person.
    """

    parts: tuple[Images, ...]
    changed: tuple[str, ...]

    def describe(self) -> str:
        """For a person."""
        lines = (
            part.describe() + (f", from {changed}" if changed else "")
            for part, changed in zip(self.parts, self.changed, strict=True)
        )
        return "\n".join(lines)

    def fingerprint(self) -> str:
        """A digest of all parts."""
        digests = (part.fingerprint() + str(part.labels is None) for part in self.parts)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


class MixedFamily(Family[MixedSettings, Sources]):
    """Each path is a source; tasks never mix them."""

    def load(self, settings: MixedSettings, paths: Sequence[str]) -> Sources:
        """One source a path, all as the first one's channels and size, or those of the run."""
        if settings.weights:
            check_weights([float(weight) for weight in settings.weights], len(paths))
        images = [load_images([path], size=settings.image_size) for path in paths]
        names = [Path(path).name for path in paths]
        if len(set(names)) < len(names):
            names = [str(path) for path in paths]
        channels, height, width = settings.shape or images[0].shape
        shape = (channels, height, width)
        parts = (Images(matched(part, shape).pixels, part.labels, n) for part, n in zip(images, names, strict=True))
        return Sources(tuple(parts), tuple(difference(part, shape) for part in images))

    def shape(self, settings: MixedSettings, source: Sources) -> tuple[int, ...]:
        """(channels, H, W)."""
        return source.parts[0].shape

    def usual_shape(self, settings: MixedSettings) -> tuple[int, ...]:
        """Small and grey."""
        return (1, settings.image_size or 28, settings.image_size or 28)

    def train(self, settings: MixedSettings, source: Sources, device: torch.device) -> Mixture:
        """Tasks of each source's classes to learn from, by weight."""
        weights = None if settings.weights is None else [float(weight) for weight in settings.weights]
        tasks = [
            settings.episodes(_split(settings, part)[0].table(), device, shots=settings.training_shots)
            for part in source.parts
        ]
        return Mixture(tasks, weights=weights)

    def tests(self, settings: MixedSettings, source: Sources, device: torch.device) -> dict[str, TaskFamily]:
        """Unseen classes, source by source."""
        what = "episodes of unseen classes" if settings.held_out else "new episodes"
        return {
            f"{what} of {part.title}, {settings.size}": settings.episodes(_split(settings, part)[1].table(), device)
            for part in source.parts
        }

    def example(self, settings: MixedSettings, device: torch.device) -> Episodes:
        """Random images."""
        return random_images(settings.ways, settings.training_shots, settings.queries, settings.shape, device)


def _split(settings: MixedSettings, images: Images) -> tuple[Images, Images]:
    """To learn from, and to score on."""
    classes = len(images.table().members)  # raises without labels
    if not settings.held_out:
        return images, images

    def counts(held_out: float) -> tuple[int, int]:
        first = split_count(classes, held_out)
        return first, classes - first

    check_left(
        settings.held_out, kind=f"classes of {images.title}", counts=counts, train=settings.ways, test=settings.ways,
        reason=f"{settings.ways} ways", remedy="ask for fewer ways (--ways) or give images of more classes",
    )  # fmt: skip
    return images.split_classes(settings.held_out)


MIXED = MixedFamily(
    settings_type=MixedSettings,
    source_type=Sources,
    summary="few-shot classification of images from several sources, drawn by weight (multi-domain training)",
    data="a source of labelled images a path, as the families of images read them",
    data_optional=False,
    batch_norm=True,
    evaluation="trained network",
    presets={
        "mixed": PresetSettings(
            {**SMALL_CONV4, "held_out": 0.5}, "fastmeta's own, for a first look in minutes; no published figure."
        )
    },
)
