"""One of two processes that train one MAML under DistributedDataParallel, each on its half of the tasks.

`python two_processes.py RANK FOLDER`: reads FOLDER/batch.pt, meets the other through FOLDER/meet, and leaves the
meta-gradients of each of two steps in FOLDER/RANK.pt, with and without a static graph.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from meta_steps import Batch, mlp
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fastmeta


def learner():
    torch.manual_seed(0)
    rates = fastmeta.SGD(lr=fastmeta.PerParameter(0.3))
    return fastmeta.MAML(mlp(2, 5, 1), inner_loss=F.mse_loss, inner_optimizer=rates, inner_steps=2)


def gradients(maml, batch):
    """Of two SGD steps: the second sees what the first did."""
    optimizer = torch.optim.SGD(maml.parameters(), lr=0.5)
    steps = []
    for _ in range(2):
        optimizer.zero_grad()
        maml(*batch).loss.backward()
        steps.append([p.grad.clone() for p in maml.parameters()])
        optimizer.step()
    return steps


def main() -> None:
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    batch = Batch(*torch.load(folder / "batch.pt"))
    half = Batch(*(x[2 * rank : 2 * rank + 2] for x in batch))
    found = [gradients(DistributedDataParallel(learner(), static_graph=static), half) for static in (False, True)]
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()  # neither leaves while the other still needs it
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
