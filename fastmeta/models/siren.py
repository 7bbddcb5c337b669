"""Networks that stand for a picture or another signal: coordinates in, values out."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Sine(nn.Module):
    """sin(frequency · x)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return (self.frequency * x).sin()


def siren(*, coordinates: int = 2, width: int = 256, hidden: int = 3, outputs: int = 3, frequency: float = 30.0) -> (
    nn.Sequential
):  # fmt: skip
    """Implicit representation of an image: [N, coordinates] in [−1, 1] → [N, outputs] (Sitzmann et al. 2020).

    Args:
        coordinates: of a point.
        width: of the hidden layers.
        hidden: how many of them.
        outputs: values at a point, such as three colours.
        frequency: ω₀ of the sines; weights start as section 3.2 and appendix 1.5 of the paper have them.
    """
    layers: list[nn.Module] = []
    for depth in range(hidden):
        linear = nn.Linear(width if depth else coordinates, width)
        bound = math.sqrt(6 / width) / frequency if depth else 1 / coordinates
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine(frequency)]
    last = nn.Linear(width, outputs)
    bound = math.sqrt(6 / width) / frequency
    nn.init.uniform_(last.weight, -bound, bound)
    return nn.Sequential(*layers, last)
