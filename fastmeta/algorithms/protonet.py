"""Prototypical networks."""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from fastmeta.engine.episode import Head

from .features import FeatureArguments, FeatureLearner

Distance = Literal["squared", "euclidean", "cosine"]


class ProtoNet(FeatureLearner):
    """Prototypical networks (Snell, Swersky, Zemel 2017): a query sample is of the class whose mean feature is nearest.

        c_j = mean of f_θ(x) over the support samples of class j,    logits_j = −‖f_θ(x) − c_j‖²

    Args:
        encoder: f_θ, such as a convolutional network without its last linear layer.
        distance: "squared" (of the paper), "euclidean" (without the square, whose derivative at a distance of 0 is
            taken for 0) or "cosine", of which the logits are the similarity itself.
        ways: C; None takes it from the labels of each meta-batch.
        joint: support and query set pass the encoder as one batch, as in the authors' code; that matters to batch norm.

    All other arguments, labels, padding and absent classes: `fastmeta.FeatureLearner`.

    Example:
        >>> encoder = fastmeta.models.conv4(5, pooled=True)[:-1]
        >>> protonet = fastmeta.ProtoNet(encoder, ways=5)
        >>> out = protonet(support_x, support_y, query_x, query_y)  # [T, N, ...] [T, N] [T, M, ...] [T, M]
        >>> out.loss.backward()
        >>> logits = protonet.adapt(support_x, support_y)(query_x)  # [T, M, 5]
    """

    def __init__(
        self, encoder: nn.Module, *, distance: Distance = "squared", ways: int | None = None, joint: bool = True,
        **options: Unpack[FeatureArguments],
    ) -> None:  # fmt: skip
        if distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(map(repr, get_args(Distance)))}, got {distance!r}")
        super().__init__(encoder, _Prototypes(distance), ways=ways, joint=joint, **options)


class _Prototypes(Head):
    """Logits by distance to the means of classes."""

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, support: Tensor, members: Tensor, query: Tensor) -> Tensor:
        prototypes = means_of_classes(support, members)
        if self.distance == "cosine":
            return _unit(query) @ _unit(prototypes).T
        # not by ‖q‖² − 2 q·c + ‖c‖², which loses the distance of near points to roundings
        square = (query.unsqueeze(1) - prototypes).square().sum(2)
        return -square if self.distance == "squared" else -_root(square)


def means_of_classes(features: Tensor, members: Tensor) -> Tensor:
    """Prototypes [..., C, D] of features [..., N, D] by members [..., N, C]; zero of a class without samples."""
    count = members.sum(-2).clamp(min=1.0)
    return (members / count.unsqueeze(-2)).mT @ features


def _root(square: Tensor) -> Tensor:
    """√ whose derivative at 0 is 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays. 1e-8 is added to lengths, as learn2learn does."""
    return x / (_root(x.square().sum(1, keepdim=True)) + 1e-8)
