"""Few-shot classification of random stroke glyphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastmeta.tasks import Episodes, Glyphs, TaskFamily

from .base import Family, PresetSettings, random_images
from .settings import ClassifierSettings, ImageSize, TrainShots


@dataclass(frozen=True, kw_only=True)
class GlyphSettings(ClassifierSettings, TrainShots, ImageSize):
    """Settings of `glyphs`."""

    task: ClassVar[str] = "glyphs"


class GlyphFamily(Family[GlyphSettings, None]):
    """Glyphs, which are drawn anew for every task."""

    def load(self, settings: GlyphSettings, paths: Sequence[str]) -> None:
        """Nothing."""

    def shape(self, settings: GlyphSettings, source: None) -> tuple[int, ...]:
        """Of the drawings."""
        return (1, settings.image_size or 28, settings.image_size or 28)

    def train(self, settings: GlyphSettings, source: None, device: torch.device) -> Glyphs:
        """Glyphs, with the run's shots for training."""
        return self._glyphs(settings, settings.training_shots, device)

    def tests(self, settings: GlyphSettings, source: None, device: torch.device) -> dict[str, TaskFamily]:
        """Other glyphs, as no two are alike."""
        return {"new glyphs": self._glyphs(settings, settings.shots, device)}

    def example(self, settings: GlyphSettings, device: torch.device) -> Episodes:
        """Random images."""
        return random_images(settings.ways, settings.training_shots, settings.queries, settings.shape, device)

    @staticmethod
    def _glyphs(settings: GlyphSettings, shots: int, device: torch.device) -> Glyphs:
        size = settings.image_size or 28
        return Glyphs(ways=settings.ways, shots=shots, queries=settings.queries, size=size, device=device)


SMALL_CONV4 = {
    "model": "conv4",
    "channels": 32,
    "zero_head": True,
    "ways": 5,
    "shots": 1,
    "queries": 5,
    "inner_lr": 0.4,
    "inner_steps": 1,
    "iterations": 3_000,
    "meta_batch": 4,
    "schedule": "cosine",
    "eval_steps": 5,
    "episodes": 200,
}
"""A run of minutes: fastmeta's own."""

GLYPHS = GlyphFamily(
    settings_type=GlyphSettings,
    source_type=type(None),
    summary="few-shot classification of random stroke glyphs, of unlimited classes",
    batch_norm=True,
    presets={"glyphs": PresetSettings(SMALL_CONV4, "fastmeta's own: few-shot learning without any data.")},
)
