"""The loss of a clustering autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8
"""Added to probabilities under a logarithm."""

Outputs = tuple[Tensor, Tensor]
"""Of a clustering autoencoder: (reconstruction [N, C, H, W], soft assignments [N, clusters])."""


@dataclass(frozen=True)
class ClusteringLoss:
    """Mean squared error of the reconstruction + weight · KL(P ‖ Q) of the assignments (Xie et al. 2016, eq. 2, 3).

    The target P sharpens Q and evens out the clusters' sizes, p_ij ∝ q_ij² / Σ_i q_ij; it is held fixed, as there.

    Attributes:
        weight: of the divergence, a mean over images.
    """

    weight: float = 0.1

    def __call__(self, outputs: Outputs, images: Tensor) -> Tensor:
        """outputs: (reconstruction [N, C, H, W], soft assignments [N, clusters]); images [N, C, H, W] → scalar."""
        reconstruction, q = outputs
        fixed = q.detach()
        sharp = fixed * fixed / (fixed.sum(0) + EPSILON)
        p = sharp / sharp.sum(1, keepdim=True)
        divergence = (p * ((p + EPSILON).log() - (q + EPSILON).log())).sum(1).mean()
        return F.mse_loss(reconstruction, images) + self.weight * divergence
