"""Few-shot tasks from images without labels, by clustering an embedding (Hsu, Levine, Finn 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fastmeta.tasks import CACTUs, Images, TaskFamily
from fastmeta.tasks.base import check_count
from fastmeta.tasks.cactus import Clustered, check_scikit_learn

from .base import PresetSettings
from .glyphs import SMALL_CONV4
from .images import IMAGE_DATA, ImageFamily, ImageSettings, label_tests, split_by_class
from .settings import AugmentedClasses, ClassifierSettings, Latent, TrainShots


@dataclass(frozen=True, kw_only=True)
class CactusSettings(ClassifierSettings, TrainShots, AugmentedClasses, ImageSettings, Latent):
    """Settings of `cactus`."""

    task: ClassVar[str] = "cactus"

    clusters: int | None = field(
        default=None, metadata={"help": "clusters of a partition; 0: one for 20 images", "automatic": True}
    )
    partitions: int = field(default=10, metadata={"help": "partitions of the images into clusters"})
    embedding: str | None = field(
        default=None, metadata={"help": "a .npy file [images, d] to cluster, instead of a code", "automatic": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("partitions", self.partitions)
        if self.clusters is not None:
            check_count("clusters", self.clusters, minimum=2)


class CactusFamily(ImageFamily[CactusSettings]):
    """A cluster is a class; `train.partitions` makes the clusters."""

    def train(self, settings: CactusSettings, source: Images | Clustered, device: torch.device) -> CACTUs:
        """Tasks of the clusters of the images to learn from.

        Raises:
            ValueError: for images without clusters.
        """
        if not isinstance(source, Clustered):
            raise ValueError(
                "task cactus needs clusters of its images: Pipeline.train makes them, tasks.partition those of an "
                "embedding"
            )
        return CACTUs(
            self.training_images(settings, source),
            source.partitions,
            ways=settings.ways,
            shots=settings.training_shots,
            queries=settings.queries,
            augment=settings.augment,
            augment_classes=settings.augment_classes,
            device=device,
        )

    def tests(
        self, settings: CactusSettings, source: Images | Clustered, device: torch.device
    ) -> dict[str, TaskFamily]:
        """Episodes of the labels."""
        return label_tests(settings, source, device)

    def check_libraries(self) -> None:
        """Scikit-learn makes the clusters."""
        check_scikit_learn()

    @staticmethod
    def training_images(settings: CactusSettings, source: Images | Clustered) -> Images:
        """What the clusters are made of."""
        return split_by_class(settings, source)[0].unlabelled()


CACTUS = CactusFamily(
    settings_type=CactusSettings,
    source_type=(Images, Clustered),
    summary="few-shot tasks from images without labels, by clustering an embedding (Hsu et al. 2019)",
    data=IMAGE_DATA,
    batch_norm=True,
    clustered=True,
    presets={
        "cactus": PresetSettings(
            {**SMALL_CONV4, "augment": 0.5},
            "fastmeta's own, after Hsu et al. 2019: ten partitions there are fifty; codes of a plain autoencoder where "
            "the paper takes ACAI, BiGAN or DeepCluster.",
        )
    },
)
