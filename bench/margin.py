"""Which seed of a workload's data keeps a margin from kinks: `python -m bench.margin NAME`.

Noise of the size of float32's rounding on the weights, all else in float64, moves the meta-gradient of a batch with a
margin by about as much, and that of a batch without one by percents.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from torch import nn

from .gate import gradient, relative
from .workloads import WORKLOADS, Workload

SEEDS = range(1, 9)
DRAWS = 2


@dataclass(frozen=True)
class Perturbed(Workload):
    """A workload whose weights are moved by as much as float32 rounds them, by the noise that `draw` seeds."""

    draw: int = 0

    def model(self, seed: int = 0) -> nn.Module:
        """In float64."""
        model = super().model(seed).double()
        generator = torch.Generator().manual_seed(self.draw)
        for p in model.parameters():
            noise = torch.rand(p.shape, generator=generator, dtype=torch.float64) - 0.5
            p.data.mul_(1 + torch.finfo(torch.float32).eps * noise)
        return model


def moved(workload: Workload) -> float:
    """‖g(θ + noise) − g(θ)‖ / ‖g(θ)‖, the largest of a few draws; the noise is θ's float32 rounding."""
    truth, *others = (
        gradient(case, "maml", "cpu", torch.float64)
        for case in (workload, *(Perturbed(**vars(workload), draw=draw) for draw in range(DRAWS)))
    )
    return max(relative(other, truth) for other in others)


def main() -> None:
    """Print how far each seed's gradient moves."""
    for name in sys.argv[1:]:
        for seed in SEEDS:
            workload = replace(WORKLOADS[name].unrepeated(), data_seed=seed)
            print(f"{name} seed {seed}: {moved(workload):.1e}", flush=True)


if __name__ == "__main__":
    main()
