"""The meta-batches of the workloads."""

from __future__ import annotations

import torch

from fastmeta.tasks import Episodes, Sinusoid

from .workloads import Workload


def batch(workload: Workload, seed: int) -> Episodes:
    """T tasks; where they repeat, the distinct ones again and again."""
    once = workload.unrepeated().tasks
    generator = torch.Generator().manual_seed(seed)
    episodes = _sample(workload, max(once, workload.distinct), generator)  # few tasks are the first ones of more
    return Episodes(*(x[:once].repeat(workload.tasks // once, *(1 for _ in x.shape[1:])) for x in episodes))


def _sample(workload: Workload, tasks: int, generator: torch.Generator) -> Episodes:
    if workload.sample_shape == (1,):
        return Sinusoid(shots=workload.support, queries=workload.query).sample(tasks, generator)
    halves = []
    for count in (workload.support, workload.query):
        if workload.words:
            x = torch.randint(workload.words, (tasks, count, *workload.sample_shape), generator=generator)
            halves += [x, torch.randint(workload.outputs, (tasks, count), generator=generator)]
            continue
        x = torch.randn(tasks, count, *workload.sample_shape, generator=generator)
        if workload.loss == "mse":  # colours in [-1, 1] at places in [-1, 1]
            x = torch.rand(x.shape, generator=generator) * 2 - 1
            halves += [x, torch.rand(tasks, count, workload.outputs, generator=generator) * 2 - 1]
        else:
            halves += [x, (torch.arange(count) % workload.outputs).expand(tasks, count).contiguous()]
    return Episodes(*halves)
