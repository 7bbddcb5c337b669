"""A clustering autoencoder: encoder, decoder, cluster centres with soft assignments (Xie, Girshick, Farhadi 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClusteringAutoencoder(nn.Module):
    """Images [N, C, H, W] → (reconstruction [N, C, H, W], soft assignments [N, clusters]).

    The encoder is two strided convolutions and a linear layer, the decoder its mirror image with nearest-neighbour
    enlargement. Codes are normalised over the batch, to the variance that the centres have at first: without that all
    images fell to one centre. An image's assignment to centre μ_j is Student's t kernel on their codes,
    (1 + ‖z − μ_j‖²)^-1, normalised over the centres (eq. 1 of the paper with one degree of freedom).

    Args:
        shape: (C, H, W) of the images; H and W multiples of 4.
        clusters: centres.
        latent: dimensions of a code.
        channels: of the first convolution; the next has twice as many.
    """

    def __init__(self, shape: tuple[int, ...], *, clusters: int = 5, latent: int = 16, channels: int = 16) -> None:
        super().__init__()
        inputs, height, width = shape
        if height % 4 or width % 4:
            raise ValueError(
                f"an autoencoder halves its images twice: sides must be multiples of 4, got {height} × {width}; choose "
                "another size (--image-size)"
            )
        c, h, w = 2 * channels, height // 4, width // 4
        self.encoder = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, c, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(c * h * w, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, c * h * w),
            nn.GELU(),
            nn.Unflatten(1, (c, h, w)),
            _Enlarge(),
            nn.Conv2d(c, channels, 3, padding=1),
            nn.GELU(),
            _Enlarge(),
            nn.Conv2d(channels, inputs, 3, padding=1),
            nn.Sigmoid(),
        )
        self.norm = nn.BatchNorm1d(latent, affine=False, track_running_stats=False)
        self.centres = nn.Parameter(torch.randn(clusters, latent))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.norm(self.encoder(x))
        difference = z.unsqueeze(1) - self.centres
        kernel = 1.0 / (1.0 + (difference * difference).sum(2))
        return self.decoder(z), kernel / kernel.sum(1, keepdim=True)


class _Enlarge(nn.Module):
    """Every pixel becomes four."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([x.unsqueeze(3), x.unsqueeze(3)], 3).flatten(2, 3)
        return torch.cat([rows.unsqueeze(4), rows.unsqueeze(4)], 4).flatten(3, 4)
