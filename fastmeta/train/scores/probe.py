"""Linear probe: how well a classifier of frozen features predicts labels (Alain and Bengio 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.models import head_of
from fastmeta.tasks import Images

from .compare import Comparison, Curve
from .evaluate import Estimate

BATCH = 250
"""Images that are normalised together: networks here keep no running statistics."""


def compare_probes(
    starts: Mapping[str, nn.Module], learn: Images, unseen: Images, *, device: torch.device
) -> Comparison:
    """Probe every start on the same images; nothing is adapted, so that all scores stand at 0 inner steps.

    Args:
        starts: classifiers by name; what their last layer takes is probed.
        learn: labelled images for the linear classifier.
        unseen: labelled images of the same classes, to score it on.
        device: of the networks.

    Raises:
        ValueError: images without labels, or a network without a linear layer at its end.
        RuntimeError: without scikit-learn (`pip install "fastmeta[train]"`).
    """
    title = f"labels by a linear probe on {len(learn):,} images"
    curves = {
        name: Curve(0.0, {0: linear_probe(model, learn, unseen, device=device)}) for name, model in starts.items()
    }
    return Comparison(title, True, curves, samples="unseen images")


def linear_probe(model: nn.Module, learn: Images, unseen: Images, *, device: torch.device) -> Estimate:
    """Accuracy of a logistic regression on the network's features, with its confidence over images. See above."""
    if learn.labels is None or unseen.labels is None:
        raise ValueError(f"{learn.title}: a linear probe needs labels; give images in one folder a class")
    scaler, regression = _classifier()
    x, unseen_x = (features(model, images, device).numpy() for images in (learn, unseen))
    scaler.fit(x)
    regression.fit(scaler.transform(x), learn.labels.numpy())
    predicted = torch.from_numpy(regression.predict(scaler.transform(unseen_x)))
    return Estimate.of(predicted == unseen.labels)


@torch.no_grad()
def features(model: nn.Module, images: Images, device: torch.device) -> Tensor:
    """What the last layer takes of every image, [n, features] on the CPU.

    Images of all classes are normalised together: batches are drawn at random, always the same.
    """
    parts: list[Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].cpu()))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    try:
        for rows in order.tensor_split(-(-len(images) // BATCH)):
            model(images.floats(rows, device))
    finally:
        hook.remove()
    return torch.cat(parts)[order.argsort()]


def _classifier() -> tuple[Any, Any]:
    """Features to zero mean and unit variance, and logistic regression with scikit-learn's own penalty."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise RuntimeError('a linear probe needs scikit-learn: pip install "fastmeta[train]"') from error
    return StandardScaler(), LogisticRegression(max_iter=2000)
