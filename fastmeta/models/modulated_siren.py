"""A network that stands for a picture, of which a latent code alone is the picture's own."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModulatedSiren(nn.Module):
    """SIREN whose layers are modulated by a linear map of a latent code: COIN++ (Dupont et al. 2022), functa.

    h ← sin(ω₀ (s ⊙ (W h + b) + m)) in every hidden layer, with shifts m, and with `scale` 1 + scales s, all of them
    linear in `latent`, which is the parameter that `fastmeta.CAVIA(model, context="latent")` adapts: coordinates
    [N, coordinates] in [−1, 1] → values [N, outputs]. All pictures share W, b and the map.

    Args:
        coordinates: of a point.
        width: of the hidden layers.
        hidden: how many of them.
        outputs: values at a point, such as three colours; the last bias starts at 0.5, the middle of [0, 1].
        latent: numbers of a picture.
        frequency: ω₀ of the sines; weights start as Sitzmann et al. 2020 have them, section 3.2 and appendix 1.5.
        scale: whether modulations scale as well as shift.
    """

    def __init__(
        self, *, coordinates: int = 2, width: int = 256, hidden: int = 5, outputs: int = 3, latent: int = 256,
        frequency: float = 30.0, scale: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.frequency, self.width, self.scale = frequency, width, scale
        self.latent = nn.Parameter(torch.zeros(latent))
        self.modulation = nn.Linear(latent, hidden * width * (2 if scale else 1))
        self.layers = nn.ModuleList(nn.Linear(width if depth else coordinates, width) for depth in range(hidden))
        self.last = nn.Linear(width, outputs)
        with torch.no_grad():
            for depth, layer in enumerate((*self.layers, self.last)):
                bound = math.sqrt(6 / width) / frequency if depth else 1 / coordinates
                nn.init.uniform_(cast(nn.Linear, layer).weight, -bound, bound)
            self.last.bias.fill_(0.5)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, coordinates] → [N, outputs]."""
        modulations = self.modulation(self.latent).view(-1, self.width).unbind(0)
        shifts = modulations[-len(self.layers) :]
        for depth, layer in enumerate(self.layers):
            if self.scale:
                z = (1 + modulations[depth]) * layer(x) + shifts[depth]
            else:
                linear = cast(nn.Linear, layer)
                # the shift goes into the bias: one pass over [N, width] for two
                z = F.linear(x, linear.weight, linear.bias + shifts[depth])
            x = torch.sin(self.frequency * z)
        return self.last(x)
