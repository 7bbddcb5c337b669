"""What CACTUs clusters: an embedding of a run's images, given or learned, and k-means on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import MAML
from fastmeta.models import ClusteringAutoencoder
from fastmeta.tasks import Images, TaskFamily, partition
from fastmeta.tasks.image_sets import ImageSets

from .families.cactus import CactusSettings
from .trainer import Outcome

ITERATIONS = 2000
"""Of the autoencoder's training, in batches of 64 images, or all where there are fewer."""


@dataclass(frozen=True)
class Partitions:
    """The clusters of a run, which its folder keeps.

    Attributes:
        settings: how many, and of what.
        images: those to learn from, without labels.
        fingerprint: of the run's data.
        seed: of the autoencoder and the clusters.
        folder: of the run.
        device: where the autoencoder is trained.
        train: (learner, tasks, folder, iterations) → how the training of the autoencoder ended.
        say: takes one line at the beginning of a stage.
    """

    settings: CactusSettings
    images: Images
    fingerprint: str | None
    seed: int
    folder: Path
    device: torch.device
    train: Callable[[MetaLearner, TaskFamily, Path, int], Outcome]
    say: Callable[[str], None]

    def make(self, *, resume: bool) -> Tensor | Outcome:
        """The clusters, int64 [partitions, images]; an outcome where the autoencoder's training was stopped.

        Args:
            resume: read those that the run made before, where there are some.

        Raises:
            ValueError: an embedding that does not fit the images, or fewer images than clusters.
        """
        path = self.path
        if not (resume and path.exists()):
            codes = self._codes()
            if isinstance(codes, Outcome):
                return codes
            count, clusters = self.settings.partitions, self._clusters()
            self.say(f"{count} partitions into {clusters} clusters: {path}")
            found = partition(codes, clusters=clusters, partitions=count, seed=self.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name("new-partitions.npy")
            np.save(temporary, found.numpy())
            temporary.replace(path)
        return torch.from_numpy(np.load(path))

    @property
    def path(self) -> Path:
        """Where they are, or will be."""
        return self.folder / f"partitions-{self._digest()}.npy"

    def check(self) -> None:
        """Raise ValueError or OSError where `make` cannot succeed, before anything is trained."""
        clusters = self._clusters()
        if len(self.images) < clusters:
            raise ValueError(
                f"{clusters} clusters need at least as many images, got {len(self.images)}; ask for fewer (--clusters)"
            )
        if self.settings.embedding is not None:
            self._embedding(self.settings.embedding)

    def _clusters(self) -> int:
        """Of a partition."""
        if self.settings.clusters is not None:
            return self.settings.clusters
        return max(len(self.images) // 20, self.settings.ways)

    def _digest(self) -> str:
        """Of all that decides the clusters: a run of other settings makes its own."""
        part = self.settings
        # as older versions wrote what is automatic: their runs keep their clusters
        decides = (part.clusters or 0, part.partitions, part.latent, part.embedding or "", part.held_out, part.ways)
        return hashlib.sha256(repr((self.fingerprint, self.seed, *decides)).encode()).hexdigest()[:12]

    def _codes(self) -> Tensor | Outcome:
        """The embedding to cluster: a given one, or the codes of an autoencoder trained on the images."""
        if self.settings.embedding is not None:
            return self._embedding(self.settings.embedding)
        torch.manual_seed(self.seed)
        learner, family = autoencoder(self.images, latent=self.settings.latent, device=self.device)
        folder = self.folder / "autoencoder"
        self.say(f"autoencoder, {ITERATIONS:,} iterations: {folder}")
        outcome = self.train(learner, family, folder, ITERATIONS)
        if not outcome.finished:
            return outcome
        assert isinstance(learner.module, ClusteringAutoencoder)
        return encode(learner.module, self.images, self.device)

    def _embedding(self, path: str) -> Tensor:
        codes = torch.from_numpy(np.load(path, allow_pickle=False)).float()
        if len(codes) != len(self.images):
            raise ValueError(
                f"{path} must hold a row for each of the {len(self.images)} images to learn from, got {len(codes)} "
                "(with --held-out 0 they are all images)"
            )
        return codes


def reconstruction(outputs: Any, images: Tensor) -> Tensor:
    """Mean squared error of an autoencoder's first output."""
    return F.mse_loss(outputs[0], images)


def autoencoder(images: Images, *, latent: int, device: torch.device) -> tuple[MAML, ImageSets]:
    """A learner without inner steps and the batches that train it: a `Trainer` of both makes plain training."""
    model = ClusteringAutoencoder(images.shape, clusters=1, latent=latent).to(device)
    learner = MAML(model, inner_loss=reconstruction, inner_steps=0)
    return learner, ImageSets(images, samples=min(64, len(images)), device=device)


@torch.no_grad()
def encode(model: ClusteringAutoencoder, images: Images, device: torch.device) -> Tensor:
    """Codes [n, latent] of all images, on the CPU."""
    rows = torch.arange(len(images)).split(500)
    return torch.cat([model.encoder(images.floats(part, device)).cpu() for part in rows])
