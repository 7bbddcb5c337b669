"""Which seed of a workload's data keeps a margin from kinks: `python -m bench.margin NAME`.

Noise of the size of float32's rounding on the weights, all else in float64, moves the meta-gradient of a batch with a
margin by about as much, and that of a batch without one by percents.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import nn

from .gate import gradient, relative
from .workloads import WORKLOADS, Workload

SEEDS = range(1, 9)
DRAWS = 2


def moved(workload: Workload) -> float:
    """‖g(θ + noise) − g(θ)‖ / ‖g(θ)‖, the largest of a few draws; the noise is θ's float32 rounding."""
    truth = gradient(workload, "maml", "cpu", torch.float64)
    found = []
    for draw in range(DRAWS):

        def perturbed(width: int, draw: int = draw) -> nn.Sequential:
            model = workload.make_model(width).double()
            generator = torch.Generator().manual_seed(draw)
            for p in model.parameters():
                noise = torch.rand(p.shape, generator=generator, dtype=torch.float64) - 0.5
                p.data.mul_(1 + torch.finfo(torch.float32).eps * noise)
            return model

        found.append(relative(gradient(replace(workload, make_model=perturbed), "maml", "cpu", torch.float64), truth))
    return max(found)


def main() -> None:
    """Print how far each seed's gradient moves."""
    for name in sys.argv[1:]:
        for seed in SEEDS:
            workload = replace(WORKLOADS[name].unrepeated(), data_seed=seed)
            print(f"{name} seed {seed}: {moved(workload):.1e}", flush=True)


if __name__ == "__main__":
    main()
