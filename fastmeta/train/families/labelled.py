"""Few-shot classification of one's own images, by their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastmeta.tasks import ClassEpisodes, Images, TaskFamily

from .base import PresetSettings
from .glyphs import SMALL_CONV4
from .images import IMAGE_DATA, ImageFamily, ImageSettings, check_classes
from .settings import AugmentedClasses, ClassifierSettings, TrainShots


@dataclass(frozen=True, kw_only=True)
class LabelledSettings(ClassifierSettings, TrainShots, AugmentedClasses, ImageSettings):
    """Settings of `images`."""

    task: ClassVar[str] = "images"


class LabelledFamily(ImageFamily[LabelledSettings]):
    """Labels are classes; parts that the data has are used, else a share of the classes is kept for evaluation."""

    def load(self, settings: LabelledSettings, paths: Sequence[str]) -> Images:
        """The images.

        Raises:
            ValueError: for images without labels; and as `load_images`.
        """
        images = super().load(settings, paths)
        if images.labels is None:
            raise ValueError(
                f"{images.title} carries no labels, which task images learns from; put the images of each class into a "
                "folder of its own, or take a task that needs none (umtra, cactus, ssl-images)"
            )
        return images

    def train(self, settings: LabelledSettings, source: Images, device: torch.device) -> ClassEpisodes:
        """Episodes of the classes to learn from."""
        self._check(settings, source)
        rows = None if _undivided(settings, source) else source.class_rows(settings.held_out)[0]
        return ClassEpisodes(
            source.table(rows),
            ways=settings.ways,
            shots=settings.training_shots,
            queries=settings.queries,
            augment=settings.augment,
            augment_classes=settings.augment_classes,
            device=device,
        )

    def tests(self, settings: LabelledSettings, source: Images, device: torch.device) -> dict[str, TaskFamily]:
        """Episodes of the classes kept for evaluation; where the data is divided, of its test and validation parts."""
        self._check(settings, source)
        return {
            title: settings.episodes(source.table(rows), device)
            for title, rows in self._scored(settings, source).items()
        }

    @staticmethod
    def _scored(settings: LabelledSettings, source: Images) -> dict[str, Tensor | None]:
        """Numbers of the images to score on, by title."""
        if _undivided(settings, source):
            return {"new episodes of the classes trained on": None}
        if source.part is None:
            return {"episodes of unseen classes": source.class_rows(settings.held_out)[1]}
        assert source.labels is not None
        learned = source.labels[source.class_rows(settings.held_out)[0]].unique()
        tests: dict[str, Tensor | None] = {}
        for part in ("test", "val"):
            if part in source.parts:
                rows = source.rows_of(part)
                seen = bool(torch.isin(source.labels[rows], learned).any())
                tests[f"episodes of the {part} part, {'unseen images' if seen else 'unseen classes'}"] = rows
        return tests

    @staticmethod
    def _check(settings: LabelledSettings, source: Images) -> None:
        ways = settings.ways
        check_classes(settings, source, train=ways, test=ways, reason=f"{ways} ways")


def _undivided(settings: LabelledSettings, source: Images) -> bool:
    """Whether a run scores on what it learns from: only where that is asked for."""
    return source.part is None and not settings.held_out


LABELLED = LabelledFamily(
    settings_type=LabelledSettings,
    source_type=Images,
    summary="few-shot classification of one's own images, by their labels",
    data=IMAGE_DATA,
    batch_norm=True,
    evaluation="trained network",
    presets={
        "images": PresetSettings(SMALL_CONV4, "fastmeta's own, for a first look in minutes; no published figure."),
    },
)
"""Its name is `images`; the module has another, as the one that all families on images share is `images.py`."""
