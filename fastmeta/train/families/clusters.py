"""A clustering autoencoder over small image sets of few classes (after Xie, Girshick, Farhadi 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastmeta.models import ClusteringLoss
from fastmeta.tasks import ClassEpisodes, Episodes, Images, TaskFamily
from fastmeta.tasks.derived import Unlabelled
from fastmeta.train.scores.clusters import check_libraries

from .base import PresetSettings
from .images import IMAGE_DATA, ImageFamily, ImageSettings, check_classes, split_by_class
from .settings import AugmentedClasses, Latent, network


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(ImageSettings, AugmentedClasses, Latent):
    """Settings of `cluster`."""

    task: ClassVar[str] = "cluster"
    models: ClassVar[tuple[str, ...]] = ("autoencoder",)

    model: str = network("autoencoder")


class ClusterFamily(ImageFamily[ClusterSettings]):
    """Images of a few classes as their own targets."""

    def train(self, settings: ClusterSettings, source: Images, device: torch.device) -> Unlabelled:
        """Sets of images of the classes to learn from."""
        self._check(settings, source)
        images, _ = split_by_class(settings, source)
        return Unlabelled(
            ClassEpisodes(
                images.table(),
                ways=settings.ways,
                shots=settings.shots,
                queries=settings.queries,
                augment=settings.augment,
                augment_classes=settings.augment_classes,
                device=device,
            )
        )

    def pretrain(self, settings: ClusterSettings, source: Images, device: torch.device) -> Unlabelled:
        """The same sets."""
        return self.train(settings, source, device)

    def tests(self, settings: ClusterSettings, source: Images, device: torch.device) -> dict[str, TaskFamily]:
        """Labelled episodes of one class more than there are clusters: the last one is the anomaly."""
        self._check(settings, source)
        _, unseen = split_by_class(settings, source)
        ways, shots, queries = settings.ways + 1, settings.shots, settings.queries
        return {"unseen classes": ClassEpisodes(unseen.table(), ways=ways, shots=shots, queries=queries, device=device)}

    def example(self, settings: ClusterSettings, device: torch.device) -> Episodes:
        """Random images as their own targets."""
        n, samples = settings.ways * settings.shots, settings.ways * (settings.shots + settings.queries)
        x = torch.rand(2, samples, *settings.shape, device=device)
        return Episodes(x[:, :n], x[:, :n], x[:, n:], x[:, n:])

    def check_libraries(self) -> None:
        """Scikit-learn scores clusters."""
        check_libraries()

    @staticmethod
    def _check(settings: ClusterSettings, source: Images) -> None:
        ways = settings.ways
        reason = f"{ways} ways and one class of anomalies"
        check_classes(settings, source, train=ways, test=ways + 1, reason=reason)


CLUSTER = ClusterFamily(
    settings_type=ClusterSettings,
    source_type=Images,
    summary="clustering autoencoder over small unlabelled image sets of few classes (after Xie et al. 2016)",
    data=IMAGE_DATA,
    loss=ClusteringLoss(),
    pretrain_loss=ClusteringLoss(weight=0.0),  # reconstruction alone, as Xie et al. begin
    evaluation="clusters",
    presets={
        "cluster": PresetSettings(
            {
                "channels": 8,
                "ways": 5,
                "shots": 10,
                "queries": 10,
                "inner_lr": 1.0,
                "inner_momentum": 0.9,
                "inner_steps": 5,
                "iterations": 300,
                "meta_batch": 4,
                "schedule": "cosine",
                "grad_clip": 10.0,
                "pretrain_iterations": 3_000,
                "from_pretrained": True,
                "eval_steps": 20,
                "episodes": 40,
            },
            "fastmeta's own: meta-training starts from the pre-trained network. Inner Adam is no choice here: its "
            "exact meta-gradient passes through the sign of the first step, and the loss rose.",
        )
    },
)
