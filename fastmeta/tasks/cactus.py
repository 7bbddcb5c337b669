"""CACTUs: tasks from images without labels, by clustering an embedding (Hsu, Levine, Finn 2019, Algorithm 1)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Shots, check_count
from .class_episodes import ClassEpisodes
from .datasets.class_table import ClassTable, pad
from .datasets.images import Images


@dataclass(frozen=True, repr=False)
class Clustered:
    """Images and the clusters of those that are learned from.

    Attributes:
        images: all of them.
        partitions: int64 [partitions, n], of the n images to learn from (`partition`).
    """

    images: Images
    partitions: Tensor

    def __repr__(self) -> str:
        return f"Clustered({self.describe()})"

    def fingerprint(self) -> str:
        """A digest of the images."""
        return self.images.fingerprint()

    def describe(self) -> str:
        """For a person: images and clusters."""
        clusters = int(self.partitions.max()) + 1
        return f"{self.images.describe()}; {len(self.partitions)} partitions into {clusters} clusters"


class CACTUs(ClassEpisodes):
    """Episodes whose classes are clusters: a task takes all its classes from one partition.

    Args:
        images: whose labels, where there are any, are not read.
        partitions: cluster of each image in each partition, [partitions, n] (`partition`); −1 for none.
        ways: clusters C of a task.
        shots: support images per cluster.
        queries: query images per cluster. Clusters of fewer than shots + queries images are left out.
        augment: strength of a random distortion of every image.
        augment_classes: strength of one that all images of a cluster in a task share.
        device: where images lie and episodes are sampled.

    Raises:
        ValueError: partitions that do not fit the images, or with fewer large clusters than ways.
    """

    def __init__(
        self,
        images: Images,
        partitions: Tensor,
        *,
        ways: int,
        shots: int,
        queries: int,
        augment: float = 0.0,
        augment_classes: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        counts = Shots(ways, shots, queries)
        if partitions.dim() != 2 or partitions.shape[1] != len(images):
            raise ValueError(
                f"partitions must be [partitions, {len(images)}], a cluster for every image, got "
                f"{list(partitions.shape)}"
            )
        rows, groups = [], []
        for number, clusters in enumerate(partitions):
            members = [(clusters == c).nonzero().squeeze(1) for c in clusters.unique().tolist() if c >= 0]
            large = [one for one in members if len(one) >= counts.draws]
            if len(large) < ways:
                raise ValueError(
                    f"{ways} ways need {ways} clusters of at least {shots} + {queries} images (shots + queries), "
                    f"partition {number} has {len(large)} of {len(members)}; ask for fewer clusters, ways or queries, "
                    "or give more images"
                )
            groups.append(torch.arange(len(rows), len(rows) + len(large)))
            rows += large
        super().__init__(
            ClassTable(images.pixels, pad(rows), pad(groups), images.mapped),
            ways=ways,
            shots=shots,
            queries=queries,
            augment=augment,
            augment_classes=augment_classes,
            device=device,
        )


def partition(embedding: Any, *, clusters: int, partitions: int = 10, seed: int = 0) -> Tensor:
    """Cluster an embedding several times by k-means, each time with its dimensions scaled at random (section 3 there).

    Args:
        embedding: [n, d], of each image.
        clusters: k of each partition.
        partitions: how many. The scales of a dimension are uniform in [0, 1], after it has been given unit variance.
        seed: the same one gives the same clusters.

    Returns:
        int64 [partitions, n].

    Raises:
        ValueError: an embedding that is no finite matrix, or with fewer rows than clusters.
        RuntimeError: without scikit-learn (`pip install "fastmeta[train]"`).
    """
    check_count("clusters", clusters, minimum=2)
    check_count("partitions", partitions)
    x = np.asarray(torch.as_tensor(embedding).detach().cpu(), dtype=np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"embedding must be a finite matrix [n, d], got shape {list(x.shape)}")
    if len(x) < clusters:
        raise ValueError(f"{clusters} clusters need at least as many images, got {len(x)}; ask for fewer (--clusters)")
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    draw = np.random.default_rng(seed)
    kmeans = _kmeans()
    rows = []
    for number in range(partitions):
        scaled = x * draw.random(x.shape[1], dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some clusters are empty, where images repeat: they are left out
            rows.append(kmeans(clusters, random_state=seed + number, n_init=1).fit_predict(scaled))
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def check_scikit_learn() -> None:
    """Raise RuntimeError without scikit-learn, which `partition` needs."""
    _kmeans()


def _kmeans() -> Any:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise RuntimeError('clustering needs scikit-learn: pip install "fastmeta[train]"') from error
    return MiniBatchKMeans
