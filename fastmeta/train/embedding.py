"""Codes of images from a plain autoencoder: what CACTUs clusters where no embedding is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmeta.algorithms.maml import MAML
from fastmeta.models import ClusteringAutoencoder
from fastmeta.tasks.datasets.images import Images
from fastmeta.tasks.image_sets import ImageSets

ITERATIONS = 2000
"""Of the autoencoder's training, in batches of 64 images, or all where there are fewer."""


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
    parts = images.pixels.split(500)
    return torch.cat([model.encoder(part.to(device, torch.float32).div_(255)).cpu() for part in parts])
