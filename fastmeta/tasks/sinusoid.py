"""Sinusoid regression, the toy problem of MAML (Finn, Abbeel, Levine 2017, section 5.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Episodes, Sampler, Shots


class Sinusoid(Sampler):
    """Curves y = A sin(x − p), amplitude A ~ U[0.1, 5] and phase p ~ U[0, π], at points x ~ U[−5, 5].

    Args:
        shots: support points N of a task.
        queries: query points M of a task.
        device: where episodes are sampled.
        dtype: of inputs and targets.

    Raises:
        ValueError: for counts below 1.
    """

    def __init__(
        self,
        *,
        shots: int = 10,
        queries: int = 10,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(Shots(None, shots, queries), device)
        self.dtype = dtype

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` curves: inputs and targets [tasks, shots, 1] and [tasks, queries, 1]."""
        amplitude, phase = self.sample_curves(tasks, generator)
        x = self.sample_inputs(tasks, self.counts.draws, generator)
        return self.counts.episodes(x, amplitude * torch.sin(x - phase))

    def sample_curves(self, tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw amplitudes and phases, each [tasks, 1, 1]."""
        self._check_sample(tasks, generator)
        shape = (tasks, 1, 1)
        return self._uniform(shape, 0.1, 5.0, generator), self._uniform(shape, 0.0, math.pi, generator)

    def sample_inputs(self, tasks: int, points: int, generator: torch.Generator) -> Tensor:
        """Draw points x of each curve, [tasks, points, 1]."""
        return self._uniform((tasks, points, 1), -5.0, 5.0, generator)

    def _uniform(self, shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
        u = torch.rand(shape, generator=generator, device=self.device, dtype=self.dtype)
        return u.mul_(high - low).add_(low)
