"""Random quadratic functions, on which Andrychowicz et al. 2016 (section 3.1) train a learned optimiser first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Episodes, Sampler, Shots, check_count


class Quadratics(Sampler):
    """Functions f(θ) = ‖W θ − y‖² of `dimensions` numbers, W and y with standard normal entries, which is our choice.

    A task's samples are the rows of W with the entries of y as targets, and the network is `QuadraticModel`, which
    holds θ; with `sum_of_squares` as its loss that is f. Support and query set are the same: there is nothing to
    generalise to but other functions.

    Args:
        dimensions: of θ.
        device: where functions are drawn.
        dtype: of W and y.

    Raises:
        ValueError: fewer than one dimension.
    """

    def __init__(
        self, *, dimensions: int = 10, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        check_count("dimensions", dimensions)
        super().__init__(Shots(None, dimensions, dimensions), device)
        self.dimensions, self.dtype = dimensions, dtype

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` functions: W [tasks, dimensions, dimensions] and y [tasks, dimensions, 1], twice."""
        self._check_sample(tasks, generator)
        w, y = (
            torch.randn(tasks, self.dimensions, columns, generator=generator, device=self.device, dtype=self.dtype)
            for columns in (self.dimensions, 1)
        )
        return Episodes(w, y, w, y)


class QuadraticModel(nn.Module):
    """θ as a network: rows of W [N, dimensions] → W θ [N, 1]. θ starts at zero, so that all functions start alike."""

    def __init__(self, dimensions: int = 10) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dimensions))

    def forward(self, w: Tensor) -> Tensor:
        """W θ."""
        return nn.functional.linear(w, self.theta)


def sum_of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """‖outputs − targets‖²."""
    return (outputs - targets).square().sum()
