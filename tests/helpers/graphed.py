"""What the tests of CUDA graphs share: models, two learners that must train alike, and how they are compared."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from meta_steps import mlp
from torch import nn

import fastmeta

ALGORITHMS = {"maml": fastmeta.MAML, "fomaml": fastmeta.FOMAML, "reptile": fastmeta.Reptile}


def pair(algorithm="maml", model=None, *, device="cpu", **options):
    """A learner with graphs and one without, on two copies of a model."""
    model = (mlp(2, 5, 1) if model is None else model).to(device)
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.3), "inner_steps": 2} | options
    return (
        ALGORITHMS[algorithm](model, cuda_graph=True, **options),
        ALGORITHMS[algorithm](copy.deepcopy(model), **options),
    )


def replaying(learner, batch):
    """The learner with its graph for such a batch recorded."""
    for _ in range(2):
        learner(*batch)
    return learner


def gradient(learner):
    return {name: p.grad.clone() for name, p in learner.module.named_parameters()}


def assert_equal(got, want, *, exactly=True):
    """Two trees of tensors; not exactly on a GPU, where products choose how to sum by where their operands lie."""
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


def assert_trains_alike(learners, batches, *, plain_batches=None, exactly=True):
    """Outer steps of both learners, each on a batch of its own; what they gave is compared at the very end.

    `plain_batches`: the same values for the learner without a graph, where they should lie otherwise in memory.
    """
    ends = []
    for learner, given_batches in zip(learners, (batches, plain_batches or batches), strict=True):
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
        outs = []
        for batch in given_batches:
            torch.manual_seed(len(outs))
            optimizer.zero_grad()
            outs.append(learner(*batch))
            outs[-1].loss.backward()
            optimizer.step()
        given = [(out.loss.detach(), out.task_losses.detach(), out.outputs, out.finite) for out in outs]
        ends.append((given, list(learner.module.state_dict().values())))
    assert_equal(*ends, exactly=exactly)
    losses = [given[0].item() for given in ends[0][0]]
    assert len(set(losses)) == len(losses), "no two steps gave the same"


class TreeNet(nn.Module):
    """Takes a dict, gives a tuple whose second part is an input as it came."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1).double()

    def forward(self, x, extra):
        return self.linear(x), extra


class Noisy(nn.Module):
    """Draws by other means than `nn.Dropout`."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1).double()

    def forward(self, x):
        return self.linear(x + 0.1 * torch.randn_like(x))
