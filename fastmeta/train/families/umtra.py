"""Few-shot tasks from images without labels, by augmentation (Khodadadeh, Bölöni, Shah 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastmeta.tasks import UMTRA, Images, TaskFamily

from .base import PresetSettings
from .glyphs import SMALL_CONV4
from .images import IMAGE_DATA, ImageFamily, ImageSettings, label_tests, split_by_class
from .settings import Augmented, ClassifierSettings


@dataclass(frozen=True, kw_only=True)
class UmtraSettings(ClassifierSettings, Augmented, ImageSettings):
    """Settings of `umtra`."""

    task: ClassVar[str] = "umtra"

    @property
    def training_shots(self) -> int:
        """A class is one image."""
        return 1


class UmtraFamily(ImageFamily[UmtraSettings]):
    """An image is a class, its augmentations are the queries."""

    def train(self, settings: UmtraSettings, source: Images, device: torch.device) -> UMTRA:
        """Tasks of the images to learn from."""
        images, _ = split_by_class(settings, source)
        strength = settings.augment or 1.0  # without augmentation a query would be the support image itself
        return UMTRA(images, ways=settings.ways, queries=settings.queries, augment=strength, device=device)

    def tests(self, settings: UmtraSettings, source: Images, device: torch.device) -> dict[str, TaskFamily]:
        """Episodes of the labels."""
        return label_tests(settings, source, device)


UMTRA_IMAGES = UmtraFamily(
    settings_type=UmtraSettings,
    source_type=Images,
    summary="few-shot tasks from images without labels, by augmentation (Khodadadeh et al. 2019)",
    data=IMAGE_DATA,
    batch_norm=True,
    presets={
        "umtra": PresetSettings(
            {**SMALL_CONV4, "augment": 1.0},
            "fastmeta's own, after Khodadadeh et al. 2019: one inner step in training, on fewer filters and "
            "iterations.",
        )
    },
)
